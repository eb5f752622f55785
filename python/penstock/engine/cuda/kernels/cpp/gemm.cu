// A matrix product on Hopper: out = activation(x W^T + bias + residual), or with RESIDUAL_LAST the residual after the
// activation. x [M, K] and W [N, K] have their depth in a row, so has out its columns.
//
// Blocks stay and go from tile to tile. One thread of the first four warps has tiles of x and W copied, 64 of the depth
// at a time, into a ring of STAGES that barriers guard; two times four warps multiply them. With PINGPONG these have
// tiles of their own, every other one, and what one does with its sums goes on while the other multiplies; they take
// turns, since a parity tells a round of the ring from the next and not from the one after. Otherwise they share a tile,
// one having the rows below the other's. Sums stay in registers. A residual is copied to where the
// result will lie in shared memory while its tile is multiplied, and the result is copied from there.
//
// Of a cluster's two blocks one has the rows below the other's; each copies half of W's tile to both.
//
// With WINDOW a product's rows are what a convolution's window sees: of an output pixel all taps below each other, each
// with its channels. x is a picture then, and a stage gets the same tap of BLOCK_ROWS output pixels in a row, wherever
// rows of pixels and pictures end; beyond its borders it is zero. W's columns are in the order of taps, then channels.
//
// With TOGETHER a stage gets the taps of one column of the window, and their weights: fewer and larger stages.
//
// With STRIP, which is TOGETHER too, 64 rows are eight by eight pixels, and loaded with the rows of eight that the window
// reaches below them. A tap's rows begin one row of eight pixels behind those of the one above: each number comes from the
// second cache as often as the window is wide and not as often as it has taps. Where the window goes down by two rows at a
// time, those of its taps that see even rows and those that see odd ones are stages of their own.
//
// With OTHERS another map is multiplied with weights of its own, one pixel for each of the result, and added: the shortcut
// of a residual block. Its channels are the last steps.
//
// Numbers of eight bits are worth what scales say: a sum what `scales` has for its column, the residual's and the
// result's what OUT_... and RESIDUAL_... say.
//
// Given by whoever compiles:
//   SIZE_M SIZE_N SIZE_K   of the product; rows of multiples of 16 bytes
//   KIND OUT_KIND          of x and W, of out and residual: 0 sixteen bits, 1 INT8, 2 e4m3
//   ROWS COLUMNS           of a tile of four warps: 64 or 128 by 64, 128, 192 or 256
//   PINGPONG STAGES CLUSTER   as above; CLUSTER 1 or 2
//   GROUPS                 times four warps that multiply: 2, or, where they share a tile, 3; 2 if it is not given
//   RESIDENT               whether blocks keep all of W, which is no wider than a tile; 0 if it is not given
//   DEPTH_BYTES            of a row of a stage: 128, or 64 where there are so few channels; 128 if it is not given
//   WINDOW TOGETHER STRIP  see above; if they are given, so are CHANNELS, WINDOW_HIGH, WINDOW_WIDE, STRIDE_..., PAD_TOP,
//                          PAD_LEFT, DILATION_..., OUT_HIGH and OUT_WIDE
//   OTHERS SOURCE_STRIDE_...   channels of the other map, and how far its pixels are apart; 0 if they are not given
//   TEAMS                  clusters in the grid
//   TILE_GROUP             tiles below each other that are done before those beside them
//   HAS_SCALES HAS_BIAS HAS_RESIDUAL RESIDUAL_LAST
//   AHEAD                  with a residual: whether it is copied while the tile before is finished, which takes a second set
//                          of slots; 0 if it is not given
//   PREFOLDED              whether scales and biases are in the result's steps already; 0 if it is not given
//   RESIDUAL_SCALE_BITS OUT_INVERSE_BITS   FP32 as it lies in memory: what a residual's step is worth, and how many of
//                          the result's steps one is
//   ACTIVATION ALPHA_BITS BETA_BITS   a number below, and two FP32 numbers as they lie in memory
//   BFLOAT16               defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"
#include "warpgroup.cuh"

