// A 1 x 1 convolution of INT8 and the depthwise one behind it in one kernel, by the units that multiply matrices: a tap's
// weights are a diagonal matrix, of which most is zeros, and what is between is never written.
//
// A warp has sixteen channels of the wide map, two neighbouring results of each of eight strips, and walks down ROWS of
// them. Of the narrow map's pixels that strips look at sixteen are multiplied by the filters of eight channels; what lane
// 4 g + t gets of the sums are channels 4 t to 4 t + 3 of pixels that strip g looks at, which is just what it has to hold
// of the operands of taps: the first two channels in one product of eight, the last two in another. Strips are counted
// through all images, so that none is idle where a row is no multiple of sixteen.
//
// The wide map's INT8 is FP16, which holds it exactly; sums are FP32.
//
// Given by whoever compiles: what depthwise.cu is given, where COLUMNS is 2, there are no sums beside the result, and
//   WARPS     of a block, which share the channels; THREADS is 32 times that
//   RESIDENT  blocks that share a multiprocessor
//   NARROW    channels of the narrow map, a multiple of 8, whose pixels are X_PITCH apart
//   HAS_INNER_BIAS INNER_LOW_BITS    of the first layer
//   INNER_INVERSE_BITS               how many steps of the wide map one is
//   INNER_LOW_PAIR INNER_HIGH_PAIR OUT_LOW_PAIR OUT_HIGH_PAIR   bounds, as FP16, twice, in steps, and 1536 more
// CHANNELS is a multiple of 16.
#include "primitives.cuh"

#include "walk.cuh"

constexpr int PAIRS = (OUT_WIDTH + 1) / 2, CHUNKS = CHANNELS / 16;
constexpr unsigned int STRIPS = IMAGES * PAIRS;
constexpr int GAP = STRIDE_WIDE == 1 ? 2 : 1;  // from one tap to the other of a product: operands are neighbours then
constexpr int LAST_LEFT = (PAIRS - 1) * 2 * STRIDE_WIDE - PAD_LEFT;  // of all strips' lefts

constexpr float AMID_HALVES = 1536.0f;  // where FP16's steps are ones
constexpr bool BOUNDS_ALONE = ACTIVATION == BOUNDED;  // results are rounded and bounded two at a time

static_assert(CHANNELS % 16 == 0 && CHUNKS % WARPS == 0 && COLUMNS == 2, "how it is shared");
static_assert(NARROW % 8 == 0 && X_PITCH % 4 == 0 && OUT_PITCH % 4 == 0, "how it is shared");

// Whether some strip's pixel `j` may be none: of the others nobody asks.
__device__ constexpr bool may_be_outside(int j) { return j < PAD_LEFT || LAST_LEFT + j >= WIDTH; }

using Element = signed char;

// Four lanes have sixteen channels of a pixel, as many times as it takes; the last time perhaps eight, in two of them.
constexpr int PIECES = (NARROW + 15) / 16;
constexpr float MAGIC = 12582912.0f;
constexpr int MAGIC_BITS = 0x4b400000;

// What a lane has of a pixel.
struct Word {
  unsigned int part[PIECES];
};

// `odd`: from where the last part would be to where it is.
__device__ __forceinline__ Word word_at(const Element* from, int odd) {
  Word found;
#pragma unroll
  for (int part = 0; part < PIECES; ++part) {
    found.part[part] = *reinterpret_cast<const unsigned int*>(from + part * 16 + (part == PIECES - 1 ? odd : 0));
  }
  return found;
}

struct Inner {
  Word filters[2];  // of a lane's column of each group
  float factor[2][2], offset[2][2];
};

