// A 1 x 1 convolution and the depthwise one behind it, in one kernel: a row of the wide map lies in shared memory for as
// long as threads that walk down the rows (walk.cuh) add it to their results, and is never written.
//
// A block has CHUNK of the wide map's channels and BAND columns of results, and goes down ROWS of them. Its warps multiply
// the pixels of a row, sixteen at a time, by the filters of the first layer, which are in shared memory in the order that
// the units want; what they read of the next row is under way meanwhile. Two rows take turns.
//
// Given by whoever compiles, beside what depthwise.cu tells of the second layer:
//   NARROW            channels of the narrow map, a multiple of 8, whose pixels are X_PITCH apart
//   CHUNK BAND        as above; CHUNK a multiple of 16 that CHANNELS is one of, BAND one of COLUMNS
//   PARTS             in how many parts warps share the channels of sixteen pixels
//   HAS_INNER_BIAS INNER_LOW_BITS INNER_HIGH_BITS INNER_LOW_PAIR INNER_HIGH_PAIR   of the first layer
//   INNER_HIGH_MATTERS INNER_INVERSE_BITS   as of the second layer; how many steps of the wide map one is, where it is INT8
#include "primitives.cuh"
#include "walk.cuh"

constexpr int STRIPS = BAND / COLUMNS;
constexpr int BANDS = (OUT_WIDTH + BAND - 1) / BAND;
constexpr int CHUNKS = CHANNELS / CHUNK;
constexpr int WORDS = CHUNK / VECTOR;                                  // of a pixel
constexpr int WALKERS = WORDS * STRIPS;
constexpr int WARPS = THREADS / 32;
constexpr int PIXELS = (BAND - 1) * STRIDE_WIDE + TAPS_WIDE;           // of a row that a block looks at
constexpr int HIGH = (PIXELS + 15) / 16;                               // times sixteen
constexpr int TILES = CHUNK / 8, PAIRS = TILES / 2 / PARTS;            // of columns: all, and pairs of them in a part
constexpr int UNITS = HIGH * PARTS, MINE = (UNITS + WARPS - 1) / WARPS;  // of work: all, and those of a warp
constexpr int STEPS = (NARROW + 31) / 32;
// Words from one pixel to the next: what is written at once, four or eight words of a pixel, is in different banks.
constexpr int WRITTEN = 16 / VECTOR;
constexpr int APART = WORDS % (2 * WRITTEN) == WRITTEN ? WORDS : WORDS + WRITTEN;
constexpr float MAGIC = 12582912.0f;
constexpr int MAGIC_BITS = 0x4b400000;

static_assert(CHUNK % 16 == 0 && CHANNELS % CHUNK == 0 && BAND % COLUMNS == 0, "how it is cut");
static_assert(TILES % (2 * PARTS) == 0 && WALKERS <= THREADS && NARROW % 8 == 0 && X_PITCH % 8 == 0, "how it is shared");

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

// Where what lies in shared memory, in bytes.
constexpr int ROW_BYTES = HIGH * 16 * APART * 4;
constexpr int FILTERS_AT = (2 * ROW_BYTES + 15) / 16 * 16, FILTER_BYTES = TILES * STEPS * 32 * static_cast<int>(sizeof(Piece));
constexpr int INNER_AT = FILTERS_AT + FILTER_BYTES;  // CHUNK factors and CHUNK offsets

__device__ __forceinline__ Piece piece_of(const Element* row, int step, bool there) {
  const int at = step * 32 + static_cast<int>(thread_index() % 4) * 8;
  Piece found = {};
  if (there && (NARROW % 32 == 0 || at < NARROW)) found = *reinterpret_cast<const Piece*>(row + at);
  return found;
}

// Of a unit's sixteen pixels, those of this lane. Columns outside of the picture are read as zeros.
__device__ __forceinline__ void load_unit(Piece (&to)[STEPS][2], const Element* row, int unit, int left, bool there) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = left + unit / PARTS * 16 + 8 * half + static_cast<int>(thread_index() % 32 / 4);
    const bool inside = there && column >= 0 && column < WIDTH;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      to[step][half] = piece_of(row + static_cast<long long>(column) * X_PITCH, step, inside);
    }
  }
}

