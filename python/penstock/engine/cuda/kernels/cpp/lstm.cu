// The recurrence of an LSTM layer, all steps in one kernel: gates += h W^T, then c and h, one step after the other.
//
// A cluster of CLUSTER blocks has one direction and 8 TILES rows of the batch. Each block makes HIDDEN / CLUSTER units,
// each warp eight of them, all four gates; its weights stay in registers from the first step to the last, and so does
// the cell state. What a step needs of the one before are all units of h: every warp stores its eight into every
// block's shared memory, where a barrier counts the bytes. Two buffers take turns: nobody writes a buffer again before
// all of the step that was read from it has arrived, which the readers sent.
//
// The product is W [gates x units, depth] times h^T [depth, batch], sixteen rows of W at a time: eight units of two
// gates, so that one lane gets all four gates of its units. With SPLIT warps to the same units each takes a part of
// the depth.
//
// Given by whoever compiles:
//   TIME BATCH HIDDEN DIRECTIONS   of the layer; HIDDEN a multiple of 32
//   CLUSTER SPLIT TILES            how it is cut; HIDDEN / 8 a multiple of CLUSTER, HIDDEN / 32 one of SPLIT
//   PRODUCT_TIME PRODUCT_BATCH     numbers from one step of the products to the next, and from one row to the next
//   HAS_HIDDEN HAS_CELL            whether a state to begin with is given; without it is zero
//   WIDE_PRODUCTS WIDE_OUTPUT WIDE_STATES   whether they are FP32 and not of the type that is computed in
//   ROUGH                          activations by the fastest instruction, right to 2^-11
//   BFLOAT16                       defined: BF16 is computed in, else FP16
#include "primitives.cuh"

constexpr unsigned int WARP = 32;
constexpr unsigned int TILE_BYTES = 128;  // eight units of eight rows
constexpr unsigned int UNIT_GROUPS = HIDDEN / 8;
constexpr unsigned int GROUPS = UNIT_GROUPS / CLUSTER;  // of a block
constexpr unsigned int WARPS = GROUPS * SPLIT;
constexpr unsigned int DEPTHS = HIDDEN / 16 / SPLIT;  // of sixteen, of a warp
constexpr unsigned int STATE_BYTES = UNIT_GROUPS * TILE_BYTES * TILES;  // of h in one buffer: [tile][unit group][row][unit]
constexpr unsigned int PARTS_BYTES = GROUPS * (SPLIT - 1) * 2 * TILES * WARP * sizeof(Floats);  // of sums, of a step
constexpr unsigned int BATCH_TILES = (BATCH + 8 * TILES - 1) / (8 * TILES);
// Sums that don't wait for each other; the products of a warp are few and long under way.
constexpr unsigned int FREE_CHAINS = TILES >= 4 ? 1 : 4 / TILES;
constexpr unsigned int CHAINS = FREE_CHAINS < DEPTHS ? FREE_CHAINS : DEPTHS;

static_assert(HIDDEN % 32 == 0 && UNIT_GROUPS % CLUSTER == 0 && HIDDEN / 32 % SPLIT == 0, "how the layer is cut");

#if WIDE_PRODUCTS
using Gates = Floats;  // of one unit and row: i, f, c, o
__device__ __forceinline__ void spread(const Gates& gates, float (&found)[4]) {
  found[0] = gates.x, found[1] = gates.y, found[2] = gates.z, found[3] = gates.w;
}
#else
using Gates = Pair;
__device__ __forceinline__ void spread(const Gates& gates, float (&found)[4]) {
  found[0] = wide(static_cast<unsigned short>(gates.x)), found[1] = wide(static_cast<unsigned short>(gates.x >> 16));
  found[2] = wide(static_cast<unsigned short>(gates.y)), found[3] = wide(static_cast<unsigned short>(gates.y >> 16));
}
#endif

#if WIDE_OUTPUT
using Output = float;
#else
using Output = unsigned short;
#endif

