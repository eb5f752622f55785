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
// Numbers of eight bits are worth what scales say: a sum what `scales` has for its column, the residual's and the
// result's what OUT_... and RESIDUAL_... say.
//
// Given by whoever compiles:
//   SIZE_M SIZE_N SIZE_K   of the product; rows of multiples of 16 bytes
//   KIND OUT_KIND          of x and W, of out and residual: 0 sixteen bits, 1 INT8, 2 e4m3
//   ROWS COLUMNS           of a tile of four warps: 64 or 128 by 64, 128, 192 or 256
//   PINGPONG STAGES CLUSTER   as above; CLUSTER 1 or 2
//   TEAMS                  clusters in the grid
//   TILE_GROUP             tiles below each other that are done before those beside them
//   HAS_SCALES HAS_BIAS HAS_RESIDUAL RESIDUAL_LAST
//   RESIDUAL_SCALE_BITS OUT_INVERSE_BITS   FP32 as it lies in memory: what a residual's step is worth, and how many of
//                          the result's steps one is
//   ACTIVATION ALPHA_BITS BETA_BITS   a number below, and two FP32 numbers as they lie in memory
//   BFLOAT16               defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"
#include "warpgroup.cuh"

// 0 is none.
constexpr unsigned int RELU = 1, RELU6 = 2, LEAKY_RELU = 3, SILU = 4, SIGMOID = 5, HARD_SIGMOID = 6, HARD_SWISH = 7,
                       GELU = 8, GELU_TANH = 9, TANH = 10, CLIP = 11, QUICK_GELU = 12;

constexpr unsigned int WARP = 32, TEAM = 128;  // threads that multiply together
constexpr unsigned int LINE = 128;              // bytes in a row of a stage, and of the result
constexpr unsigned int DEPTH = KIND == 0 ? LINE / 2 : LINE;  // numbers in a row of a stage
constexpr unsigned int WIDTH = OUT_KIND == 0 ? LINE / 2 : LINE;  // columns in a row of a slot
constexpr unsigned int STEPS = (SIZE_K + DEPTH - 1) / DEPTH;
constexpr unsigned int BLOCK_ROWS = PINGPONG ? ROWS : 2 * ROWS;
constexpr unsigned int TILES_M = (SIZE_M + BLOCK_ROWS * CLUSTER - 1) / (BLOCK_ROWS * CLUSTER);  // of clusters
constexpr unsigned int TILES_N = (SIZE_N + COLUMNS - 1) / COLUMNS;
constexpr unsigned int TILES = TILES_M * TILES_N;
constexpr unsigned int PARTS = ROWS / 64;  // of one product of four warps
// Times eight columns, whose residuals are waited for together: what registers there are beside the sums.
constexpr unsigned int AT_ONCE = PARTS * COLUMNS > 256 ? 1 : 4;
constexpr unsigned int READERS = 4 * (PINGPONG ? 1 : 2) * CLUSTER;  // warps that read what lies in a stage

constexpr unsigned int X_BYTES = BLOCK_ROWS * LINE, W_BYTES = COLUMNS * LINE, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr unsigned int SLOT_BYTES = ROWS * LINE, CHUNKS = COLUMNS / WIDTH;
constexpr unsigned int SLOTS = HAS_RESIDUAL ? CHUNKS : (CHUNKS < 2 ? CHUNKS : 2);
constexpr unsigned int SLOTS_AT = STAGES * STAGE_BYTES, BARRIERS_AT = SLOTS_AT + 2 * SLOTS * SLOT_BYTES;

// What commutes with a factor may as well have it from the start: one multiplication less for every number.
constexpr bool FOLDED = OUT_KIND != 0 && HAS_SCALES && ACTIVATION <= RELU;

static_assert(ROWS % 64 == 0 && COLUMNS % WIDTH == 0 && SIZE_N % 8 == 0 && SIZE_K % 8 == 0, "how the product is cut");

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
  return SIZE_K * 128ull * 127ull < 1ull << 22 ? whole(sum) : static_cast<float>(sum);
}