#ifndef GROUPS
#define GROUPS 2
#endif
#ifndef PREFOLDED
#define PREFOLDED 0
#endif
#ifndef RESIDENT
#define RESIDENT 0
#endif
#ifndef AHEAD
#define AHEAD 0
#endif
#ifndef DEPTH_BYTES
#define DEPTH_BYTES 128
#endif
#ifndef OTHERS
#define OTHERS 0
#define SOURCE_STRIDE_HIGH 1
#define SOURCE_STRIDE_WIDE 1
#endif
#ifndef WINDOW
#define WINDOW 0
#define STRIP 0
#define TOGETHER 0
#define CHANNELS SIZE_K
#define WINDOW_HIGH 1
#define WINDOW_WIDE 1
#define STRIDE_HIGH 1
#define STRIDE_WIDE 1
#define DILATION_HIGH 1
#define DILATION_WIDE 1
#define PAD_TOP 0
#define PAD_LEFT 0
#define OUT_HIGH 1
#define OUT_WIDE 1
#endif

// 0 is none.
constexpr unsigned int RELU = 1, RELU6 = 2, LEAKY_RELU = 3, SILU = 4, SIGMOID = 5, HARD_SIGMOID = 6, HARD_SWISH = 7,
                       GELU = 8, GELU_TANH = 9, TANH = 10, CLIP = 11, QUICK_GELU = 12, STAR_RELU = 13;

constexpr unsigned int WARP = 32, TEAM = 128;  // threads that multiply together
constexpr unsigned int LINE = OUT_KIND != 0 && COLUMNS < 128 ? 64 : 128;  // bytes in a row of a slot
constexpr unsigned int DEPTH = KIND == 0 ? DEPTH_BYTES / 2 : DEPTH_BYTES;  // numbers in a row of a stage
constexpr unsigned int WIDTH = OUT_KIND == 0 ? LINE / 2 : LINE;  // columns in a row of a slot
constexpr unsigned int PHASES = STRIP ? STRIDE_HIGH : 1;  // of the rows that taps see
constexpr unsigned int TAPS = TOGETHER ? (WINDOW_HIGH + PHASES - 1) / PHASES : 1;  // of a stage
constexpr unsigned int DEPTHS_OF_A_TAP = (CHANNELS + DEPTH - 1) / DEPTH;
constexpr unsigned int OWN_STEPS = DEPTHS_OF_A_TAP * WINDOW_WIDE * (TOGETHER ? PHASES : WINDOW_HIGH);
constexpr unsigned int STEPS = OWN_STEPS + (OTHERS + DEPTH - 1) / DEPTH;
constexpr unsigned int BLOCK_ROWS = PINGPONG ? ROWS : GROUPS * ROWS;
constexpr unsigned int SQUARES_WIDE = (OUT_WIDE + 7) / 8, SQUARES_HIGH = (OUT_HIGH + 7) / 8;
constexpr unsigned int ALL_ROWS = STRIP ? SIZE_M / (OUT_HIGH * OUT_WIDE) * SQUARES_HIGH * SQUARES_WIDE * 64 : SIZE_M;
constexpr unsigned int TILES_M = (ALL_ROWS + BLOCK_ROWS * CLUSTER - 1) / (BLOCK_ROWS * CLUSTER);  // of clusters
constexpr unsigned int TILES_N = (SIZE_N + COLUMNS - 1) / COLUMNS;
constexpr unsigned int TILES = TILES_M * TILES_N;
constexpr unsigned int PARTS = ROWS / 64;  // of one product of four warps
// Times eight columns, whose residuals are waited for together: what registers there are beside the sums.
constexpr unsigned int AT_ONCE = PARTS * COLUMNS > 256 ? 1 : 4;
constexpr unsigned int READERS = 4 * (PINGPONG ? 1 : GROUPS) * CLUSTER;  // warps that read what lies in a stage

constexpr unsigned int NEXT_TAP = (STRIP ? 8 : BLOCK_ROWS) * DEPTH_BYTES;  // from a tap's rows to those of the one below
constexpr unsigned int NEXT_PART = 64 * DEPTH_BYTES + (STRIP ? (TAPS - 1) * NEXT_TAP : 0);  // to the 64 rows below
constexpr unsigned int X_BYTES = BLOCK_ROWS / 64 * NEXT_PART + (STRIP ? 0 : (TAPS - 1) * NEXT_TAP);
constexpr unsigned int TAP_BYTES = COLUMNS * DEPTH_BYTES;
constexpr unsigned int W_BYTES = TAPS * TAP_BYTES, STAGE_BYTES = X_BYTES + (RESIDENT ? 0 : W_BYTES);
constexpr unsigned int SLOT_BYTES = ROWS * LINE, CHUNKS = (COLUMNS + WIDTH - 1) / WIDTH;
constexpr unsigned int SLOTS = HAS_RESIDUAL ? CHUNKS : (CHUNKS < 2 ? CHUNKS : 2);
constexpr unsigned int WEIGHTS_AT = STAGES * STAGE_BYTES;  // with RESIDENT
constexpr unsigned int SLOTS_AT = WEIGHTS_AT + (RESIDENT ? STEPS * W_BYTES : 0);
constexpr unsigned int SETS = HAS_RESIDUAL && AHEAD ? 2 : 1;  // of slots, taken in turns
constexpr unsigned int BARRIERS_AT = SLOTS_AT + GROUPS * SETS * SLOTS * SLOT_BYTES;