#if WIDE_STATES
using State = float;
#else
using State = unsigned short;
#endif

__device__ __forceinline__ float sigmoid(float x) {
#if ROUGH
  return 0.5f * rough_tanh(0.5f * x) + 0.5f;
#else
  return reciprocal(1.0f + power_of_two(x * -1.4426950408889634f));
#endif
}

__device__ __forceinline__ float hyperbolic_tangent(float x) {
#if ROUGH
  return rough_tanh(x);
#else
  return 2.0f * reciprocal(1.0f + power_of_two(x * -2.8853900817779268f)) - 1.0f;
#endif
}

// Two neighbours in memory, from both in one word.
__device__ __forceinline__ void store_pair(unsigned short* to, unsigned int both) {
  *reinterpret_cast<unsigned int*>(to) = both;
}

__device__ __forceinline__ void store_pair(float* to, unsigned int both) {
  to[0] = wide(static_cast<unsigned short>(both));
  to[1] = wide(static_cast<unsigned short>(both >> 16));
}

__device__ __forceinline__ void store_number(unsigned short* to, float value) {
  *to = static_cast<unsigned short>(narrow(value, value));
}

__device__ __forceinline__ void store_number(float* to, float value) { *to = value; }

// Where a thread works.
struct Place {
  unsigned int lane, part, unit_group, direction, first_row;

  __device__ __forceinline__ unsigned int unit() const { return 8 * unit_group + lane / 4; }
  // Of the products, a lane has two rows of one unit: this one and the next.
  __device__ __forceinline__ unsigned int row(unsigned int tile) const { return first_row + 8 * tile + 2 * (lane % 4); }
};

// What x adds to the gates in one step.
__device__ __forceinline__ void load_products(const Gates* products, const Place& at, unsigned int time,
                                              Gates (&found)[TILES][2]) {
  for (unsigned int tile = 0; tile < TILES; ++tile) {
    for (unsigned int which = 0; which < 2; ++which) {
      const unsigned int row = at.row(tile) + which;
      const unsigned long long offset = static_cast<unsigned long long>(time) * (PRODUCT_TIME / 4) +
                                        static_cast<unsigned long long>(row) * (PRODUCT_BATCH / 4) +
                                        at.direction * HIDDEN + at.unit();
      if (row < BATCH) {
        found[tile][which] = load_fresh(products + offset);
      } else {
        found[tile][which] = Gates{};
      }
    }
  }
}

