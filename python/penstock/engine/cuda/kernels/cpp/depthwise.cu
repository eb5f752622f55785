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
//   LOW_BITS HIGH_BITS    the bounds; infinite where there is none
//   BFLOAT16              defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int BOUNDED = 0, HARD_SWISH = 1, SILU = 2;
constexpr unsigned int NO_LOW = 0xff800000u, NO_HIGH = 0x7f800000u;

constexpr int TAPS = TAPS_HIGH * TAPS_WIDE;
constexpr int REACH = (COLUMNS - 1) * STRIDE_WIDE + TAPS_WIDE;  // pixels of a row that a strip looks at
constexpr int STRIPS = (OUT_WIDTH + COLUMNS - 1) / COLUMNS;
constexpr int WALKS = (OUT_HEIGHT + ROWS - 1) / ROWS;
constexpr int KEPT = (TAPS_HIGH + STRIDE_HIGH - 1) / STRIDE_HIGH;  // rows of results that one row belongs to
constexpr int VECTOR = EIGHT_IN ? 4 : 2;                           // channels of a word
constexpr int VECTORS = CHANNELS / VECTOR;
constexpr int LANES = 2;  // of what is multiplied

static_assert(CHANNELS % VECTOR == 0 && X_PITCH % VECTOR == 0 && OUT_PITCH % VECTOR == 0, "whole words");

#if EIGHT_IN
using Number = unsigned int;  // two of FP16

// A byte below 256 is the last bits of the half that is 1024 more.
__device__ __forceinline__ void spread(unsigned int word, Number (&to)[LANES]) {
  const unsigned int above = word ^ 0x80808080u;
  to[0] = halves_add(permuted(above, 0x64646464u, 0x4140u), 0xe480e480u);
  to[1] = halves_add(permuted(above, 0x64646464u, 0x4342u), 0xe480e480u);
}

__device__ __forceinline__ Number times_plus(Number one, Number other, Number sum) {
  return halves_multiply_add(one, other, sum);
}

__device__ __forceinline__ void load_filter(const unsigned int* w, int tap, unsigned int vector, Number (&to)[LANES]) {
  const unsigned int* from = w + (tap * VECTORS + vector) * LANES;
  to[0] = from[0], to[1] = from[1];
}

__device__ __forceinline__ float sum_of(const Number (&sum)[LANES], int channel) {
  return channel % 2 == 0 ? low_of_halves(sum[channel / 2]) : high_of_halves(sum[channel / 2]);
}
#else
using Number = float;

__device__ __forceinline__ void spread(unsigned int word, Number (&to)[LANES]) {
  to[0] = wide(static_cast<unsigned short>(word)), to[1] = wide(static_cast<unsigned short>(word >> 16));
}

__device__ __forceinline__ Number times_plus(Number one, Number other, Number sum) { return one * other + sum; }

__device__ __forceinline__ void load_filter(const unsigned int* w, int tap, unsigned int vector, Number (&to)[LANES]) {
  spread(w[tap * VECTORS + vector], to);
}

__device__ __forceinline__ float sum_of(const Number (&sum)[LANES], int channel) { return sum[channel]; }
#endif

// From a sum, its channel's factor and bias. Bounds are in the result's steps, and so are factor and bias.
__device__ __forceinline__ float finished(float sum, float factor, float bias) {
  float y = EIGHT_IN || EIGHT_OUT ? sum * factor + bias : sum + bias;
  if (ACTIVATION == HARD_SWISH) y = y * smaller(greater(y * 0.16666666666666666f + 0.5f, 0.0f), 1.0f);
  if (ACTIVATION == SILU) y = y * reciprocal(1.0f + power_of_two(y * -1.4426950408889634f));
  if (ACTIVATION != BOUNDED) return EIGHT_OUT ? y * number_of(OUT_INVERSE_BITS) : y;
  const float steps = EIGHT_OUT ? number_of(OUT_INVERSE_BITS) : 1.0f;
  if (LOW_BITS != NO_LOW) y = greater(y, number_of(LOW_BITS) * steps);
  if (HIGH_BITS != NO_HIGH) y = smaller(y, number_of(HIGH_BITS) * steps);
  return y;
}

// Of the finished numbers of a pixel, to where its channels lie.
#if EIGHT_OUT
using Out = unsigned char;
__device__ __forceinline__ void store(Out* to, const float (&y)[VECTOR]) {
#if EIGHT_IN
  *reinterpret_cast<unsigned int*>(to) = packed_int8(y[0], y[1], y[2], y[3]);
#else
  *reinterpret_cast<unsigned short*>(to) = static_cast<unsigned short>(packed_int8(y[0], y[1], 0.0f, 0.0f));
#endif
}
#else
using Out = unsigned short;
__device__ __forceinline__ void store(Out* to, const float (&y)[VECTOR]) {
#if EIGHT_IN
  *reinterpret_cast<Pair*>(to) = Pair{narrow(y[0], y[1]), narrow(y[2], y[3])};
#else
  *reinterpret_cast<unsigned int*>(to) = narrow(y[0], y[1]);
#endif
}
#endif

// The part of a row that a strip looks at; zeros outside of the picture. Where a strip may reach over an edge is known.
__device__ __forceinline__ void load_row(const unsigned int* from, bool there, int left, unsigned int (&to)[REACH]) {
  constexpr int LAST = (STRIPS - 1) * COLUMNS * STRIDE_WIDE - PAD_LEFT;  // of all strips' lefts
#pragma unroll
  for (int j = 0; j < REACH; ++j) {
    const bool inside = there && (j >= PAD_LEFT || left + j >= 0) && (LAST + j < WIDTH || left + j < WIDTH);
    to[j] = inside ? from[j * (X_PITCH / VECTOR)] : 0u;
  }
}

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
#pragma unroll
  for (int channel = 0; channel < VECTOR; ++channel) {
    factor[channel] = 1.0f, offset[channel] = 0.0f;
#if EIGHT_IN
    factor[channel] = factors[vector * VECTOR + channel] * number_of(X_SCALE_BITS);
#endif
#if HAS_BIAS
    offset[channel] = bias[vector * VECTOR + channel];
#endif
    if (EIGHT_OUT && ACTIVATION == BOUNDED) {
      factor[channel] *= number_of(OUT_INVERSE_BITS), offset[channel] *= number_of(OUT_INVERSE_BITS);
    }
  }

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
  Number kept[KEPT][COLUMNS][LANES];
#pragma unroll
  for (int k = 0; k < KEPT; ++k) {
#pragma unroll
    for (int column = 0; column < COLUMNS; ++column) kept[k][column][0] = 0, kept[k][column][1] = 0;
  }
#if HAS_SUMS
  float total[VECTOR] = {};
#endif

#pragma unroll 1
  for (int p = first - KEPT + 1; p < last; ++p) {  // the row that is whole after this
#pragma unroll
    for (int k = KEPT - 1; k >= 0; --k) {
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
          kept[k][column][lane] = k > 0 ? kept[k > 0 ? k - 1 : 0][column][lane] : Number(0);
        }
      }
    }
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
      if (row >= 0 && row < end) {
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
          const int r = t + STRIDE_HIGH * k;
          if (r < TAPS_HIGH) {
#pragma unroll
            for (int s = 0; s < TAPS_WIDE; ++s) {
#pragma unroll
              for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) {
                  kept[k][column][lane] = times_plus(pixels[column * STRIDE_WIDE + s][lane],
                                                     filters[r * TAPS_WIDE + s][lane], kept[k][column][lane]);
                }
              }
            }
          }
        }
      }
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
