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
//   OUT_LOW_PAIR OUT_HIGH_PAIR   bounds of an INT8 result
// CHANNELS is a multiple of 16. INT8 has its bounds, and INT8 of the wide map in INNER_LOW_PAIR and INNER_HIGH_PAIR, as
// FP16, twice, in its steps, and 1536 more.
#include "primitives.cuh"

#include "walk.cuh"

constexpr int WORDS = 4 / VECTOR;  // of four channels
constexpr int PAIRS = (OUT_WIDTH + 1) / 2, CHUNKS = CHANNELS / 16;
constexpr unsigned int STRIPS = IMAGES * PAIRS;
constexpr int GAP = STRIDE_WIDE == 1 ? 2 : 1;  // from one tap to the other of a product: operands are neighbours then
constexpr int LAST_LEFT = (PAIRS - 1) * 2 * STRIDE_WIDE - PAD_LEFT;  // of all strips' lefts

constexpr float AMID_HALVES = 1536.0f;  // where FP16's steps are ones
// Whether results are rounded and bounded two at a time.
#define IN_HALVES (EIGHT_IN && EIGHT_OUT && ACTIVATION == 0)

static_assert(CHANNELS % 16 == 0 && CHUNKS % WARPS == 0 && COLUMNS == 2, "how it is shared");
static_assert(NARROW % 8 == 0 && X_PITCH % 4 == 0 && OUT_PITCH % 4 == 0, "how it is shared");

// Whether some strip's pixel `j` may be none: of the others nobody asks.
__device__ constexpr bool may_be_outside(int j) { return j < PAD_LEFT || LAST_LEFT + j >= WIDTH; }

#if EIGHT_IN
using Element = signed char;
using Sum = int;
#else
using Element = unsigned short;
using Sum = float;
#endif

#if NARROW
// Four lanes have sixteen bytes of a pixel, as many times as it takes; the last time perhaps eight, in two of them.
constexpr int NARROW_BYTES = NARROW * static_cast<int>(sizeof(Element)), PIECES = (NARROW_BYTES + 15) / 16;
constexpr int PIECE = 16 / static_cast<int>(sizeof(Element));  // numbers
constexpr float MAGIC = 12582912.0f;
constexpr int MAGIC_BITS = 0x4b400000;
#else
constexpr int PIECES = WORDS, PIECE = VECTOR;
#endif

// What a lane has of a pixel.
struct Word {
  unsigned int part[PIECES];
};

// `odd`: from where the last part would be to where it is.
__device__ __forceinline__ Word word_at(const Element* from, int odd) {
  Word found;
#if NARROW || EIGHT_IN
#pragma unroll
  for (int part = 0; part < PIECES; ++part) {
    found.part[part] = *reinterpret_cast<const unsigned int*>(from + part * PIECE + (part == PIECES - 1 ? odd : 0));
  }
#else
  const Pair both = *reinterpret_cast<const Pair*>(from);
  found.part[0] = both.x, found.part[1] = both.y;
#endif
  return found;
}

#if NARROW
struct Inner {
  Word filters[2];  // of a lane's column of each group
  float factor[2][2], offset[2][2];
};