// The first kernel parameter: weights as `lstm.packed` lays them out, [direction][unit group][depth][2][lane].
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(WARPS* WARP, 1)
    lstm_recurrence(const Quad* weights, const Gates* products,
#if HAS_HIDDEN
                    const unsigned short* first_hidden,
#endif
#if HAS_CELL
                    const unsigned short* first_cell,
#endif
                    Output* output, State* last_hidden, State* last_cell) {
  extern __shared__ Quad memory[];
  __shared__ Barrier barriers[2];
  const Address state = shared_address(memory), barrier = shared_address(barriers);
  const unsigned int rank = cluster_rank(), warp = thread_index() / WARP, group = warp / SPLIT;
  const unsigned int team = block_index() / CLUSTER;
  const Place at{thread_index() % WARP, warp % SPLIT, rank * GROUPS + group, team / BATCH_TILES,
                 team % BATCH_TILES * 8 * TILES};

  if (thread_index() == 0) {
    barrier_init(barrier, 1);
    barrier_init(barrier + sizeof(Barrier), 1);
    barriers_initialised();
  }
  cluster_arrive();

  Quad held[DEPTHS][2];
  const Quad* mine =
      weights + ((at.direction * UNIT_GROUPS + at.unit_group) * SPLIT + at.part) * (DEPTHS * 2 * WARP) + at.lane;
#pragma unroll
  for (unsigned int depth = 0; depth < DEPTHS; ++depth) {
    held[depth][0] = load_constant(mine + (2 * depth) * WARP);
    held[depth][1] = load_constant(mine + (2 * depth + 1) * WARP);
  }
  cluster_wait();
  wait_for_kernel_ahead();
  let_kernel_behind_start();

#if HAS_HIDDEN
  for (unsigned int word = thread_index(); word < STATE_BYTES / 4; word += WARPS * WARP) {
    const unsigned int unit = word / 32 % UNIT_GROUPS * 8 + word % 4 * 2;
    const unsigned int row = at.first_row + word / (32 * UNIT_GROUPS) * 8 + word / 4 % 8;
    unsigned int both = 0;
    if (row < BATCH) {
      const unsigned short* from = first_hidden + (at.direction * BATCH + row) * HIDDEN + unit;
      both = load_fresh(from) | static_cast<unsigned int>(load_fresh(from + 1)) << 16;
    }
    shared_store(state + 4 * word, both);
  }
  block_sync();
#endif

  float cell[TILES][2], hidden[TILES][2];
#pragma unroll
  for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (unsigned int which = 0; which < 2; ++which) {
      cell[tile][which] = 0.0f, hidden[tile][which] = 0.0f;
#if HAS_CELL
      const unsigned int row = at.row(tile) + which;
      if (row < BATCH) cell[tile][which] = wide(load_fresh(first_cell + (at.direction * BATCH + row) * HIDDEN + at.unit()));
#endif
    }
  }

  Gates next[TILES][2];
  load_products(products, at, at.direction ? TIME - 1 : 0, next);

#pragma unroll 1
  for (unsigned int step = 0; step < TIME; ++step) {
    const unsigned int time = at.direction ? TIME - 1 - step : step;
    const Address now = state + step % 2 * STATE_BYTES, then = state + (step + 1) % 2 * STATE_BYTES;
    const Address then_barrier = barrier + (step + 1) % 2 * sizeof(Barrier);

    float sums[CHAINS][2][TILES][4];  // [..][gates i and f, gates c and o][..][first gate's two rows, second's]
#pragma unroll
    for (unsigned int chain = 0; chain < CHAINS; ++chain) {
#pragma unroll
      for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (unsigned int number = 0; number < 4; ++number) {
          sums[chain][0][tile][number] = 0.0f, sums[chain][1][tile][number] = 0.0f;
        }
      }
    }
    if (at.part == 0) {
#pragma unroll
      for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (unsigned int which = 0; which < 2; ++which) {
          float gates[4];
          spread(next[tile][which], gates);
          sums[0][0][tile][which] = gates[0], sums[0][0][tile][2 + which] = gates[1];
          sums[0][1][tile][which] = gates[2], sums[0][1][tile][2 + which] = gates[3];
        }
      }
      if (step + 1 < TIME) load_products(products, at, at.direction ? time - 1 : time + 1, next);
    }

    if (step > 0) barrier_wait(barrier + step % 2 * sizeof(Barrier), (step - 1) / 2 % 2);
    if (thread_index() == 0 && step + 1 < TIME) barrier_expect(then_barrier, STATE_BYTES);

    if (HAS_HIDDEN || step > 0) {
#pragma unroll
      for (unsigned int depth = 0; depth < DEPTHS; depth += 2) {
#pragma unroll
        for (unsigned int tile = 0; tile < TILES; ++tile) {
          const Quad h = load_matrices(now + (tile * UNIT_GROUPS + 2 * (at.part * DEPTHS + depth)) * TILE_BYTES +
                                       at.lane * sizeof(Quad));
          multiply_add(sums[depth % CHAINS][0][tile], held[depth][0], h.x, h.y);
          multiply_add(sums[depth % CHAINS][1][tile], held[depth][1], h.x, h.y);
          multiply_add(sums[(depth + 1) % CHAINS][0][tile], held[depth + 1][0], h.z, h.w);
          multiply_add(sums[(depth + 1) % CHAINS][1][tile], held[depth + 1][1], h.z, h.w);
        }
      }
    }