// What commutes with a factor may as well have it from the start: one multiplication less for every number.
constexpr bool FOLDED = OUT_KIND != 0 && HAS_SCALES && ACTIVATION <= RELU;
// As `epilogue.fold` has it: up to here a bias takes away what makes a number of a sum.
constexpr bool SHIFTED = FOLDED && PREFOLDED && KIND == 1 && (SIZE_K + OTHERS) * 16384ull <= 1ull << 22;

static_assert(ROWS % 64 == 0 && COLUMNS % (8 * CLUSTER) == 0 && COLUMNS >= WIDTH && SIZE_N % 8 == 0 && SIZE_K % 8 == 0,
              "how the product is cut");
static_assert(!RESIDENT || (SIZE_N <= COLUMNS && CLUSTER == 1), "all of W");
static_assert(GROUPS == 2 || !PINGPONG, "turns are taken by two");
static_assert(!STRIP || TOGETHER, "eight by eight pixels");
static_assert(!TOGETHER || (CLUSTER == 1 && OTHERS == 0), "stages are alike");

// Of a tile's columns the first that a slot holds. The last slot has some of the one before where they do not come out even.
__device__ __forceinline__ constexpr unsigned int column_of(unsigned int chunk) {
  return (chunk + 1) * WIDTH <= COLUMNS ? chunk * WIDTH : COLUMNS - WIDTH;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + power_of_two(x * -1.4426950408889634f)); }

__device__ __forceinline__ float clamp(float x, float low, float high) { return smaller(greater(x, low), high); }

// x times how much of a normal distribution is below it, by the polynomial of `activations.normal_share`.
__device__ __forceinline__ float gelu(float x) {
  const float within = clamp(x, -4.4f, 4.4f), t = within * within;
  float y = 3.569430515049099e-11f * t - 3.754050403870224e-09f;
  y = y * t + 1.7408477503977338e-07f;
  y = y * t - 4.724869086203398e-06f;
  y = y * t + 8.429303125012666e-05f;
  y = y * t - 0.0010549925500527024f;
  y = y * t + 0.009643028490245342f;
  y = y * t - 0.06607642769813538f;
  y = y * t + 0.3987616002559662f;
  return x * (within * y + 0.5f);
}

// The same to 3e-4 and 2^-12 of x, in half the time: a hundredth of what rounding to eight bits is off by.
__device__ __forceinline__ float rough_gelu(float x) {
  const float half = 0.5f * x;
  return half * rough_tanh(x * (0.034899782f * (x * x) + 0.79973199f)) + half;
}

__device__ __forceinline__ float activate(float x) {
  if (ACTIVATION == GELU && OUT_KIND != 0) return rough_gelu(x);
  if (ACTIVATION == RELU) return greater(x, 0.0f);
  if (ACTIVATION == RELU6) return clamp(x, 0.0f, 6.0f);
  if (ACTIVATION == LEAKY_RELU) return x < 0.0f ? x * number_of(ALPHA_BITS) : x;
  if (ACTIVATION == SILU) return x * sigmoid(x);
  if (ACTIVATION == SIGMOID) return sigmoid(x);
  if (ACTIVATION == HARD_SIGMOID) return clamp(x * number_of(ALPHA_BITS) + number_of(BETA_BITS), 0.0f, 1.0f);
  if (ACTIVATION == HARD_SWISH) return x * clamp(x * 0.16666666666666666f + 0.5f, 0.0f, 1.0f);
  if (ACTIVATION == GELU) return gelu(x);
  if (ACTIVATION == GELU_TANH) return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
  if (ACTIVATION == TANH) return 2.0f * sigmoid(2.0f * x) - 1.0f;
  if (ACTIVATION == CLIP) return clamp(x, number_of(ALPHA_BITS), number_of(BETA_BITS));
  if (ACTIVATION == QUICK_GELU) return x * sigmoid(1.702f * x);
  if (ACTIVATION == STAR_RELU) {
    const float kept = greater(x, 0.0f);
    return kept * kept * number_of(ALPHA_BITS) + number_of(BETA_BITS);
  }
  return x;
}

