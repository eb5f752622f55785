// A matrix product of a short depth, bound by what it writes: out = activation(x W^T + bias + residual), x [M, K],
// W [N, K]. Or a convolution without padding whose windows are as short: each tap's channels are a part of K.
//
// Each warp keeps its 8 TILES columns of W in registers and goes through rows, sixteen times HEIGHT at a time; what it
// reads next is under way while it multiplies. Nothing is shared and nobody waits: a lane reads its part of a row in one
// piece, whatever place in the depth the units give it, for W lies the same way. Columns are dealt to lanes so that
// each has 2 TILES in a row to write.
//
// Given by whoever compiles:
//   SIZE_M SIZE_N SIZE_K     of the product; SIZE_N and SIZE_K multiples of 8
//   X_PITCH OUT_PITCH        numbers from one row to the next, multiples of 8 as all of these are
//   WINDOWS                  whether rows are those of pictures: then OUT_HEIGHT OUT_WIDTH IMAGE_PITCH ROW_PITCH say
//                            where they begin, in numbers from image to image and result row to row, and TAP_DEPTH
//                            TAPS_WIDE TAP_ROW_PITCH TAP_PITCH where a window's parts do; else TAP_DEPTH is SIZE_K
//   EIGHT_IN EIGHT_OUT       whether they are INT8
//   HEIGHT TILES WARPS BLOCKS   how it is cut: row tiles and column tiles of a warp, warps of a block, blocks
//   RESIDUAL_PITCH           0 where there is none; RESIDUAL_WORTH_BITS: what its steps are worth, where it is INT8, or
//                            with bounds alone how many of the result's
//   HAS_BIAS FOLDED          FOLDED: bias and scale are in the result's steps, and MAGIC is taken out already
//   ACTIVATION LOW_BITS HIGH_BITS OUT_INVERSE_BITS   as in depthwise.cu; HIGH_MATTERS: INT8 does not end below it
//   LOW_PAIR HIGH_PAIR       the bounds in sixteen bits, twice in a word
//   BFLOAT16                 defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int BOUNDED = 0, HARD_SWISH = 1, SILU = 2;
constexpr unsigned int NO_LOW = 0xff800000u, NO_HIGH = 0x7f800000u;

constexpr int DEPTH = 32;  // numbers of a step: a lane has eight in a row of them
constexpr int STEPS = (SIZE_K + DEPTH - 1) / DEPTH;
constexpr int COLUMNS = 8 * TILES, MINE = 2 * TILES;  // of a warp, of a lane
constexpr int CHUNKS = (SIZE_N + COLUMNS - 1) / COLUMNS;
constexpr int ROWS = 16 * HEIGHT;
constexpr int GROUPS = (SIZE_M + ROWS - 1) / ROWS;
constexpr int STRIPES = BLOCKS * WARPS / CHUNKS;
// Added to 1.5 x 2^23 in its bits a whole number below 2^22 is that much more.
constexpr float MAGIC = 12582912.0f;
constexpr int MAGIC_BITS = 0x4b400000;

static_assert(SIZE_N % 8 == 0 && SIZE_K % 8 == 0 && X_PITCH % 8 == 0 && OUT_PITCH % 8 == 0 && TAP_DEPTH % 8 == 0, "whole pieces");
static_assert(SIZE_K * 128 * 128 < 1 << 22 || !EIGHT_IN, "sums that are floats");
static_assert(STRIPES > 0, "a warp for all columns");

#if EIGHT_IN
using Element = signed char;
using Piece = Pair;  // eight numbers
using Sum = int;
#else
using Element = unsigned short;
using Piece = Quad;
using Sum = float;
#endif

// A lane's piece of one step of a row of x, or of a column of W, whose parts lie apart.
template <bool APART>
__device__ __forceinline__ Piece piece_of(const Element* row, int step, bool there) {
  const int at = step * DEPTH + static_cast<int>(thread_index() % 4) * 8, tap = at / TAP_DEPTH;
  const int apart = tap / TAPS_WIDE * TAP_ROW_PITCH + tap % TAPS_WIDE * TAP_PITCH + at % TAP_DEPTH;
  Piece found = {};
  if (there && (SIZE_K % DEPTH == 0 || at < SIZE_K)) found = *reinterpret_cast<const Piece*>(row + (APART ? apart : at));
  return found;
}

