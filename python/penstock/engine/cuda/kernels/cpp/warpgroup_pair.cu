// Two products one behind the other on Hopper, of which both results are wanted: wide = activation(x W^T + bias + residual),
// out = activation(wide V^T + bias). What a residual block ends with and the next one begins with: wide is written
// and is not read again.
//
// A block keeps all of W and V. GROUPS times four warps have 64 rows each, and go from tile to tile by themselves: of x all
// depths, of wide 64 columns at a time. A residual is copied to where these columns lie in shared memory, one of SLOTS,
// before they are multiplied; the result takes its place, is copied from there, and is the left side of the second product from the
// registers that it was made in. With OTHERS another map of as many rows is multiplied and added instead of a residual.
//
// Given by whoever compiles:
//   SIZE_M DEPTH OTHERS WIDE OUT   rows; columns of x, of the other map (0: there is none), of wide and of out; all but rows are
//                          multiples of 64, OUT 64 or 128
//   GROUPS SLOTS BLOCKS    see above; blocks in the grid
//   HAS_RESIDUAL           OTHERS is 0 then
//   RELU OUT_RELU          whether negative results become zero
//   BFLOAT16               defined: sixteen bits are BF16, else FP16
#define KIND 0
#include "primitives.cuh"
#include "warpgroup.cuh"

constexpr unsigned int TEAM = 128, ROWS = 64, LINE = 128;
constexpr unsigned int PART = ROWS * LINE;  // bytes of 64 rows of 64 columns
constexpr unsigned int PIECES = (DEPTH + OTHERS) / 64, CHUNKS = WIDE / 64, ENDS = OUT / 64;
constexpr unsigned int TILES = (SIZE_M + ROWS - 1) / ROWS;
constexpr unsigned int V_AT = CHUNKS * PIECES * PART;
constexpr unsigned int WEIGHT_BYTES = V_AT + CHUNKS * ENDS * PART;
constexpr unsigned int TEAM_BYTES = (2 * PIECES + SLOTS) * PART;
constexpr unsigned int BARRIERS_AT = WEIGHT_BYTES + GROUPS * TEAM_BYTES;
static_assert(DEPTH % 64 == 0 && OTHERS % 64 == 0 && WIDE % 64 == 0 && (OUT == 64 || OUT == 128) && SLOTS >= 2, "pieces");

struct Team {
  Address memory, barriers;
  unsigned int team, thread;

  __device__ __forceinline__ Address x(unsigned int number) const {
    return memory + WEIGHT_BYTES + team * TEAM_BYTES + number % 2 * PIECES * PART;
  }
  __device__ __forceinline__ Address slot(unsigned int number) const {
    return memory + WEIGHT_BYTES + team * TEAM_BYTES + (2 * PIECES + number % SLOTS) * PART;
  }
  __device__ __forceinline__ Address x_came(unsigned int number) const {
    return barriers + 8 * (1 + team * (2 + SLOTS) + number % 2);
  }
  __device__ __forceinline__ Address slot_came(unsigned int number) const {
    return barriers + 8 * (1 + team * (2 + SLOTS) + 2 + number % SLOTS);
  }
  __device__ __forceinline__ unsigned int tile(unsigned int number) const {
    return block_index() + (number * GROUPS + team) * BLOCKS;
  }
};

extern "C" __global__ void __launch_bounds__(GROUPS * TEAM, 1)
    warpgroup_pair(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap v,
                   const __grid_constant__ TensorMap wide, const __grid_constant__ TensorMap out
#if OTHERS
                   ,
                   const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap shortcut
#endif
#if HAS_RESIDUAL
                   ,
                   const __grid_constant__ TensorMap residual
#endif
                   ,
                   const float* bias, const float* out_bias) {
  extern __shared__ Quad memory[];
  Team team;
  team.memory = (shared_address(memory) + 1023) & ~1023u, team.barriers = team.memory + BARRIERS_AT;
  team.team = thread_index() / TEAM, team.thread = thread_index() % TEAM;
  const unsigned int warp = team.thread / 32, lane = team.thread % 32;
  if (thread_index() == 0) {
    for (unsigned int barrier = 0; barrier < 1 + GROUPS * (2 + SLOTS); ++barrier) barrier_init(team.barriers + 8 * barrier, 1);
    barriers_initialised();
  }
  block_sync();
  if (thread_index() == 0) {  // weights need not wait for the kernel ahead
    barrier_expect(team.barriers, WEIGHT_BYTES);
    for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
      for (unsigned int depth = 0; depth < PIECES; ++depth) {
        const Address to = team.memory + (chunk * PIECES + depth) * PART;
#if OTHERS
        if (depth >= DEPTH / 64) {
          tile_load(to, shortcut, 64 * depth - DEPTH, 64 * chunk, team.barriers);
          continue;
        }
#endif
        tile_load(to, w, 64 * depth, 64 * chunk, team.barriers);
      }
      tile_load(team.memory + V_AT + chunk * ENDS * PART, v, 64 * chunk, 0, team.barriers);
    }
  }
  warp_sync();

  // What these ask for comes to this team alone; its first thread asks, and waits for stores that read the same place.
  const auto load_x = [&](unsigned int number) {
    if (team.tile(number) >= TILES) return;
    barrier_expect(team.x_came(number), PIECES * PART);
    for (unsigned int depth = 0; depth < PIECES; ++depth) {
      const Address to = team.x(number) + depth * PART;
#if OTHERS
      if (depth >= DEPTH / 64) {
        tile_load(to, source, 64 * depth - DEPTH, team.tile(number) * ROWS, team.x_came(number));
        continue;
      }
#endif
      tile_load(to, x, 64 * depth, team.tile(number) * ROWS, team.x_came(number));
    }
  };
  const auto load_slot = [&](unsigned int number) {
#if HAS_RESIDUAL
    constexpr unsigned int STEPS = CHUNKS + ENDS;  // of a tile, each with a slot
    const unsigned int chunk = number % STEPS, row = team.tile(number / STEPS) * ROWS;
    const bool there = chunk < CHUNKS && row < SIZE_M;
    barrier_expect(team.slot_came(number), there ? PART : 0);
    if (there) tile_load(team.slot(number), residual, 64 * chunk, row, team.slot_came(number));
#endif
  };
  wait_for_kernel_ahead();
  let_kernel_behind_start();
  if (team.thread == 0) {
    load_x(0);
    for (unsigned int number = 0; number + 1 < SLOTS; ++number) load_slot(number);
  }
  warp_sync();
  barrier_wait(team.barriers, 0);

  unsigned int step = 0;
  // The slot of this step is filled; that of the step before is asked for again as soon as its store has read it.
  const auto store = [&](const TensorMap& map, unsigned int column, unsigned int row) {
    show_to_stores();
    warps_sync(1 + team.team, TEAM);
    if (team.thread == 0) {
      tile_store(map, column, row, team.slot(step));
      stores_have_read<1>();
      load_slot(step + SLOTS - 1);
    }
    warp_sync();
    ++step;
  };
  const auto place = [&](unsigned int eight, unsigned int half) {
    return team.slot(step) + (16 * warp + lane / 4 + 8 * half) * LINE + (eight ^ lane / 4) * 16 + lane % 4 * 4;
  };