// Two channels as they would have been read.
__device__ __forceinline__ unsigned int kept(int one, int other, const Inner& inner, int group) {
  const float low = number_of(static_cast<unsigned int>(one)) * inner.factor[group][0] + inner.offset[group][0];
  const float high = number_of(static_cast<unsigned int>(other)) * inner.factor[group][1] + inner.offset[group][1];
  const unsigned int both = smaller_of_halves(halves_of_numbers(low, high), INNER_HIGH_PAIR);  // whole ones now
  if (INNER_LOW_BITS == 0) return halves_add_bounded(both, 0xe600e600u);
  return halves_add(greater_of_halves(both, INNER_LOW_PAIR), 0xe600e600u);
}

__device__ __forceinline__ void pixels_of(const Word (&words)[REACH], const Inner& inner, unsigned int inside,
                                          unsigned int (&to)[REACH][2]) {
#pragma unroll
  for (int j = 0; j < REACH; j += 2) {
    const int n = j + 1 < REACH ? j + 1 : j;
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      int sums[4] = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
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

// A lane's number of the diagonal: it has one where its column is one of its two rows.
__device__ __forceinline__ unsigned int diagonal(const unsigned short* w, int tap, int first, int lane) {
  const int column = lane / 4;
  if (column / 2 != lane % 4) return 0u;
  const unsigned int weight = w[tap * CHANNELS + first + column / 2 * 4 + column % 2];
  return weight << 16 * (column % 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) expand_diagonal(
    const Element* x, const Element* first_weights, const float* inner_scale,
#if HAS_INNER_BIAS
    const float* inner_bias,
#endif
    const unsigned short* w, const float* factors,
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
  float factor[4], offset[4];
#if HAS_BIAS
#define BIAS bias
#else
#define BIAS nullptr
#endif
  scales_of(factor, offset, factors, BIAS, channel / 4);
#pragma unroll
  for (int each = 0; each < 4; ++each) offset[each] += BOUNDS_ALONE ? AMID_HALVES : 0.0f;
  Inner inner;
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    const int column = chunk * 16 + static_cast<int>(lane) / 8 * 4 + 2 * group + static_cast<int>(lane) / 4 % 2;
#pragma unroll
    for (int part = 0; part < PIECES; ++part) {
      const int at = part * 16 + static_cast<int>(lane) % 4 * 4;  // bytes
      const unsigned int* from = reinterpret_cast<const unsigned int*>(first_weights + column * NARROW) + at / 4;
      inner.filters[group].part[part] = at < NARROW ? *from : 0u;
    }
#pragma unroll
    for (int each = 0; each < 2; ++each) {
      const float worth = inner_scale[channel + 2 * group + each] * number_of(INNER_INVERSE_BITS);
      float more = 0.0f;
#if HAS_INNER_BIAS
      more = inner_bias[channel + 2 * group + each] * number_of(INNER_INVERSE_BITS);
#endif
      inner.factor[group][each] = worth;
      inner.offset[group][each] = more - MAGIC * worth + AMID_HALVES;
    }
  }

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
  begin_of_rows += lane % 4 * 4;
  if (NARROW % 16 != 0) odd = static_cast<int>(lane % 2) * 4 - static_cast<int>(lane % 4) * 4;

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
        if (there) pixels_of(ahead[0], inner, inside, pixels);
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
            float y[4];
#pragma unroll
            for (int at = 0; at < 4; ++at) {
              const float sum = sums[u][at / 2][2 * each + at % 2];
              y[at] = BOUNDS_ALONE ? sum * factor[at] + offset[at] : finished(sum, factor[at], offset[at]);
            }
            if (BOUNDS_ALONE) {
              unsigned int pairs[2];
#pragma unroll
              for (int pair = 0; pair < 2; ++pair) {
                const unsigned int whole = halves_of_numbers(y[2 * pair], y[2 * pair + 1]);
                pairs[pair] = greater_of_halves(smaller_of_halves(whole, OUT_HIGH_PAIR), OUT_LOW_PAIR);
              }
              // The last byte of 1536 and a number is the number.
              *reinterpret_cast<unsigned int*>(to + each * OUT_PITCH) = permuted(pairs[0], pairs[1], 0x6420u);
            } else {
              store(to + each * OUT_PITCH, y);
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
