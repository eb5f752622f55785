// A depthwise convolution over NHWC by the units that multiply matrices: a tap's weights are a diagonal matrix, of which
// seven eighths are zeros, and still they multiply as much as all other units do, while those convert and store.
//
// A warp has sixteen channels, two neighbouring results of each of eight strips, and walks down ROWS of them. Lane 4 g + t
// reads channels 4 t to 4 t + 3 of the pixels that strip g looks at, once for all results that they belong to; they are
// two operands, for of those four channels the first two are in one product of eight channels, the last two in another.
// The sums of a lane are the same channels of the same strip. Strips are counted through all images, so that none is idle
// where a row is no multiple of sixteen.
//
// INT8 is widened to FP16, which holds it exactly; sums are FP32.
//
// Given by whoever compiles: what depthwise.cu is given, where COLUMNS is 2, there are no sums beside the result, and
//   WARPS   of a block; THREADS is 32 times that
// CHANNELS is a multiple of 16.
#include "primitives.cuh"

#include "walk.cuh"

constexpr int WORDS = 4 / VECTOR;  // of four channels
constexpr int PAIRS = (OUT_WIDTH + 1) / 2, CHUNKS = CHANNELS / 16;
constexpr unsigned int STRIPS = IMAGES * PAIRS;

static_assert(CHANNELS % 16 == 0 && COLUMNS == 2 && X_PITCH % 4 == 0 && OUT_PITCH % 4 == 0, "how it is shared");

struct Word {
  unsigned int part[WORDS];
};

__device__ __forceinline__ Word word_at(const unsigned int* from, bool there) {
  Word found = {};
  if (there) {
#if EIGHT_IN
    found.part[0] = *from;
#else
    const Pair both = *reinterpret_cast<const Pair*>(from);
    found.part[0] = both.x, found.part[1] = both.y;
#endif
  }
  return found;
}

// The first two channels, and the last two.
__device__ __forceinline__ void halves_of(const Word& word, unsigned int (&to)[2]) {
#if EIGHT_IN
  spread(word.part[0], to);
#else
  to[0] = word.part[0], to[1] = word.part[1];
#endif
}