__device__ __forceinline__ const Element* row_of(const Element* x, int at) {
#if WINDOWS
  const unsigned int pixel = at, above = pixel / OUT_WIDTH;
  return x + static_cast<long long>(above / OUT_HEIGHT) * IMAGE_PITCH + above % OUT_HEIGHT * ROW_PITCH +
         pixel % OUT_WIDTH * X_PITCH;
#else
  return x + static_cast<long long>(at) * X_PITCH;
#endif
}

__device__ __forceinline__ void load(Piece (&to)[HEIGHT][STEPS][2], const Element* x, int group, int row) {
#pragma unroll
  for (int tile = 0; tile < HEIGHT; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = group * ROWS + 16 * tile + 8 * half + row;
      const Element* from = row_of(x, at);
#pragma unroll
      for (int step = 0; step < STEPS; ++step) to[tile][step][half] = piece_of<WINDOWS>(from, step, at < SIZE_M);
    }
  }
}

__device__ __forceinline__ void multiply(Sum (&sum)[4], const Piece& upper, const Piece& lower, const Piece& w) {
#if EIGHT_IN
  multiply_add(sum, Quad{upper.x, lower.x, upper.y, lower.y}, w.x, w.y);
#else
  multiply_add(sum, Quad{upper.x, lower.x, upper.y, lower.y}, w.x, w.y);
  multiply_add(sum, Quad{upper.z, lower.z, upper.w, lower.w}, w.z, w.w);
#endif
}

__device__ __forceinline__ float finished(float y) {
  if (ACTIVATION == HARD_SWISH) y = y * smaller(greater(y * 0.16666666666666666f + 0.5f, 0.0f), 1.0f);
  if (ACTIVATION == SILU) y = y * reciprocal(1.0f + power_of_two(y * -1.4426950408889634f));
  if (!EIGHT_OUT) return y;
  const float steps = number_of(OUT_INVERSE_BITS);
  if (ACTIVATION != BOUNDED) return y * steps;
  // Those that saturate anyway need no bounds.
  if (LOW_BITS != NO_LOW) y = greater(y, number_of(LOW_BITS) * steps);
  if (HIGH_BITS != NO_HIGH && HIGH_MATTERS) y = smaller(y, number_of(HIGH_BITS) * steps);
  return y;
}

#if EIGHT_OUT
using Out = unsigned char;
__device__ __forceinline__ void store(Out* to, const float (&y)[MINE]) {
  unsigned int words[MINE / 4];
#pragma unroll
  for (int each = 0; each < MINE / 4; ++each) {
    words[each] = packed_int8(finished(y[4 * each]), finished(y[4 * each + 1]), finished(y[4 * each + 2]),
                              finished(y[4 * each + 3]));
  }
#pragma unroll
  for (int each = 0; each < MINE / 8; ++each) {
    reinterpret_cast<Pair*>(to)[each] = Pair{words[2 * each], words[2 * each + 1]};
  }
}
#else
using Out = unsigned short;
__device__ __forceinline__ unsigned int both_of(float low, float high) {
  unsigned int both = narrow(finished(low), finished(high));
  if (ACTIVATION == BOUNDED && LOW_BITS != NO_LOW) both = greater_of_both(both, LOW_PAIR);
  if (ACTIVATION == BOUNDED && HIGH_BITS != NO_HIGH) both = smaller_of_both(both, HIGH_PAIR);
  return both;
}
__device__ __forceinline__ void store(Out* to, const float (&y)[MINE]) {
#pragma unroll
  for (int each = 0; each < MINE / 8; ++each) {
    reinterpret_cast<Quad*>(to)[each] =
        Quad{both_of(y[8 * each], y[8 * each + 1]), both_of(y[8 * each + 2], y[8 * each + 3]),
             both_of(y[8 * each + 4], y[8 * each + 5]), both_of(y[8 * each + 6], y[8 * each + 7])};
  }
}
#endif