// What a number of the result is, from its sum and the residual's number.
__device__ __forceinline__ float finished(float sum, float residual) {
  if (!HAS_RESIDUAL) return activate(sum);
  return RESIDUAL_LAST ? activate(sum) + residual : activate(sum + residual);
}

// A whole number added to the bits of 1.5 x 2^23 is that number plus itself, if it is below 2^22: units that convert are
// few.
constexpr float MAGIC = 12582912.0f;

__device__ __forceinline__ float whole(int number) {
  return number_of(static_cast<unsigned int>(number) + 0x4b400000u) - MAGIC;
}

__device__ __forceinline__ float number_of_sum(float sum) { return sum; }
__device__ __forceinline__ float number_of_sum(int sum) {
  if (SHIFTED) return number_of(static_cast<unsigned int>(sum) + 0x4b400000u);
  return (SIZE_K + OTHERS) * 128ull * 127ull < 1ull << 22 ? whole(sum) : static_cast<float>(sum);
}

// Two numbers of INT8: of 128 more, which has no sign, and the bits of 2^23 it is one step to a float.
__device__ __forceinline__ Two wide_of_int8(unsigned int both) {
  const unsigned int more = both ^ 0x8080u;
  return Two{number_of((more & 0xff) | 0x4b000000u) - 8388736.0f, number_of((more >> 8 & 0xff) | 0x4b000000u) - 8388736.0f};
}

__device__ __forceinline__ unsigned int residual_bits(Address from) {
  return OUT_KIND == 0 ? shared_load_word(from) : shared_load_short(from);
}

__device__ __forceinline__ Two residual_of(unsigned int both) {
#if OUT_KIND == 0
  return Two{wide(static_cast<unsigned short>(both)), wide(static_cast<unsigned short>(both >> 16))};
#else
  const float worth = number_of(RESIDUAL_SCALE_BITS) * (FOLDED ? number_of(OUT_INVERSE_BITS) : 1.0f);
#if OUT_KIND == 1
  const Two steps = wide_of_int8(both);
#else
  const Two steps = wide_of_e4m3(static_cast<unsigned short>(both));
#endif
  return Two{steps.low * worth, steps.high * worth};
#endif
}

__device__ __forceinline__ void store_result(Address to, float low, float high) {
#if OUT_KIND == 0
  shared_store(to, narrow(low, high));
#else
  const float steps = FOLDED ? 1.0f : number_of(OUT_INVERSE_BITS);
  low *= steps, high *= steps;
#if OUT_KIND == 1
  shared_store_short(to, narrow_to_int8(low, high));
#else
  shared_store_short(to, narrow_to_e4m3(low, high));
#endif
#endif
}

// Where a lane's two numbers of a row and of eight columns lie in a slot.
__device__ __forceinline__ Address place_of(Address slot, unsigned int row, unsigned int eight, unsigned int lane) {
  const unsigned int bytes = 8 * eight * LINE / WIDTH;
  const unsigned int exchanged = LINE == 128 ? lane / 4 : lane / 8;
  return slot + row * LINE + (bytes / 16 ^ exchanged) * 16 + bytes % 16 + lane % 4 * 2 * LINE / WIDTH;
}

struct Tile {
  unsigned int row, column;
};

struct Pixel {
  int image, high, wide;
};

// Of the result.
__device__ __forceinline__ Pixel pixel_at(unsigned int row) {
  if (STRIP) {
    const unsigned int square = row / 64;
    return Pixel{static_cast<int>(square / (SQUARES_HIGH * SQUARES_WIDE)),
                 static_cast<int>(square / SQUARES_WIDE % SQUARES_HIGH * 8), static_cast<int>(square % SQUARES_WIDE * 8)};
  }
  return Pixel{static_cast<int>(row / (OUT_HIGH * OUT_WIDE)), static_cast<int>(row / OUT_WIDE % OUT_HIGH),
               static_cast<int>(row % OUT_WIDE)};
}

// Where a part of the result lies, in memory and in a slot.
__device__ __forceinline__ void store_part(const TensorMap& out, unsigned int column, unsigned int row, Address from) {
  if (STRIP) {
#pragma unroll
    for (unsigned int part = 0; part < PARTS; ++part) {
      const Pixel pixel = pixel_at(row + part * 64);
      pixels_store(out, column, pixel.wide, pixel.high, pixel.image, from + part * 64 * LINE);
    }
    stores_are_one();
  } else {
    tile_store(out, column, row, from);
  }
}

