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
// With NARROW, a 1 x 1 convolution goes before, and its result is never written: of the narrow map's pixels that strips
// look at sixteen are multiplied by the filters of eight channels, and what a lane gets of the sums are the channels and
// the pixels that it would have read.
//
// Given by whoever compiles: what depthwise.cu is given, where COLUMNS is 2, there are no sums beside the result, and
//   WARPS     of a block; THREADS is 32 times that
//   RESIDENT  blocks that share a multiprocessor
//   NARROW    channels of the narrow map, a multiple of 8, whose pixels are X_PITCH apart; 0: there is none
//   HAS_INNER_BIAS INNER_LOW_BITS INNER_HIGH_BITS INNER_LOW_PAIR INNER_HIGH_PAIR   of the first layer, where there is one
//   INNER_INVERSE_BITS   how many steps of the wide map one is, where it is INT8
// CHANNELS is a multiple of 16. INT8 of the wide map has its bounds in INNER_LOW_PAIR and INNER_HIGH_PAIR: FP16, twice,
// in its steps, and 1536 more.
#include "primitives.cuh"

#include "walk.cuh"

constexpr int WORDS = 4 / VECTOR;  // of four channels
constexpr int PAIRS = (OUT_WIDTH + 1) / 2, CHUNKS = CHANNELS / 16;
constexpr unsigned int STRIPS = IMAGES * PAIRS;

static_assert(CHANNELS % 16 == 0 && COLUMNS == 2 && NARROW % 8 == 0 && X_PITCH % 4 == 0 && OUT_PITCH % 4 == 0, "how it is shared");

#if NARROW
#if EIGHT_IN
using Element = signed char;
using Piece = Pair;  // eight numbers
using Sum = int;
__device__ __forceinline__ void multiply(Sum (&sum)[4], const Piece& upper, const Piece& lower, const Piece& w) {
  multiply_add(sum, Quad{upper.x, lower.x, upper.y, lower.y}, w.x, w.y);
}
#else
using Element = unsigned short;
using Piece = Quad;
using Sum = float;
__device__ __forceinline__ void multiply(Sum (&sum)[4], const Piece& upper, const Piece& lower, const Piece& w) {
  multiply_add(sum, Quad{upper.x, lower.x, upper.y, lower.y}, w.x, w.y);
  multiply_add(sum, Quad{upper.z, lower.z, upper.w, lower.w}, w.z, w.w);
}
#endif
constexpr int STEPS = (NARROW + 31) / 32;
constexpr float MAGIC = 12582912.0f;
constexpr int MAGIC_BITS = 0x4b400000;
constexpr float AMID_HALVES = 1536.0f;  // where FP16's steps are ones

// Of a pixel, what a lane multiplies.
struct Word {
  Piece part[STEPS];
};

__device__ __forceinline__ Word word_at(const Element* from, bool there) {
  Word found = {};
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
    const int at = step * 32 + static_cast<int>(thread_index() % 4) * 8;
    if (there && (NARROW % 32 == 0 || at < NARROW)) found.part[step] = *reinterpret_cast<const Piece*>(from + at);
  }
  return found;
}

struct Inner {
  Word filters[2];  // of a lane's column of each group
  float factor[2][2], offset[2][2];
};

// Two channels as they would have been read, and 0 where the pixel is none.
__device__ __forceinline__ unsigned int kept(Sum one, Sum other, const Inner& inner, int group, bool inside) {
#if EIGHT_IN
  const float low = number_of(static_cast<unsigned int>(one)) * inner.factor[group][0] + inner.offset[group][0];
  const float high = number_of(static_cast<unsigned int>(other)) * inner.factor[group][1] + inner.offset[group][1];
  unsigned int both = halves_of_numbers(low, high);  // which rounds them to whole ones
  both = greater_of_halves(smaller_of_halves(both, INNER_HIGH_PAIR), INNER_LOW_PAIR);
  both = halves_add(both, 0xe600e600u);
#else
  unsigned int both = narrow(one, other);
  if (INNER_LOW_BITS != NO_LOW) both = greater_of_both(both, INNER_LOW_PAIR);
  if (INNER_HIGH_BITS != NO_HIGH) both = smaller_of_both(both, INNER_HIGH_PAIR);
#endif
  return inside ? both : 0u;
}