// To the nearest, ties to even, in the last bits.
__device__ __forceinline__ unsigned int rounded_to_int8(float number) {
  return bits_of(smaller(greater(number, -128.0f), 127.0f) + MAGIC) & 0xff;
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
  const Two steps{whole(static_cast<signed char>(both)), whole(static_cast<signed char>(both >> 8))};
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
  shared_store_short(to, static_cast<unsigned short>(rounded_to_int8(low) | rounded_to_int8(high) << 8));
#else
  shared_store_short(to, narrow_to_e4m3(low, high));
#endif
#endif
}

// Where a lane's two numbers of a row and of eight columns lie in a slot.
__device__ __forceinline__ Address place_of(Address slot, unsigned int row, unsigned int eight, unsigned int lane) {
  const unsigned int bytes = 8 * eight * LINE / WIDTH;
  return slot + row * LINE + (bytes / 16 ^ lane / 4) * 16 + bytes % 16 + lane % 4 * 2 * LINE / WIDTH;
}

struct Tile {
  unsigned int row, column;
};

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
  __device__ __forceinline__ Address weights(unsigned int stage) const { return x(stage) + X_BYTES; }
  __device__ __forceinline__ Address full(unsigned int stage) const { return memory + BARRIERS_AT + 8 * stage; }
  __device__ __forceinline__ Address empty(unsigned int stage) const { return full(stage) + 8 * STAGES; }
  __device__ __forceinline__ Address residual(unsigned int team) const {
    return memory + BARRIERS_AT + 16 * STAGES + 8 * team;
  }
  __device__ __forceinline__ Address turn(unsigned int team) const { return residual(2) + 8 * team; }
  __device__ __forceinline__ Address slot(unsigned int team, unsigned int number) const {
    return memory + SLOTS_AT + (team * SLOTS + number) * SLOT_BYTES;
  }
};

// Lets a stage count what will come, and asks for its weights: they need not wait for the kernel ahead.
__device__ __forceinline__ void load_weights(const Ring& ring, unsigned int stage, const TensorMap& weights,
                                             unsigned int column, unsigned int step, unsigned int rank) {
  barrier_expect(ring.full(stage), STAGE_BYTES);
  if (CLUSTER == 1) {
    tile_load(ring.weights(stage), weights, step * DEPTH, column, ring.full(stage));
  } else {
    const unsigned int part = COLUMNS / CLUSTER;
    tile_load_to((1 << CLUSTER) - 1, ring.weights(stage) + rank * part * LINE, weights, step * DEPTH,
                 column + rank * part, ring.full(stage));
  }
}

// Of a whole tile, which those that finish it will wait for: it is small enough to stay in the second cache till then.
__device__ __forceinline__ void fetch_residual(const TensorMap& residual, const Tile& tile) {
  for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
    for (unsigned int row = 0; row < BLOCK_ROWS; row += ROWS) {
      const unsigned int column = tile.column + chunk * WIDTH;
      if (column < SIZE_N) tile_fetch(residual, column, tile.row + row);
    }
  }
}