// Two channels as they would have been read.
__device__ __forceinline__ unsigned int kept(Sum one, Sum other, const Inner& inner, int group) {
#if EIGHT_IN
  const float low = number_of(static_cast<unsigned int>(one)) * inner.factor[group][0] + inner.offset[group][0];
  const float high = number_of(static_cast<unsigned int>(other)) * inner.factor[group][1] + inner.offset[group][1];
  const unsigned int both = smaller_of_halves(halves_of_numbers(low, high), INNER_HIGH_PAIR);  // whole ones now
  if (INNER_LOW_BITS == 0) return halves_add_bounded(both, 0xe600e600u);
  return halves_add(greater_of_halves(both, INNER_LOW_PAIR), 0xe600e600u);
#else
  unsigned int both = narrow(one, other);
  if (INNER_LOW_BITS != NO_LOW) both = greater_of_both(both, INNER_LOW_PAIR);
  if (INNER_HIGH_BITS != NO_HIGH) both = smaller_of_both(both, INNER_HIGH_PAIR);
  return both;
#endif
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
      for (int part = 0; part < PIECES; part += 2) {
        const Word& filters = inner.filters[group];
        if (part + 1 < PIECES) {
          const int more = part + 1 < PIECES ? part + 1 : part;
          multiply_add(sums, Quad{words[j].part[part], words[n].part[part], words[j].part[more], words[n].part[more]},
                       filters.part[part], filters.part[more]);
        } else {
          multiply_add_half(sums, words[j].part[part], words[n].part[part], filters.part[part]);
        }
      }
      to[j][group] = kept(sums[0], sums[1], inner, group);
      if (n != j) to[n][group] = kept(sums[2], sums[3], inner, group);
      if (may_be_outside(j)) to[j][group] = inside >> j & 1 ? to[j][group] : 0u;
      if (n != j && may_be_outside(n)) to[n][group] = inside >> n & 1 ? to[n][group] : 0u;
    }
  }
}
#else
// The first two channels, and the last two.
__device__ __forceinline__ void pixels_of(const Word (&words)[REACH], unsigned int inside,
                                          unsigned int (&to)[REACH][2]) {
#pragma unroll
  for (int j = 0; j < REACH; ++j) {
    Word word = words[j];
    if (may_be_outside(j) && !(inside >> j & 1)) word = Word{};
#if EIGHT_IN
    spread(word.part[0], to[j]);
#else
    to[j][0] = word.part[0], to[j][1] = word.part[1];
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
  // What all warps of a block do at once is told by the block's number alone: their channels are not.
  const unsigned int lane = thread_index() % 32, number = BLOCKS - 1 - block_index();
  const int chunk = number % (CHUNKS / WARPS) * WARPS + thread_index() / 32;
  const int walk = number / (CHUNKS / WARPS) % WALKS;
  const unsigned int strip = number / (CHUNKS / WARPS * WALKS) * 8 + lane / 4;

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
  for (int part = 0; part < WORDS; ++part) {
    scales_of(factor[part], offset[part], FACTORS, BIAS, channel / VECTOR + part);
#pragma unroll
    for (int at = 0; at < VECTOR; ++at) offset[part][at] += IN_HALVES ? AMID_HALVES : 0.0f;
  }

#if NARROW
  Inner inner;
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    const int column = chunk * 16 + static_cast<int>(lane) / 8 * 4 + 2 * group + static_cast<int>(lane) / 4 % 2;
#pragma unroll
    for (int part = 0; part < PIECES; ++part) {
      const int at = part * 16 + static_cast<int>(lane) % 4 * 4;  // bytes
      const unsigned int* from = reinterpret_cast<const unsigned int*>(first_weights + column * NARROW) + at / 4;
      inner.filters[group].part[part] = at < NARROW_BYTES ? *from : 0u;
    }
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
  Out* to = out + ((image * OUT_HEIGHT + first) * OUT_WIDTH + column) * static_cast<long long>(OUT_PITCH) + channel;
  // Pixels that are none are read elsewhere in their row, and rows that are none elsewhere in the picture.
  const Element* begin_of_rows = x + (image * HEIGHT * WIDTH + left + PAD_LEFT) * static_cast<long long>(X_PITCH);
  int aside[REACH], odd = 0;
  unsigned int inside = 0;
#pragma unroll
  for (int j = 0; j < REACH; ++j) {
    const int seen = left + j < 0 ? 0 : left + j < WIDTH ? left + j : WIDTH - 1;
    aside[j] = (may_be_outside(j) ? seen - left - PAD_LEFT : j - PAD_LEFT) * X_PITCH;
    inside |= (seen == left + j ? 1u : 0u) << j;
  }
#if NARROW
  begin_of_rows += lane % 4 * (PIECE / 4);
  if (NARROW_BYTES % 16 != 0) odd = static_cast<int>(lane % 2) * (PIECE / 4) - static_cast<int>(lane % 4) * (PIECE / 4);
#else
  begin_of_rows += channel;
#endif

  wait_for_kernel_ahead();
  let_kernel_behind_start();

  Word ahead[AHEAD][REACH];
#define LOAD_ROW(words, wanted)                                                              \
  {                                                                                          \
    const int there = (wanted) < 0 ? 0 : (wanted) < HEIGHT ? (wanted) : HEIGHT - 1;          \
    const Element* from = begin_of_rows + there * (WIDTH * X_PITCH);                         \
    _Pragma("unroll") for (int j = 0; j < REACH; ++j) words[j] = word_at(from + aside[j], odd); \
  }
#pragma unroll
  for (int each = 0; each < AHEAD; ++each) LOAD_ROW(ahead[each], row + each);

  float sums[KEPT][2][4] = {};  // of result row r in place r % KEPT, counted from the first of all
#pragma unroll 1
  for (int begin = first - KEPT + 1; begin < last; begin += KEPT) {
#pragma unroll
    for (int u = 0; u < KEPT; ++u) {
      const int p = begin + u;  // the row that is whole after this
      if (p >= last) break;
#pragma unroll
      for (int t = 0; t < STRIDE_HIGH; ++t) {
        const bool there = row >= 0 && row < end;
        unsigned int pixels[REACH][2];
#if NARROW
        if (there) pixels_of(ahead[0], inner, inside, pixels);
#else
        pixels_of(ahead[0], inside, pixels);
#endif
#pragma unroll
        for (int each = 0; each < AHEAD - 1; ++each) {
#pragma unroll
          for (int j = 0; j < REACH; ++j) ahead[each][j] = ahead[each + 1][j];
        }
        LOAD_ROW(ahead[AHEAD - 1], row + AHEAD);
        if (there) {
          // Of rows that are not this walk's, sums are made and thrown away.
#pragma unroll
          for (int unit = 0; unit < (TAPS_WIDE + 2 * GAP - 1) / (2 * GAP) * GAP; ++unit) {
            const int s = unit / GAP * 2 * GAP + unit % GAP, n = s + GAP < TAPS_WIDE ? s + GAP : s;
#pragma unroll
            for (int k = 0; k < KEPT; ++k) {  // result row p + k
              const int r = t + STRIDE_HIGH * (KEPT - 1 - k);
              if (r < TAPS_HIGH && s < TAPS_WIDE) {
#pragma unroll
                for (int group = 0; group < 2; ++group) {
                  const unsigned int one = pixels[s][group], other = pixels[STRIDE_WIDE + s][group];
                  const unsigned int weight = filters[r * TAPS_WIDE + s][group];
                  if (n != s) {
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
                const float sum = sums[u][which / 2][2 * each + which % 2];
#if IN_HALVES
                y[at] = sum * factor[part][at] + offset[part][at];
#else
                y[at] = finished(sum, factor[part][at], offset[part][at]);
#endif
              }
#if IN_HALVES
              unsigned int pairs[2];
#pragma unroll
              for (int pair = 0; pair < 2; ++pair) {
                const unsigned int whole = smaller_of_halves(halves_of_numbers(y[2 * pair], y[2 * pair + 1]), OUT_HIGH_PAIR);
                pairs[pair] = greater_of_halves(whole, OUT_LOW_PAIR);
              }
              // The last byte of 1536 and a number is the number.
              *reinterpret_cast<unsigned int*>(to + each * OUT_PITCH) = permuted(pairs[0], pairs[1], 0x6420u);
#else
              store(to + each * OUT_PITCH + part * VECTOR, y);
#endif
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
