// A depthwise convolution over NHWC: each thread has one word of channels and a strip of COLUMNS results, and walks
// down ROWS of them. Its filters stay in registers; each pixel is loaded and widened once and added to all the rows of
// results that it belongs to. Rows are loaded before they are wanted.
//
// Blocks begin with the last image, for what the kernel ahead wrote last is in the second cache yet; and the kernel
// behind, which begins with the first, finds that there.
//
// Numbers of sixteen bits are multiplied in FP32. INT8 is multiplied in FP16, two at a time, by weights whose sizes add
// up to at most one: sums stay below 128, where FP16 has steps of a sixteenth at most. What becomes of a sum is FP32.
//
// Given by whoever compiles:
//   IMAGES HEIGHT WIDTH CHANNELS OUT_HEIGHT OUT_WIDTH    channels a multiple of a word's
//   TAPS_HIGH TAPS_WIDE STRIDE_HIGH STRIDE_WIDE PAD_TOP PAD_LEFT
//   X_PITCH OUT_PITCH     numbers from one pixel to the next
//   EIGHT_IN EIGHT_OUT    whether they are INT8
//   COLUMNS ROWS AHEAD THREADS BLOCKS   how it is cut; AHEAD rows are under way
//   HAS_BIAS HAS_SUMS     sums are of each channel of each walk, before rounding: [IMAGES, walks and strips, CHANNELS]
//   X_SCALE_BITS OUT_INVERSE_BITS   FP32 as it lies in memory: what an INT8 step is worth, how many of the result one is
//   ACTIVATION            0 bounds alone, 1 hard_swish, 2 silu
//   LOW_BITS HIGH_BITS    the bounds; infinite where there is none. HIGH_MATTERS: INT8 does not end there anyway
//   BFLOAT16              defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

#include "walk.cuh"

constexpr int STRIPS = (OUT_WIDTH + COLUMNS - 1) / COLUMNS;

static_assert(X_PITCH % VECTOR == 0, "whole words");

// The part of a row that a strip looks at; zeros outside of the picture. Where a strip may reach over an edge is known.
__device__ __forceinline__ void load_row(const unsigned int* from, bool there, int left, unsigned int (&to)[REACH]) {
  constexpr int LAST = (STRIPS - 1) * COLUMNS * STRIDE_WIDE - PAD_LEFT;  // of all strips' lefts
#pragma unroll
  for (int j = 0; j < REACH; ++j) {
    const bool inside = there && (j >= PAD_LEFT || left + j >= 0) && (LAST + j < WIDTH || left + j < WIDTH);
    to[j] = inside ? from[j * (X_PITCH / VECTOR)] : 0u;
  }
}

#if EIGHT_IN
#define FACTORS factors
#else
#define FACTORS nullptr
#endif
#if HAS_BIAS
#define BIAS bias
#else
#define BIAS nullptr
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) depthwise_walk(const unsigned int* x, const unsigned int* w,
#if EIGHT_IN
                                                                     const float* factors,
#endif
#if HAS_BIAS
                                                                     const float* bias,
#endif
#if HAS_SUMS
                                                                     Out* out, float* sums) {
#else
                                                                     Out* out) {
#endif
  const unsigned int number = (BLOCKS - 1 - block_index()) * THREADS + thread_index();
  const unsigned int vector = number % VECTORS, strip = number / VECTORS % STRIPS;
  const unsigned int walk = number / (VECTORS * STRIPS) % WALKS, image = number / (VECTORS * STRIPS * WALKS);
  if (image >= IMAGES) return;

  Number filters[TAPS][LANES];
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) load_filter(w, tap, vector, filters[tap]);
  float factor[VECTOR], offset[VECTOR];
  scales_of(factor, offset, FACTORS, BIAS, vector);

  const int first = static_cast<int>(walk) * ROWS;
  const int last = first + ROWS < OUT_HEIGHT ? first + ROWS : OUT_HEIGHT;
  const int left = static_cast<int>(strip) * COLUMNS * STRIDE_WIDE - PAD_LEFT;
  const int reach = (last - 1) * STRIDE_HIGH - PAD_TOP + TAPS_HIGH, end = reach < HEIGHT ? reach : HEIGHT;
  int row = first * STRIDE_HIGH - PAD_TOP;
  const unsigned int* from =
      x + ((static_cast<int>(image) * HEIGHT + row) * WIDTH + left) * static_cast<long long>(X_PITCH / VECTOR) + vector;
  Out* to = out + ((image * OUT_HEIGHT + first) * OUT_WIDTH + strip * COLUMNS) * static_cast<long long>(OUT_PITCH) +
            vector * VECTOR;

  wait_for_kernel_ahead();
  let_kernel_behind_start();

  unsigned int ahead[AHEAD][REACH];
#pragma unroll
  for (int each = 0; each < AHEAD; ++each) {
    load_row(from, row + each >= 0 && row + each < end, left, ahead[each]);
    from += WIDTH * (X_PITCH / VECTOR);
  }
  Kept kept = {};
#if HAS_SUMS
  float total[VECTOR] = {};
#endif

#pragma unroll 1
  for (int p = first - KEPT + 1; p < last; ++p) {  // the row that is whole after this
    shift(kept);
#pragma unroll
    for (int t = 0; t < STRIDE_HIGH; ++t) {
      Number pixels[REACH][LANES];
#pragma unroll
      for (int j = 0; j < REACH; ++j) spread(ahead[0][j], pixels[j]);
#pragma unroll
      for (int each = 0; each < AHEAD - 1; ++each) {
#pragma unroll
        for (int j = 0; j < REACH; ++j) ahead[each][j] = ahead[each + 1][j];
      }
      load_row(from, row + AHEAD >= 0 && row + AHEAD < end, left, ahead[AHEAD - 1]);
      from += WIDTH * (X_PITCH / VECTOR);
      if (row >= 0 && row < end) add_row(kept, pixels, filters, t);
      ++row;
    }
    if (p >= first) {
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
        if (OUT_WIDTH % COLUMNS == 0 || static_cast<int>(strip) * COLUMNS + column < OUT_WIDTH) {
          float y[VECTOR];
#pragma unroll
          for (int channel = 0; channel < VECTOR; ++channel) {
            y[channel] = finished(sum_of(kept[KEPT - 1][column], channel), factor[channel], offset[channel]);
#if HAS_SUMS
            total[channel] += y[channel];
#endif
          }
          store(to + column * OUT_PITCH, y);
        }
      }
      to += OUT_WIDTH * OUT_PITCH;
    }
  }
#if HAS_SUMS
  float* mine = sums + ((image * WALKS + walk) * STRIPS + strip) * CHANNELS + vector * VECTOR;
#pragma unroll
  for (int channel = 0; channel < VECTOR; ++channel) mine[channel] = total[channel];
#endif
}