// Four channels of a pixel into a row of shared memory: zeros where the pixel is none.
__device__ __forceinline__ void keep(unsigned int* to, const float (&y)[4], bool inside) {
#if EIGHT_IN
  const float steps = number_of(INNER_INVERSE_BITS);
  float bounded[4];
#pragma unroll
  for (int each = 0; each < 4; ++each) {
    bounded[each] = y[each];
    if (INNER_LOW_BITS != NO_LOW) bounded[each] = greater(bounded[each], number_of(INNER_LOW_BITS) * steps);
    if (INNER_HIGH_BITS != NO_HIGH && INNER_HIGH_MATTERS) bounded[each] = smaller(bounded[each], number_of(INNER_HIGH_BITS) * steps);
  }
  const unsigned int all = packed_int8(bounded[0], bounded[1], bounded[2], bounded[3]);
  *to = inside ? all : 0u;
#else
  Pair both{narrow(y[0], y[1]), narrow(y[2], y[3])};
  if (INNER_LOW_BITS != NO_LOW) both = Pair{greater_of_both(both.x, INNER_LOW_PAIR), greater_of_both(both.y, INNER_LOW_PAIR)};
  if (INNER_HIGH_BITS != NO_HIGH) {
    both = Pair{smaller_of_both(both.x, INNER_HIGH_PAIR), smaller_of_both(both.y, INNER_HIGH_PAIR)};
  }
  *reinterpret_cast<Pair*>(to) = inside ? both : Pair{0u, 0u};
#endif
}

__device__ __forceinline__ void expand_unit(unsigned int* row, const Piece (&x)[STEPS][2], const Piece* filters,
                                            const float* inner, int unit, int left) {
  const int lane = thread_index() % 32;
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    const int first = (unit % PARTS * PAIRS + pair) * 16;  // of its channels
    const Floats given = *reinterpret_cast<const Floats*>(inner + CHUNK + first + lane % 4 * 4);
    const float offset[4] = {given.x, given.y, given.z, given.w};
    Sum sums[2][4];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int each = 0; each < 4; ++each) {
#if EIGHT_IN
        sums[tile][each] = MAGIC_BITS;
#else
        sums[tile][each] = offset[2 * tile + each % 2];
#endif
      }
    }
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        multiply(sums[tile], x[step][0], x[step][1], filters[((first / 8 + tile) * STEPS + step) * 32 + lane]);
      }
    }
#if EIGHT_IN
    const Floats scale = *reinterpret_cast<const Floats*>(inner + first + lane % 4 * 4);
    const float factor[4] = {scale.x, scale.y, scale.z, scale.w};
#endif
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = unit / PARTS * 16 + 8 * half + lane / 4, column = left + pixel;
      float y[4];
#pragma unroll
      for (int each = 0; each < 4; ++each) {
        const Sum sum = sums[each / 2][2 * half + each % 2];
#if EIGHT_IN
        y[each] = number_of(static_cast<unsigned int>(sum)) * factor[each] + offset[each];
#else
        y[each] = sum;
#endif
      }
      keep(row + pixel * APART + (first + lane % 4 * 4) / VECTOR, y, column >= 0 && column < WIDTH);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) expand_walk(const Element* x, const Element* first_weights,
#if EIGHT_IN
                                                                     const float* inner_scale,
#endif
#if HAS_INNER_BIAS
                                                                     const float* inner_bias,
#endif
                                                                     const unsigned int* w,
#if EIGHT_IN
                                                                     const float* factors,
#endif
#if HAS_BIAS
                                                                     const float* bias,
#endif
                                                                     Out* out) {
  extern __shared__ Quad memory[];
  // Without strides the result is the larger map: they end with the first image, with which the kernel behind begins.
  // With strides they begin with it, for a walk ahead ended there.
  const unsigned int number = STRIDE_HIGH * STRIDE_WIDE > 1 ? block_index() : BLOCKS - 1 - block_index();
  const int chunk = number % CHUNKS, band = number / CHUNKS % BANDS;
  const int walk = number / (CHUNKS * BANDS) % WALKS, image = number / (CHUNKS * BANDS * WALKS);
  const int thread = thread_index(), warp = thread / 32, lane = thread % 32;
  unsigned int* rows = reinterpret_cast<unsigned int*>(memory);
  Piece* kept_filters = reinterpret_cast<Piece*>(reinterpret_cast<char*>(memory) + FILTERS_AT);
  float* inner = reinterpret_cast<float*>(reinterpret_cast<char*>(memory) + INNER_AT);

  for (int each = warp; each < TILES * STEPS; each += WARPS) {
    // Of two tiles each lane's results are four channels in a row.
    const int tile = each / STEPS, row = lane / 4;
    const int channel = chunk * CHUNK + tile / 2 * 16 + row / 2 * 4 + tile % 2 * 2 + row % 2;
    kept_filters[each * 32 + lane] = piece_of(first_weights + channel * NARROW, each % STEPS, true);
  }
  for (int each = thread; each < CHUNK; each += THREADS) {
    float factor = 1.0f, offset = 0.0f;
#if EIGHT_IN
    factor = inner_scale[chunk * CHUNK + each] * number_of(INNER_INVERSE_BITS);
#endif
#if HAS_INNER_BIAS
    offset = inner_bias[chunk * CHUNK + each] * (EIGHT_IN ? number_of(INNER_INVERSE_BITS) : 1.0f);
#endif
    inner[each] = factor, inner[CHUNK + each] = EIGHT_IN ? offset - MAGIC * factor : offset;
  }

  const bool walks = WALKERS % 32 == 0 ? thread < WALKERS || WALKERS == THREADS : thread < WALKERS;
  const int word = walks ? thread % WORDS : 0, strip = walks ? thread / WORDS : 0;
  const unsigned int vector = chunk * WORDS + word;
  Number filters[TAPS][LANES];
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) load_filter(w, tap, vector, filters[tap]);
  float factor[VECTOR], offset[VECTOR];
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
  scales_of(factor, offset, FACTORS, BIAS, vector);

  const int first = walk * ROWS;
  const int last = first + ROWS < OUT_HEIGHT ? first + ROWS : OUT_HEIGHT;
  const int left = band * BAND * STRIDE_WIDE - PAD_LEFT;
  const int reach = (last - 1) * STRIDE_HIGH - PAD_TOP + TAPS_HIGH, end = reach < HEIGHT ? reach : HEIGHT;
  int row = first * STRIDE_HIGH - PAD_TOP;
  const int column = band * BAND + strip * COLUMNS;
  Out* to = out + ((image * OUT_HEIGHT + first) * OUT_WIDTH + column) * static_cast<long long>(OUT_PITCH) + vector * VECTOR;
  const Element* from = x + (image * HEIGHT + row) * static_cast<long long>(WIDTH * X_PITCH);

  wait_for_kernel_ahead();
  let_kernel_behind_start();

  Piece next[MINE][STEPS][2];