// A lane's number of the diagonal: it has one where its column is one of its two rows.
__device__ __forceinline__ unsigned int diagonal(const unsigned short* w, int tap, int first, int lane) {
  const int column = lane / 4;
  if (column / 2 != lane % 4) return 0u;
  const unsigned int weight = w[tap * CHANNELS + first + column / 2 * 4 + column % 2];
  return weight << 16 * (column % 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) depthwise_diagonal(const unsigned int* x, const unsigned short* w,
#if EIGHT_IN
                                                                            const float* factors,
#endif
#if HAS_BIAS
                                                                            const float* bias,
#endif
                                                                            Out* out) {
  const unsigned int lane = thread_index() % 32;
  const unsigned int number = (BLOCKS - 1 - block_index()) * WARPS + thread_index() / 32;
  const int chunk = number % CHUNKS, walk = number / CHUNKS % WALKS;
  const unsigned int strip = number / (CHUNKS * WALKS) * 8 + lane / 4;
  if (number / (CHUNKS * WALKS) * 8 >= STRIPS) return;  // a whole warp

  unsigned int filters[TAPS][2];
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) {
#pragma unroll
    for (int group = 0; group < 2; ++group) filters[tap][group] = diagonal(w, tap, chunk * 16 + 2 * group, lane);
  }
  const int channel = chunk * 16 + lane % 4 * 4;
  float factor[WORDS][VECTOR], offset[WORDS][VECTOR];
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
#pragma unroll
  for (int part = 0; part < WORDS; ++part) scales_of(factor[part], offset[part], FACTORS, BIAS, channel / VECTOR + part);

  const bool alive = strip < STRIPS;
  const int image = alive ? strip / PAIRS : 0, column = strip % PAIRS * 2;
  const int first = walk * ROWS, last = first + ROWS < OUT_HEIGHT ? first + ROWS : OUT_HEIGHT;
  const int left = column * STRIDE_WIDE - PAD_LEFT;
  const int reach = (last - 1) * STRIDE_HIGH - PAD_TOP + TAPS_HIGH, end = reach < HEIGHT ? reach : HEIGHT;
  int row = first * STRIDE_HIGH - PAD_TOP;
  const unsigned int* from =
      x + ((image * HEIGHT + row) * WIDTH + left) * static_cast<long long>(X_PITCH / VECTOR) + channel / VECTOR;
  Out* to = out + ((image * OUT_HEIGHT + first) * OUT_WIDTH + column) * static_cast<long long>(OUT_PITCH) + channel;
  unsigned int inside = 0;  // which of the pixels of a row are
#pragma unroll
  for (int j = 0; j < REACH; ++j) inside |= (alive && left + j >= 0 && left + j < WIDTH ? 1u : 0u) << j;

  wait_for_kernel_ahead();
  let_kernel_behind_start();

  Word ahead[AHEAD][REACH];
#pragma unroll
  for (int each = 0; each < AHEAD; ++each) {
#pragma unroll
    for (int j = 0; j < REACH; ++j) {
      const bool there = row + each >= 0 && row + each < end && (inside >> j & 1);
      ahead[each][j] = word_at(from + j * (X_PITCH / VECTOR), there);
    }
    from += WIDTH * (X_PITCH / VECTOR);
  }

  float sums[KEPT][2][4] = {};  // of result row r in place r % KEPT, counted from the first of all
#pragma unroll 1
  for (int begin = first - KEPT + 1; begin < last; begin += KEPT) {
#pragma unroll
    for (int u = 0; u < KEPT; ++u) {
      const int p = begin + u;  // the row that is whole after this
      if (p >= last) break;
#pragma unroll
      for (int t = 0; t < STRIDE_HIGH; ++t) {
        unsigned int pixels[REACH][2];
#pragma unroll
        for (int j = 0; j < REACH; ++j) halves_of(ahead[0][j], pixels[j]);
#pragma unroll
        for (int each = 0; each < AHEAD - 1; ++each) {
#pragma unroll
          for (int j = 0; j < REACH; ++j) ahead[each][j] = ahead[each + 1][j];
        }
        const bool more = row + AHEAD >= 0 && row + AHEAD < end;
#pragma unroll
        for (int j = 0; j < REACH; ++j) {
          ahead[AHEAD - 1][j] = word_at(from + j * (X_PITCH / VECTOR), more && (inside >> j & 1));
        }
        from += WIDTH * (X_PITCH / VECTOR);
        if (row >= 0 && row < end) {
#pragma unroll
          for (int k = 0; k < KEPT; ++k) {  // result row p + k
            const int r = t + STRIDE_HIGH * (KEPT - 1 - k);
            if (r < TAPS_HIGH && p + k >= first && p + k < last) {
#pragma unroll
              for (int s = 0; s < TAPS_WIDE; s += 2) {
#pragma unroll
                for (int group = 0; group < 2; ++group) {
                  const unsigned int one = pixels[s][group], other = pixels[STRIDE_WIDE + s][group];
                  const unsigned int weight = filters[r * TAPS_WIDE + s][group];
                  if (s + 1 < TAPS_WIDE) {
                    const int n = s + 1 < TAPS_WIDE ? s + 1 : s;
                    multiply_add(sums[(u + k) % KEPT][group],
                                 Quad{one, other, pixels[n][group], pixels[STRIDE_WIDE + n][group]}, weight,
                                 filters[r * TAPS_WIDE + n][group]);
                  } else {
                    multiply_add_half(sums[(u + k) % KEPT][group], one, other, weight);
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
        for (int each = 0; each < 2; ++each) {
          if (alive && (OUT_WIDTH % 2 == 0 || column + each < OUT_WIDTH)) {
#pragma unroll
            for (int part = 0; part < WORDS; ++part) {
              float y[VECTOR];
#pragma unroll
              for (int at = 0; at < VECTOR; ++at) {
                const int which = part * VECTOR + at;  // of four
                y[at] = finished(sums[u][which / 2][2 * each + which % 2], factor[part][at], offset[part][at]);
              }
              store(to + each * OUT_PITCH + part * VECTOR, y);
            }
          }
        }
        to += OUT_WIDTH * OUT_PITCH;
      }
#pragma unroll
      for (int group = 0; group < 2; ++group) {
#pragma unroll
        for (int each = 0; each < 4; ++each) sums[u][group][each] = 0.0f;
      }
    }
  }
}