__device__ __forceinline__ void pixels_of(const Word (&words)[REACH], const Inner& inner, unsigned int inside,
                                          unsigned int (&to)[REACH][2]) {
#pragma unroll
  for (int j = 0; j < REACH; j += 2) {
    const int n = j + 1 < REACH ? j + 1 : j;
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      Sum sums[4];
#pragma unroll
      for (int each = 0; each < 4; ++each) {
#if EIGHT_IN
        sums[each] = MAGIC_BITS;
#else
        sums[each] = inner.offset[group][each % 2];
#endif
      }
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        multiply(sums, words[j].part[step], words[n].part[step], inner.filters[group].part[step]);
      }
      to[j][group] = kept(sums[0], sums[1], inner, group, inside >> j & 1);
      if (n != j) to[n][group] = kept(sums[2], sums[3], inner, group, inside >> n & 1);
    }
  }
}
#else
#if EIGHT_IN
using Element = signed char;
#else
using Element = unsigned short;
#endif
struct Word {
  unsigned int part[WORDS];
};

__device__ __forceinline__ Word word_at(const Element* from, bool there) {
  Word found = {};
  if (there) {
#if EIGHT_IN
    found.part[0] = *reinterpret_cast<const unsigned int*>(from);
#else
    const Pair both = *reinterpret_cast<const Pair*>(from);
    found.part[0] = both.x, found.part[1] = both.y;
#endif
  }
  return found;
}

// The first two channels, and the last two.
__device__ __forceinline__ void pixels_of(const Word (&words)[REACH], unsigned int (&to)[REACH][2]) {
#pragma unroll
  for (int j = 0; j < REACH; ++j) {
#if EIGHT_IN
    spread(words[j].part[0], to[j]);
#else
    to[j][0] = words[j].part[0], to[j][1] = words[j].part[1];
#endif
  }
}
#endif

// A lane's number of the diagonal: it has one where its column is one of its two rows.
__device__ __forceinline__ unsigned int diagonal(const unsigned short* w, int tap, int first, int lane) {
  const int column = lane / 4;
  if (column / 2 != lane % 4) return 0u;
  const unsigned int weight = w[tap * CHANNELS + first + column / 2 * 4 + column % 2];
  return weight << 16 * (column % 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) depthwise_diagonal(const Element* x,
#if NARROW
                                                                            const Element* first_weights,
#if EIGHT_IN
                                                                            const float* inner_scale,
#endif
#if HAS_INNER_BIAS
                                                                            const float* inner_bias,
#endif
#endif
                                                                            const unsigned short* w,
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

#if NARROW
  Inner inner;
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    const int column = chunk * 16 + static_cast<int>(lane) / 8 * 4 + 2 * group + static_cast<int>(lane) / 4 % 2;
    inner.filters[group] = word_at(first_weights + column * NARROW, true);
#pragma unroll
    for (int each = 0; each < 2; ++each) {
      float worth = 1.0f, more = 0.0f;
#if EIGHT_IN
      worth = inner_scale[channel + 2 * group + each] * number_of(INNER_INVERSE_BITS);
#endif
#if HAS_INNER_BIAS
      more = inner_bias[channel + 2 * group + each] * (EIGHT_IN ? number_of(INNER_INVERSE_BITS) : 1.0f);
#endif
      inner.factor[group][each] = worth;
      inner.offset[group][each] = EIGHT_IN ? more - MAGIC * worth + AMID_HALVES : more;
    }
  }
#endif

  const bool alive = strip < STRIPS;
  const int image = alive ? strip / PAIRS : 0, column = strip % PAIRS * 2;
  const int first = walk * ROWS, last = first + ROWS < OUT_HEIGHT ? first + ROWS : OUT_HEIGHT;
  const int left = column * STRIDE_WIDE - PAD_LEFT;
  const int reach = (last - 1) * STRIDE_HIGH - PAD_TOP + TAPS_HIGH, end = reach < HEIGHT ? reach : HEIGHT;
  int row = first * STRIDE_HIGH - PAD_TOP;
  const Element* from = x + ((image * HEIGHT + row) * WIDTH + left) * static_cast<long long>(X_PITCH) + (NARROW ? 0 : channel);
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
      ahead[each][j] = word_at(from + j * X_PITCH, there);
    }
    from += WIDTH * X_PITCH;
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
#if NARROW
        if (row >= 0 && row < end) pixels_of(ahead[0], inner, inside, pixels);
#else
        pixels_of(ahead[0], pixels);
#endif
#pragma unroll
        for (int each = 0; each < AHEAD - 1; ++each) {
#pragma unroll
          for (int j = 0; j < REACH; ++j) ahead[each][j] = ahead[each + 1][j];
        }
        const bool more = row + AHEAD >= 0 && row + AHEAD < end;
#pragma unroll
        for (int j = 0; j < REACH; ++j) {
          ahead[AHEAD - 1][j] = word_at(from + j * X_PITCH, more && (inside >> j & 1));
        }
        from += WIDTH * X_PITCH;
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