#pragma unroll 1
  for (unsigned int number = 0; team.tile(number) < TILES; ++number) {
    const unsigned int row = team.tile(number) * ROWS;
    if (team.thread == 0) load_x(number + 1);  // all have done with what lay there: they met since
    warp_sync();
    barrier_wait(team.x_came(number), number / 2 % 2);
    float ends[OUT / 2];
#pragma unroll 1
    for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
      float sums[32];
      products_begin();
#pragma unroll
      for (unsigned int depth = 0; depth < PIECES; ++depth) {
        const Matrix a = matrix_at(team.x(number) + depth * PART);
        const Matrix b = matrix_at(team.memory + (chunk * PIECES + depth) * PART);
#pragma unroll
        for (unsigned int inner = 0; inner < 4; ++inner) {
          multiply_rows(sums, a + inner * MATRIX_STEP, b + inner * MATRIX_STEP, depth > 0 || inner > 0);
        }
      }
      products_commit();
      products_are_done<0>();
      hold(sums);
#if HAS_RESIDUAL
      barrier_wait(team.slot_came(step), step / SLOTS % 2);
#else
      warps_sync(1 + team.team, TEAM);  // behind the thread that has waited for the store of what lay here
#endif
      unsigned int words[4][4];
#pragma unroll
      for (unsigned int eight = 0; eight < 8; ++eight) {
        const Two added = load_two(bias + 64 * chunk + 8 * eight + lane % 4 * 2);
#pragma unroll
        for (unsigned int half = 0; half < 2; ++half) {
          float low = sums[4 * eight + 2 * half] + added.low, high = sums[4 * eight + 2 * half + 1] + added.high;
#if HAS_RESIDUAL
          const unsigned int both = shared_load_word(place(eight, half));
          low += ::wide(static_cast<unsigned short>(both)), high += ::wide(static_cast<unsigned short>(both >> 16));
#endif
          if (RELU) low = greater(low, 0.0f), high = greater(high, 0.0f);
          const unsigned int word = narrow(low, high);
          shared_store(place(eight, half), word);
          words[eight / 2][eight % 2 * 2 + half] = word;
        }
      }
      store(wide, 64 * chunk, row);
      products_begin();
#pragma unroll
      for (unsigned int inner = 0; inner < 4; ++inner) {
        multiply_held(ends, words[inner], matrix_at(team.memory + V_AT + chunk * ENDS * PART) + inner * MATRIX_STEP,
                      chunk > 0 || inner > 0);
      }
      products_commit();
      products_are_done<0>();
      hold(ends);
    }
#pragma unroll
    for (unsigned int end = 0; end < ENDS; ++end) {
#if HAS_RESIDUAL
      barrier_wait(team.slot_came(step), step / SLOTS % 2);
#else
      warps_sync(1 + team.team, TEAM);
#endif
#pragma unroll
      for (unsigned int eight = 0; eight < 8; ++eight) {
        const Two added = load_two(out_bias + 64 * end + 8 * eight + lane % 4 * 2);
#pragma unroll
        for (unsigned int half = 0; half < 2; ++half) {
          const unsigned int at = 32 * end + 4 * eight + 2 * half;
          float low = ends[at] + added.low, high = ends[at + 1] + added.high;
          if (OUT_RELU) low = greater(low, 0.0f), high = greater(high, 0.0f);
          shared_store(place(eight, half), narrow(low, high));
        }
      }
      store(out, 64 * end, row);
    }
  }
  if (team.thread == 0) stores_have_read<0>();  // what they write is there when the kernel is over
  warp_sync();
}