// What is added to a lane's part of a row.
#if EIGHT_OUT
using Added = signed char;
__device__ __forceinline__ void add(float (&y)[MINE], const Added* from) {
#pragma unroll
  for (int piece = 0; piece < MINE / 8; ++piece) {
    const Pair both = reinterpret_cast<const Pair*>(from)[piece];
#pragma unroll
    for (int each = 0; each < 8; ++each) {
      const int number = static_cast<signed char>((each < 4 ? both.x : both.y) >> 8 * (each % 4));
      const float whole = number_of(static_cast<unsigned int>(number + MAGIC_BITS)) - MAGIC;
      y[8 * piece + each] += whole * number_of(RESIDUAL_WORTH_BITS);
    }
  }
}
#else
using Added = unsigned short;
__device__ __forceinline__ void add(float (&y)[MINE], const Added* from) {
#pragma unroll
  for (int piece = 0; piece < MINE / 8; ++piece) {
    const Quad all = reinterpret_cast<const Quad*>(from)[piece];
    const unsigned int words[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int each = 0; each < 4; ++each) {
      y[8 * piece + 2 * each] += wide(static_cast<unsigned short>(words[each]));
      y[8 * piece + 2 * each + 1] += wide(static_cast<unsigned short>(words[each] >> 16));
    }
  }
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1) short_product(const Element* x, const Element* w,
#if EIGHT_IN
                                                                       const float* scale,
#endif
#if HAS_BIAS
                                                                       const float* bias,
#endif
#if RESIDUAL_PITCH
                                                                       const Added* residual,
#endif
                                                                       Out* out) {
  const int warp = static_cast<int>(block_index()) * WARPS + static_cast<int>(thread_index() / 32);
  const int lane = thread_index() % 32, row = lane / 4;
  const int chunk = warp % CHUNKS, stripe = warp / CHUNKS;
  const int mine = chunk * COLUMNS + lane % 4 * MINE;  // the first of its columns
  if (stripe >= STRIPES) return;

  Piece weights[TILES][STEPS];
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    const int column = chunk * COLUMNS + row / 2 * MINE + tile * 2 + row % 2;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      weights[tile][step] = piece_of<false>(w + column * SIZE_K, step, SIZE_N % COLUMNS == 0 || column < SIZE_N);
    }
  }
  float offset[MINE], factor[MINE];
#pragma unroll
  for (int each = 0; each < MINE; ++each) {
    const bool there = SIZE_N % COLUMNS == 0 || mine + each < SIZE_N;
    offset[each] = 0.0f, factor[each] = 1.0f;
#if HAS_BIAS
    if (there) offset[each] = bias[mine + each];
#endif
#if EIGHT_IN
    if (there) factor[each] = scale[mine + each];
#endif
    if (EIGHT_OUT && ACTIVATION == BOUNDED && !FOLDED) {
      factor[each] *= number_of(OUT_INVERSE_BITS), offset[each] *= number_of(OUT_INVERSE_BITS);
    }
    if (EIGHT_IN && !FOLDED) offset[each] -= MAGIC * factor[each];
  }

  wait_for_kernel_ahead();
  let_kernel_behind_start();

  Piece next[HEIGHT][STEPS][2];
  load(next, x, stripe, row);
#pragma unroll 1
  for (int group = stripe; group < GROUPS; group += STRIPES) {
    Piece rows[HEIGHT][STEPS][2];
#pragma unroll
    for (int tile = 0; tile < HEIGHT; ++tile) {
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        rows[tile][step][0] = next[tile][step][0], rows[tile][step][1] = next[tile][step][1];
      }
    }
    load(next, x, group + STRIPES, row);
#pragma unroll
    for (int high = 0; high < HEIGHT; ++high) {
      Sum sums[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int each = 0; each < 4; ++each) {
#if EIGHT_IN
          sums[tile][each] = MAGIC_BITS;
#else
          sums[tile][each] = EIGHT_OUT ? 0.0f : offset[2 * tile + each % 2];
#endif
        }
      }
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          multiply(sums[tile], rows[high][step][0], rows[high][step][1], weights[tile][step]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = group * ROWS + 16 * high + 8 * half + row;
        float y[MINE];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
          for (int each = 0; each < 2; ++each) {
            const int number = 2 * tile + each;
#if EIGHT_IN
            const float sum = number_of(static_cast<unsigned int>(sums[tile][2 * half + each]));
            y[number] = sum * factor[number] + offset[number];
#else
            const float sum = sums[tile][2 * half + each];
            y[number] = EIGHT_OUT ? sum * factor[number] + offset[number] : sum;
#endif
          }
        }
        if ((SIZE_M % ROWS == 0 || at < SIZE_M) && (SIZE_N % COLUMNS == 0 || mine < SIZE_N)) {
#if RESIDUAL_PITCH
          add(y, residual + static_cast<long long>(at) * RESIDUAL_PITCH + mine);
#endif
          store(out + static_cast<long long>(at) * OUT_PITCH + mine, y);
        }
      }
    }
  }
}