__device__ __forceinline__ void load_part(Address to, const TensorMap& residual, unsigned int column, unsigned int row,
                                          Address barrier) {
  if (STRIP) {
#pragma unroll
    for (unsigned int part = 0; part < PARTS; ++part) {
      const Pixel pixel = pixel_at(row + part * 64);
      pixels_load(to + part * 64 * LINE, residual, column, pixel.wide, pixel.high, pixel.image, barrier);
    }
  } else {
    tile_load(to, residual, column, row, barrier);
  }
}

// Of this block, in the order in which clusters take them.
__device__ __forceinline__ Tile tile_at(unsigned int number, unsigned int rank) {
  const unsigned int group = number / (TILE_GROUP * TILES_N), inside = number % (TILE_GROUP * TILES_N);
  const unsigned int first = group * TILE_GROUP;
  const unsigned int high = TILES_M - first < TILE_GROUP ? TILES_M - first : TILE_GROUP;
  return Tile{((first + inside % high) * CLUSTER + rank) * BLOCK_ROWS, inside / high * COLUMNS};
}

// A place in the ring.
struct Turn {
  unsigned int stage = 0, parity = 0;

  template <unsigned int BY>
  __device__ __forceinline__ void advance() {
    stage += BY % STAGES, parity ^= BY / STAGES % 2;
    if (stage >= STAGES) stage -= STAGES, parity ^= 1;
  }
};

struct Ring {
  Address memory;

  __device__ __forceinline__ Address x(unsigned int stage) const { return memory + stage * STAGE_BYTES; }
  __device__ __forceinline__ Address weights(unsigned int stage, unsigned int step) const {
    return RESIDENT ? memory + WEIGHTS_AT + step * W_BYTES : x(stage) + X_BYTES;
  }
  __device__ __forceinline__ Address full(unsigned int stage) const { return memory + BARRIERS_AT + 8 * stage; }
  __device__ __forceinline__ Address empty(unsigned int stage) const { return full(stage) + 8 * STAGES; }
  __device__ __forceinline__ Address residual(unsigned int team, unsigned int set) const {
    return memory + BARRIERS_AT + 16 * STAGES + 8 * (team * SETS + set);
  }
  __device__ __forceinline__ Address turn(unsigned int team) const { return residual(GROUPS, 0) + 8 * team; }
  __device__ __forceinline__ Address weights_came() const { return turn(2); }
  __device__ __forceinline__ Address slot(unsigned int team, unsigned int number) const {
    return memory + SLOTS_AT + (team * SETS * SLOTS + number) * SLOT_BYTES;
  }
};

// What is multiplied.
struct Operands {
  const TensorMap& x;
  const TensorMap& weights;
  const TensorMap* source;  // with OTHERS
  const TensorMap* shortcut;
  const TensorMap* residual;  // with HAS_RESIDUAL
};

// The weights of a step (of taps that there are none of zeros), for a place in the ring or for good.
__device__ __forceinline__ void load_weights(const Ring& ring, unsigned int stage, const Operands& given,
                                             unsigned int column, unsigned int step, unsigned int rank, Address barrier) {
  const Address to = ring.weights(stage, step);
  const bool own = OTHERS == 0 || step < OWN_STEPS;
  const TensorMap& weights = own ? given.weights : *given.shortcut;
  const unsigned int depth = own ? step / DEPTHS_OF_A_TAP * CHANNELS + step % DEPTHS_OF_A_TAP * DEPTH
                                 : (step - OWN_STEPS) * DEPTH;
  if (CLUSTER == 1) {
#pragma unroll
    for (unsigned int tap = 0; tap < TAPS; ++tap) {
      tile_load(to + tap * TAP_BYTES, weights, depth + tap * (PHASES * WINDOW_WIDE * CHANNELS), column, barrier);
    }
  } else {
    const unsigned int part = COLUMNS / CLUSTER;
    tile_load_to((1 << CLUSTER) - 1, to + rank * part * DEPTH_BYTES, weights, depth, column + rank * part, barrier);
  }
}

// Lets a stage count what will come, and asks for its weights: they need not wait for the kernel ahead.
__device__ __forceinline__ void begin_stage(const Ring& ring, unsigned int stage, const Operands& given,
                                            unsigned int column, unsigned int step, unsigned int rank) {
  barrier_expect(ring.full(stage), STAGE_BYTES);
  if (!RESIDENT) load_weights(ring, stage, given, column, step, rank, ring.full(stage));
}