#pragma unroll
    for (unsigned int half = CHAINS / 2; half > 0; half /= 2) {
#pragma unroll
      for (unsigned int chain = 0; chain < half; ++chain) {
#pragma unroll
        for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
          for (unsigned int number = 0; number < 4; ++number) {
            sums[chain][0][tile][number] += sums[chain + half][0][tile][number];
            sums[chain][1][tile][number] += sums[chain + half][1][tile][number];
          }
        }
      }
    }

    if (SPLIT > 1) {  // the first of the warps to a group of units gathers the sums of the others
      // Of this step: those of the one before may still be read, as far as the barrier of these warps knows.
      const Address parts = state + 2 * STATE_BYTES + step % 2 * PARTS_BYTES +
                            (group * (SPLIT - 1) * 2 * TILES * WARP + at.lane) * sizeof(Floats);
      if (at.part > 0) {
#pragma unroll
        for (unsigned int number = 0; number < 2 * TILES; ++number) {
          shared_store(parts + ((at.part - 1) * 2 * TILES + number) * WARP * sizeof(Floats),
                       sums[0][number / TILES][number % TILES]);
        }
      }
      warps_sync(1 + group, SPLIT * WARP);
      if (at.part > 0) continue;
#pragma unroll
      for (unsigned int number = 0; number < (SPLIT - 1) * 2 * TILES; ++number) {
        const Floats more = shared_load_floats(parts + number * WARP * sizeof(Floats));
        float(&sum)[4] = sums[0][number / TILES % 2][number % TILES];
        sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
      }
    }

#pragma unroll
    for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
      for (unsigned int which = 0; which < 2; ++which) {
        const float in = sigmoid(sums[0][0][tile][which]), forget = sigmoid(sums[0][0][tile][2 + which]);
        const float fresh = hyperbolic_tangent(sums[0][1][tile][which]), out = sigmoid(sums[0][1][tile][2 + which]);
        cell[tile][which] = forget * cell[tile][which] + in * fresh;
        hidden[tile][which] = out * hyperbolic_tangent(cell[tile][which]);
      }
      const unsigned int both = transposed(narrow(hidden[tile][0], hidden[tile][1]));  // of row lane / 4, two units
      if (step + 1 < TIME) {
        const unsigned int piece = at.lane % 8;
        const Quad units{from_lane(both, 4 * piece), from_lane(both, 4 * piece + 1), from_lane(both, 4 * piece + 2),
                         from_lane(both, 4 * piece + 3)};
        const Address to = then + (tile * UNIT_GROUPS + at.unit_group) * TILE_BYTES + piece * sizeof(Quad);
#pragma unroll
        for (unsigned int first = 0; first < CLUSTER; first += 4) {
          const unsigned int block = first + at.lane / 8;
          if (CLUSTER % 4 == 0 || block < CLUSTER) {
            store_async(address_in_block(to, block), units, address_in_block(then_barrier, block));
          }
        }
      }
      const unsigned int row = at.first_row + 8 * tile + at.lane / 4;
      if (row < BATCH) {
        const unsigned long long offset = ((static_cast<unsigned long long>(time) * BATCH + row) * DIRECTIONS +
                                           at.direction) * HIDDEN + 8 * at.unit_group + at.lane % 4 * 2;
        store_pair(output + offset, both);
      }
    }
  }

  if (at.part == 0) {
#pragma unroll
    for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
      for (unsigned int which = 0; which < 2; ++which) {
        const unsigned int row = at.row(tile) + which;
        if (row < BATCH) {
          const unsigned int offset = (at.direction * BATCH + row) * HIDDEN + at.unit();
          store_number(last_hidden + offset, hidden[tile][which]);
          store_number(last_cell + offset, cell[tile][which]);
        }
      }
    }
  }
}