__device__ __forceinline__ void load_all(const Ring& ring, const TensorMap& x, const TensorMap& weights,
                                         const TensorMap* residual, unsigned int first, unsigned int rank) {
  Turn turn;
  unsigned int ahead = 0;
  for (unsigned int number = first; number < TILES && ahead < STAGES; number += TEAMS) {
    const Tile tile = tile_at(number, rank);
    for (unsigned int step = 0; step < STEPS && ahead < STAGES; ++step, ++ahead) {
      load_weights(ring, ahead, weights, tile.column, step, rank);
    }
  }
  wait_for_kernel_ahead();
  let_kernel_behind_start();
  for (unsigned int number = first; number < TILES; number += TEAMS) {
    const Tile tile = tile_at(number, rank);
    if (HAS_RESIDUAL) fetch_residual(*residual, tile);
#pragma unroll 1
    for (unsigned int step = 0; step < STEPS; ++step) {
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
        load_weights(ring, turn.stage, weights, tile.column, step, rank);
      }
      tile_load(ring.x(turn.stage), x, step * DEPTH, tile.row, ring.full(turn.stage));
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
    __launch_bounds__(3 * TEAM, 1)
    warpgroup_gemm(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,
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
    barrier_init(ring.residual(0), 1);
    barrier_init(ring.residual(1), 1);
    barrier_init(ring.turn(0), TEAM / WARP);
    barrier_init(ring.turn(1), TEAM / WARP);
    barriers_initialised();
  }
  block_sync();
  if (CLUSTER > 1) cluster_meet();

  if (thread_index() < TEAM) {
    give_registers<40>();
    if (thread_index() == 0) {
      fetch_map(x);
      fetch_map(weights);
#if HAS_RESIDUAL
      load_all(ring, x, weights, &residual, first, rank);
#else
      load_all(ring, x, weights, nullptr, first, rank);
#endif
    }
    warp_sync();
  } else {
    take_registers<232>();
    const unsigned int team = thread_index() / TEAM - 1, thread = thread_index() % TEAM;
    const unsigned int warp = thread / WARP, lane = thread % WARP;
    const unsigned int row_inside = warp * 16 + lane / 4;  // of the first number; its place in eight is lane / 4
    wait_for_kernel_ahead();

    Sum sums[PARTS][COLUMNS / 2];
    Turn turn;
    unsigned int slot = 0, turn_parity = 0;
#if HAS_RESIDUAL
    unsigned int residual_parity = 0;
#endif
    if (PINGPONG && team == 1) turn.advance<STEPS>();
#pragma unroll 1
    for (unsigned int number = first + (PINGPONG ? team * TEAMS : 0); number < TILES;
         number += PINGPONG ? 2 * TEAMS : TEAMS) {
      const Tile tile = tile_at(number, rank);
      const unsigned int row = tile.row + (PINGPONG ? 0 : team * ROWS);
#if HAS_RESIDUAL
      if (thread == 0) {
        const unsigned int columns = SIZE_N - tile.column, most = (columns + WIDTH - 1) / WIDTH;
        const unsigned int chunks = most < CHUNKS ? most : CHUNKS;
        stores_have_read<0>();
        barrier_expect(ring.residual(team), chunks * SLOT_BYTES);
        for (unsigned int chunk = 0; chunk < chunks; ++chunk) {
          tile_load(ring.slot(team, chunk), residual, tile.column + chunk * WIDTH, row, ring.residual(team));
        }
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
        const Matrix a = matrix_at(ring.x(turn.stage) + (PINGPONG ? 0 : team * ROWS * LINE));
        const Matrix b = matrix_at(ring.weights(turn.stage));
        products_begin();
#pragma unroll
        for (unsigned int inner = 0; inner < LINE / 32; ++inner) {
#pragma unroll
          for (unsigned int part = 0; part < PARTS; ++part) {
            multiply_rows(sums[part], a + part * (64 * LINE / 16) + inner * MATRIX_STEP, b + inner * MATRIX_STEP,
                          inner > 0 || step > 0);
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
      barrier_wait(ring.residual(team), residual_parity);
      residual_parity ^= 1;
#endif
#pragma unroll
      for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
        const unsigned int column = tile.column + chunk * WIDTH;
        if (SIZE_N % COLUMNS == 0 || column < SIZE_N) {
          const Address to = ring.slot(team, HAS_RESIDUAL ? chunk : slot);
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
              if (FOLDED) {
                factor.low *= number_of(OUT_INVERSE_BITS), factor.high *= number_of(OUT_INVERSE_BITS);
                added.low *= number_of(OUT_INVERSE_BITS), added.high *= number_of(OUT_INVERSE_BITS);
              }
#pragma unroll
              for (unsigned int number = 0; number < PARTS * 2; ++number) {  // each part's row, and the one 8 below
                const Address place = place_of(to, row_inside + number * 8 + number / 2 * 48, eight, lane);
                const Sum* sum = &sums[number / 2][(chunk * WIDTH / 8 + eight) * 4 + number % 2 * 2];
                Two more{0.0f, 0.0f};
                if (HAS_RESIDUAL) more = residual_of(residuals[eight - first_eight][number / 2][number % 2]);
                store_result(place, finished(number_of_sum(sum[0]) * factor.low + added.low, more.low),
                             finished(number_of_sum(sum[1]) * factor.high + added.high, more.high));
              }
            }
          }
          show_to_stores();
          warps_sync(1 + team, TEAM);
          if (thread == 0) tile_store(out, column, row, to);
          warp_sync();
          if (SLOTS == 2) slot ^= 1;
        }
      }
    }
    if (thread == 0) stores_are_done();
    warp_sync();
  }
  if (CLUSTER > 1) cluster_meet();  // a block that is gone can't be arrived at
}