// What a step multiplies of x, for the rows from one on, of which `pixel` is the first.
__device__ __forceinline__ void load_x(const Ring& ring, unsigned int stage, const Operands& given, unsigned int row,
                                       const Pixel& pixel, unsigned int step) {
  if (!WINDOW) {
    tile_load(ring.x(stage), given.x, step * DEPTH, row, ring.full(stage));
    return;
  }
  if (OTHERS != 0 && step >= OWN_STEPS) {
    window_load(ring.x(stage), *given.source, (step - OWN_STEPS) * DEPTH, pixel.wide * SOURCE_STRIDE_WIDE,
                pixel.high * SOURCE_STRIDE_HIGH, pixel.image, 0, 0, ring.full(stage));
    return;
  }
  const unsigned int tap = step / DEPTHS_OF_A_TAP, channel = step % DEPTHS_OF_A_TAP * DEPTH;
  if (STRIP) {
#pragma unroll
    for (unsigned int part = 0; part < BLOCK_ROWS / 64; ++part) {
      const Pixel first = pixel_at(row + part * 64);
      const int phase = tap / WINDOW_WIDE, right = tap % WINDOW_WIDE * DILATION_WIDE;
      pixels_load(ring.x(stage) + part * NEXT_PART, given.x, channel, first.wide + right - PAD_LEFT,
                  first.high * STRIDE_HIGH + phase - PAD_TOP, first.image, ring.full(stage));
    }
  } else {
    const int high = pixel.high * STRIDE_HIGH - PAD_TOP, wide = pixel.wide * STRIDE_WIDE - PAD_LEFT;
#pragma unroll
    for (unsigned int below = 0; below < TAPS; ++below) {
      window_load(ring.x(stage) + below * NEXT_TAP, given.x, channel, wide, high, pixel.image,
                  tap % WINDOW_WIDE * DILATION_WIDE, (tap / WINDOW_WIDE + below) * DILATION_HIGH, ring.full(stage));
    }
  }
}

// Slots that a tile has columns for.
__device__ __forceinline__ unsigned int slots_of(unsigned int column) {
  unsigned int found = 0;
  for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) found += column + column_of(chunk) < SIZE_N;
  return found;
}

// To where the result of these four warps will lie, when what lies there is stored.
__device__ __forceinline__ void load_residual(const Ring& ring, const TensorMap& residual, const Tile& tile,
                                              unsigned int team, unsigned int set) {
  const unsigned int chunks = slots_of(tile.column), row = tile.row + (PINGPONG ? 0 : team * ROWS);
  stores_have_read<0>();
  barrier_expect(ring.residual(team, set), chunks * SLOT_BYTES);
  for (unsigned int chunk = 0; chunk < chunks; ++chunk) {
    load_part(ring.slot(team, set * SLOTS + chunk), residual, tile.column + column_of(chunk), row,
              ring.residual(team, set));
  }
}

// Of a whole tile, which those that finish it will wait for: it is small enough to stay in the second cache till then.
__device__ __forceinline__ void fetch_residual(const TensorMap& residual, const Tile& tile) {
  if (STRIP) return;
  for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
    for (unsigned int row = 0; row < BLOCK_ROWS; row += ROWS) {
      const unsigned int column = tile.column + column_of(chunk);
      if (column < SIZE_N) tile_fetch(residual, column, tile.row + row);
    }
  }
}

__device__ __forceinline__ void load_all(const Ring& ring, const Operands& given, unsigned int first,
                                         unsigned int rank) {
  Turn turn;
  unsigned int ahead = 0;
  if (RESIDENT && first < TILES) {
    barrier_expect(ring.weights_came(), STEPS * W_BYTES);
    for (unsigned int step = 0; step < STEPS; ++step) load_weights(ring, 0, given, 0, step, 0, ring.weights_came());
  }
  for (unsigned int number = first; number < TILES && ahead < STAGES; number += TEAMS) {
    const Tile tile = tile_at(number, rank);
    for (unsigned int step = 0; step < STEPS && ahead < STAGES; ++step, ++ahead) {
      begin_stage(ring, ahead, given, tile.column, step, rank);
    }
  }
  wait_for_kernel_ahead();
  let_kernel_behind_start();
  for (unsigned int number = first; number < TILES; number += TEAMS) {
    const Tile tile = tile_at(number, rank);
    const Pixel pixel = pixel_at(tile.row);
    if (HAS_RESIDUAL) fetch_residual(*given.residual, tile);
#pragma unroll 1
    for (unsigned int step = 0; step < STEPS; ++step) {
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
        begin_stage(ring, turn.stage, given, tile.column, step, rank);
      }
      load_x(ring, turn.stage, given, tile.row, pixel, step);
      turn.advance<1>();
    }
  }
}