#pragma unroll
  for (int each = 0; each < MINE; ++each) {
    load_unit(next[each], from, warp + each * WARPS, left, warp + each * WARPS < UNITS && row >= 0 && row < end);
  }
  block_sync();
  // The first row, and what is read for the second.
  int slot = 0;
#pragma unroll
  for (int each = 0; each < MINE; ++each) {
    const int unit = warp + each * WARPS;
    if (UNITS % WARPS == 0 || unit < UNITS) expand_unit(rows, next[each], kept_filters, inner, unit, left);
    from += each == 0 ? WIDTH * X_PITCH : 0;
    load_unit(next[each], from, unit, left, unit < UNITS && row + 1 >= 0 && row + 1 < end);
  }
  block_sync();

  Kept kept = {};
#pragma unroll 1
  for (int p = first - KEPT + 1; p < last; ++p) {  // the row that is whole after this
    shift(kept);
#pragma unroll
    for (int t = 0; t < STRIDE_HIGH; ++t) {
      if (row + 1 >= 0 && row + 1 < end) {
#pragma unroll
        for (int each = 0; each < MINE; ++each) {
          const int unit = warp + each * WARPS;
          if (UNITS % WARPS == 0 || unit < UNITS) {
            expand_unit(rows + (slot ^ 1) * (ROW_BYTES / 4), next[each], kept_filters, inner, unit, left);
          }
        }
      }
      from += WIDTH * X_PITCH;
#pragma unroll
      for (int each = 0; each < MINE; ++each) {
        const int unit = warp + each * WARPS;
        load_unit(next[each], from, unit, left, unit < UNITS && row + 2 >= 0 && row + 2 < end);
      }
      if (row >= 0 && row < end) {
        Number pixels[REACH][LANES];
        const unsigned int* seen = rows + slot * (ROW_BYTES / 4) + strip * COLUMNS * STRIDE_WIDE * APART + word;
#pragma unroll
        for (int j = 0; j < REACH; ++j) spread(seen[j * APART], pixels[j]);
        add_row(kept, pixels, filters, t);
      }
      block_sync();
      slot ^= 1, ++row;
    }
    if (p >= first) {
#pragma unroll
      for (int each = 0; each < COLUMNS; ++each) {
        if (walks && (OUT_WIDTH % BAND == 0 || column + each < OUT_WIDTH)) {
          float y[VECTOR];
#pragma unroll
          for (int channel = 0; channel < VECTOR; ++channel) {
            y[channel] = finished(sum_of(kept[KEPT - 1][each], channel), factor[channel], offset[channel]);
          }
          store(to + each * OUT_PITCH, y);
        }
      }
      to += OUT_WIDTH * OUT_PITCH;
    }
  }
}