__device__ __forceinline__ void release(const Ring& ring, unsigned int stage, unsigned int lane) {
  if (CLUSTER == 1) {
    if (lane == 0) barrier_arrive(ring.empty(stage));
  } else if (lane < CLUSTER) {
    barrier_arrive_there(address_in_block(ring.empty(stage), lane));
  }
}

extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
    __launch_bounds__((1 + GROUPS) * TEAM, 1)
    warpgroup_gemm(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,
#if OTHERS
                   const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap shortcut,
#endif
                   const __grid_constant__ TensorMap out
#if HAS_RESIDUAL
                   ,
                   const __grid_constant__ TensorMap residual
#endif
#if HAS_SCALES
                   ,
                   const float* scales
#endif
#if HAS_BIAS
                   ,
                   const float* bias
#endif
    ) {
  extern __shared__ Quad memory[];
  const Ring ring{(shared_address(memory) + 1023) & ~1023u};
  const unsigned int rank = CLUSTER > 1 ? cluster_rank() : 0, first = block_index() / CLUSTER;
  if (thread_index() == 0) {
    for (unsigned int stage = 0; stage < STAGES; ++stage) {
      barrier_init(ring.full(stage), 1);
      barrier_init(ring.empty(stage), READERS);
    }
    for (unsigned int group = 0; group < GROUPS; ++group) {
      for (unsigned int set = 0; set < SETS; ++set) barrier_init(ring.residual(group, set), 1);
    }
    barrier_init(ring.turn(0), TEAM / WARP);
    barrier_init(ring.turn(1), TEAM / WARP);
    barrier_init(ring.weights_came(), 1);
    barriers_initialised();
  }
  block_sync();
  if (CLUSTER > 1) cluster_meet();

  if (thread_index() < TEAM) {
    give_registers<GROUPS == 2 ? 40 : 32>();
    if (thread_index() == 0) {
      fetch_map(x);
      fetch_map(weights);
      Operands given{x, weights, nullptr, nullptr, nullptr};
#if OTHERS
      given.source = &source, given.shortcut = &shortcut;
#endif
#if HAS_RESIDUAL
      given.residual = &residual;
#endif
      load_all(ring, given, first, rank);
    }
    warp_sync();
  } else {
    take_registers<GROUPS == 2 ? 232 : 160>();
    const unsigned int team = thread_index() / TEAM - 1, thread = thread_index() % TEAM;
    const unsigned int warp = thread / WARP, lane = thread % WARP;
    const unsigned int row_inside = warp * 16 + lane / 4;  // of the first number; its place in eight is lane / 4
    wait_for_kernel_ahead();
    if (RESIDENT && first < TILES) barrier_wait(ring.weights_came(), 0);

    Sum sums[PARTS][COLUMNS / 2];
    Turn turn;
    unsigned int slot = 0, turn_parity = 0;
#if HAS_RESIDUAL
    unsigned int set = 0, residual_parity = 0;
#endif
    if (PINGPONG && team == 1) turn.advance<STEPS>();
    constexpr unsigned int BY = PINGPONG ? 2 * TEAMS : TEAMS;
    const unsigned int begin = first + (PINGPONG ? team * TEAMS : 0);
#pragma unroll 1
    for (unsigned int number = begin; number < TILES; number += BY) {
      const Tile tile = tile_at(number, rank);
      const unsigned int row = tile.row + (PINGPONG ? 0 : team * ROWS);
#if HAS_RESIDUAL
      if (thread == 0 && (!AHEAD || number == begin)) {
        load_residual(ring, residual, tile, team, 0);
      }
      warp_sync();
#endif

      if (PINGPONG) {  // the first turn is the first team's
        if (team == 1 || number != first) barrier_wait(ring.turn(team), turn_parity ^ (team == 0));
        turn_parity ^= 1;
      }
      unsigned int last = 0;
#pragma unroll 1
      for (unsigned int step = 0; step < STEPS; ++step) {
        barrier_wait(ring.full(turn.stage), turn.parity);
        const Matrix a = matrix_at(ring.x(turn.stage) + (PINGPONG ? 0 : team * PARTS * NEXT_PART));
        const Matrix b = matrix_at(ring.weights(turn.stage, step));
        products_begin();
#pragma unroll
        for (unsigned int tap = 0; tap < TAPS; ++tap) {
          const Matrix rows = a + tap * (NEXT_TAP / 16), columns = b + tap * (TAP_BYTES / 16);
#pragma unroll
          for (unsigned int inner = 0; inner < DEPTH_BYTES / 32; ++inner) {
#pragma unroll
            for (unsigned int part = 0; part < PARTS; ++part) {
              multiply_rows(sums[part], rows + part * (NEXT_PART / 16) + inner * MATRIX_STEP,
                            columns + inner * MATRIX_STEP, tap > 0 || inner > 0 || step > 0);
            }
          }
        }
        products_commit();
        if (step > 0) {
          products_are_done<1>();
          release(ring, last, lane);
        }
        last = turn.stage;
        turn.advance<1>();
      }
      if (PINGPONG && lane == 0) barrier_arrive(ring.turn(1 - team));
      warp_sync();
      products_are_done<0>();
      release(ring, last, lane);
      if (PINGPONG) turn.advance<STEPS>();
#pragma unroll
      for (unsigned int part = 0; part < PARTS; ++part) hold(sums[part]);

#if HAS_RESIDUAL
      if (AHEAD && thread == 0 && number + BY < TILES) {
        load_residual(ring, residual, tile_at(number + BY, rank), team, set ^ 1);
      }
      warp_sync();
      barrier_wait(ring.residual(team, set), residual_parity);
#endif
#pragma unroll
      for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
        const unsigned int column = tile.column + column_of(chunk);
        if (SIZE_N % COLUMNS == 0 || column < SIZE_N) {
#if HAS_RESIDUAL
          const Address to = ring.slot(team, set * SLOTS + chunk);
#else
          const Address to = ring.slot(team, slot);
#endif
          if (!HAS_RESIDUAL) {
            if (thread == 0) stores_have_read<SLOTS - 1>();
            warp_sync();
            warps_sync(1 + team, TEAM);
          }
#pragma unroll
          for (unsigned int first_eight = 0; first_eight < WIDTH / 8; first_eight += AT_ONCE) {
            unsigned int residuals[AT_ONCE][PARTS][2];
            if (HAS_RESIDUAL) {
#pragma unroll
              for (unsigned int eight = 0; eight < AT_ONCE; ++eight) {
#pragma unroll
                for (unsigned int number = 0; number < PARTS * 2; ++number) {
                  residuals[eight][number / 2][number % 2] =
                      residual_bits(place_of(to, row_inside + number * 8 + number / 2 * 48, first_eight + eight, lane));
                }
              }
            }
#pragma unroll
            for (unsigned int eight = first_eight; eight < first_eight + AT_ONCE; ++eight) {
              const unsigned int at = column + 8 * eight + lane % 4 * 2;
              const unsigned int known = SIZE_N % COLUMNS == 0 || at < SIZE_N ? at : 0;
              Two factor{1.0f, 1.0f}, added{0.0f, 0.0f};
#if HAS_SCALES
              factor = load_two(scales + known);
#endif
#if HAS_BIAS
              added = load_two(bias + known);
#endif
              if (FOLDED && !PREFOLDED) {
                factor.low *= number_of(OUT_INVERSE_BITS), factor.high *= number_of(OUT_INVERSE_BITS);
                added.low *= number_of(OUT_INVERSE_BITS), added.high *= number_of(OUT_INVERSE_BITS);
              }
#pragma unroll
              for (unsigned int number = 0; number < PARTS * 2; ++number) {  // each part's row, and the one 8 below
                const Address place = place_of(to, row_inside + number * 8 + number / 2 * 48, eight, lane);
                const Sum* sum = &sums[number / 2][(column_of(chunk) / 8 + eight) * 4 + number % 2 * 2];
                Two more{0.0f, 0.0f};
                if (HAS_RESIDUAL) more = residual_of(residuals[eight - first_eight][number / 2][number % 2]);
                store_result(place, finished(number_of_sum(sum[0]) * factor.low + added.low, more.low),
                             finished(number_of_sum(sum[1]) * factor.high + added.high, more.high));
              }
            }
          }
          show_to_stores();
          warps_sync(1 + team, TEAM);
          if (thread == 0) store_part(out, column, row, to);
          warp_sync();
          if (SLOTS == 2) slot ^= 1;
        }
      }
#if HAS_RESIDUAL
      if (set == SETS - 1) residual_parity ^= 1;
      if (SETS == 2) set ^= 1;
#endif
    }
    if (thread == 0) stores_have_read<0>();  // what they write is there when the kernel is over
    warp_sync();
  }
  if (CLUSTER > 1) cluster_meet();  // a block that is gone can't be arrived at
}
