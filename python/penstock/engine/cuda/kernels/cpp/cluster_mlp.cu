// Two layers of few rows in one kernel: out = act(W2 act(W1 x + b1) + b2), with a gate on x and something added at the end.
//
// A cluster of CLUSTER blocks has sixteen rows. Each block makes HIDDEN / CLUSTER of the values in between, and multiplies
// them by its part of the second layer's depth; so each weight is read by one block of the cluster, into registers,
// before the kernel ahead has ended. The sums of the parts go into the shared memory of the block that has those columns,
// where a barrier counts the bytes.
//
// Given by whoever compiles:
//   ROWS WIDE HIDDEN OUT           rows, and numbers of each that are read, in between and made
//   CLUSTER WARPS                  how it is cut
//   GATED                          0, or the rows of an image, which has one gate
//   ADDED                          0 nothing, 1 what was read (gated), 2 `residual`
//   ADDED_LAST                     whether behind the activation
//   HAS_FIRST_BIAS HAS_SECOND_BIAS
//   INNER OUTER                    activations: 0 none, 1 relu, 4 silu, 8 gelu
//   BFLOAT16                       defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int RELU = 1, SILU = 4, GELU = 8;
constexpr unsigned int THREADS = 32 * WARPS;
constexpr unsigned int PART = HIDDEN / CLUSTER;
constexpr unsigned int OWN = OUT / CLUSTER;
constexpr unsigned int FIRSTS = PART / 8 / WARPS;   // tiles of eight columns, of a warp
constexpr unsigned int SECONDS = OUT / 8 / WARPS;
constexpr unsigned int PIECES = (WIDE + 31) / 32;   // of a row: what a lane reads of each is sixteen bytes
constexpr unsigned int DEPTHS = PART / 16;
constexpr unsigned int PITCH = 2 * PART + 16;       // bytes, of a row in between
constexpr unsigned int ITEMS = 2 * OWN;             // of eight numbers, made by a block
constexpr unsigned int ROUNDS = (ITEMS + THREADS - 1) / THREADS;
constexpr unsigned int SENT = 16 * OWN * 4;         // bytes, from a block to another
static_assert(PART % (8 * WARPS) == 0 && OUT % (16 * WARPS) == 0 && PART % 16 == 0 && OWN % 8 == 0, "how it is cut");

// How much of a normal distribution is below x, as `activations.normal_share`.
__device__ __forceinline__ float normal_share(float x) {
  const float within = smaller(greater(x, -4.4f), 4.4f);
  const float t = within * within;
  float y = 3.569430515049099e-11f * t - 3.754050403870224e-09f;
  y = y * t + 1.7408477503977338e-07f;
  y = y * t - 4.724869086203398e-06f;
  y = y * t + 8.429303125012666e-05f;
  y = y * t - 0.0010549925500527024f;
  y = y * t + 0.009643028490245342f;
  y = y * t - 0.06607642769813538f;
  y = y * t + 0.3987616002559662f;
  return within * y + 0.5f;
}

template <unsigned int ACTIVATION>
__device__ __forceinline__ float activated(float x) {
  if (ACTIVATION == RELU) return greater(x, 0.0f);
  if (ACTIVATION == SILU) return x * reciprocal(1.0f + power_of_two(x * -1.4426950408889634f));
  if (ACTIVATION == GELU) return x * normal_share(x);
  return x;
}

__device__ __forceinline__ float low(unsigned int both) { return wide(static_cast<unsigned short>(both)); }
__device__ __forceinline__ float high(unsigned int both) { return wide(static_cast<unsigned short>(both >> 16)); }

__device__ __forceinline__ unsigned int times(unsigned int one, unsigned int other) {
#ifdef BFLOAT16
  return narrow(low(one) * low(other), high(one) * high(other));
#else
  return halves_multiply_add(one, other, 0x80008000u);  // minus zero: that of a product stays what it is
#endif
}

__device__ __forceinline__ Quad times(Quad one, Quad other) {
  return Quad{times(one.x, other.x), times(one.y, other.y), times(one.z, other.z), times(one.w, other.w)};
}

// What a warp multiplies by: tiles of eight columns, a piece of the depth each.
struct Weights {
  Quad first[FIRSTS][PIECES];
  Pair second[SECONDS][DEPTHS];

  __device__ __forceinline__ void load(const unsigned short* w1, const unsigned short* w2, unsigned int rank,
                                       unsigned int warp, unsigned int lane) {
    const unsigned int row = lane / 4, quarter = lane % 4;
#pragma unroll
    for (unsigned int tile = 0; tile < FIRSTS; ++tile) {
      const unsigned short* from = w1 + (rank * PART + (warp * FIRSTS + tile) * 8 + row) * WIDE;
#pragma unroll
      for (unsigned int piece = 0; piece < PIECES; ++piece) {
        const unsigned int at = 32 * piece + 8 * quarter;
        first[tile][piece] = Quad{0, 0, 0, 0};
        if (WIDE % 32 == 0 || at < WIDE) first[tile][piece] = load_constant(reinterpret_cast<const Quad*>(from + at));
      }
    }
#pragma unroll
    for (unsigned int tile = 0; tile < SECONDS; ++tile) {
      // Of two tiles a lane has four columns that lie side by side.
      const unsigned int column = (warp * SECONDS + tile / 2 * 2) * 8 + row / 2 * 4 + tile % 2 * 2 + row % 2;
      const unsigned short* from = w2 + column * HIDDEN + rank * PART + 4 * quarter;
#pragma unroll
      for (unsigned int depth = 0; depth < DEPTHS; ++depth) {
        second[tile][depth] = load_constant(reinterpret_cast<const Pair*>(from + 16 * depth));
      }
    }
  }
};

// Two rows of x, as a lane multiplies them.
struct Rows {
  Quad pieces[PIECES][2];
#if GATED
  Quad gates[PIECES];
#endif

  __device__ __forceinline__ void load(const unsigned short* x, const unsigned short* gate, unsigned int tile,
                                       unsigned int lane) {
    const unsigned int row = tile * 16 + lane / 4, quarter = lane % 4;
#pragma unroll
    for (unsigned int piece = 0; piece < PIECES; ++piece) {
      const unsigned int at = 32 * piece + 8 * quarter;
      const bool there = WIDE % 32 == 0 || at < WIDE;
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
        // Rows that are not there are the last one once more, and are not stored.
        const unsigned int each = row + 8 * half < ROWS ? row + 8 * half : ROWS - 1;
        pieces[piece][half] = Quad{0, 0, 0, 0};
        if (there) pieces[piece][half] = load_fresh(reinterpret_cast<const Quad*>(x + each * WIDE + at));
      }
#if GATED
      gates[piece] = Quad{0, 0, 0, 0};
      if (there) gates[piece] = load_fresh(reinterpret_cast<const Quad*>(gate + tile * 16 / GATED * WIDE + at));
#endif
    }
  }

  // Two sums for each result, which don't wait for each other.
  __device__ __forceinline__ void multiply(float (&sums)[2][FIRSTS][4], const Weights& weights) const {
#pragma unroll
    for (unsigned int piece = 0; piece < PIECES; ++piece) {
#if GATED
      const Quad above = times(pieces[piece][0], gates[piece]), below = times(pieces[piece][1], gates[piece]);
#else
      const Quad above = pieces[piece][0], below = pieces[piece][1];
#endif
      const Quad even = Quad{above.x, below.x, above.y, below.y}, odd = Quad{above.z, below.z, above.w, below.w};
#pragma unroll
      for (unsigned int each = 0; each < FIRSTS; ++each) {
        const Quad& weight = weights.first[each][piece];
        multiply_add(sums[0][each], even, weight.x, weight.y);
        multiply_add(sums[1][each], odd, weight.z, weight.w);
      }
    }
  }
};

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    cluster_mlp(const unsigned short* x,
#if GATED
                const unsigned short* gate,
#endif
                const unsigned short* w1,
#if HAS_FIRST_BIAS
                const float* b1,
#endif
                const unsigned short* w2,
#if HAS_SECOND_BIAS
                const float* b2,
#endif
#if ADDED == 2
                const unsigned short* residual,
#endif
                unsigned short* out) {
  extern __shared__ Quad memory[];
  __shared__ Barrier barriers[2];
#if !GATED
  const unsigned short* gate = nullptr;
#endif
  const unsigned int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  const unsigned int rank = cluster_rank(), row = lane / 4, quarter = lane % 4, tile = block_index() / CLUSTER;
  const Address between = shared_address(memory), parts = between + 16 * PITCH, barrier = shared_address(barriers);
  if (thread == 0) {
    barrier_init(barrier, 1);
    barriers_initialised();
    barrier_expect(barrier, CLUSTER * SENT);
  }
  cluster_arrive();

  Weights weights;
  weights.load(w1, w2, rank, warp, lane);
  float offsets[FIRSTS][2] = {};
#if HAS_FIRST_BIAS
#pragma unroll
  for (unsigned int tile = 0; tile < FIRSTS; ++tile) {
    const float* from = b1 + rank * PART + (warp * FIRSTS + tile) * 8 + 2 * quarter;
    offsets[tile][0] = from[0], offsets[tile][1] = from[1];
  }
#endif
  // The second bias is one block's to add.
  float ends[SECONDS][2] = {};
#if HAS_SECOND_BIAS
#pragma unroll
  for (unsigned int tile = 0; tile < SECONDS; ++tile) {
    const float* from = b2 + (warp * SECONDS + tile / 2 * 2) * 8 + 4 * quarter + tile % 2 * 2;
    if (rank == 0) ends[tile][0] = from[0], ends[tile][1] = from[1];
  }
#endif
  cluster_wait();
  wait_for_kernel_ahead();
  let_kernel_behind_start();

  Rows rows;
  rows.load(x, gate, tile, lane);
  Quad added[ROUNDS] = {};
#if ADDED
#pragma unroll
  for (unsigned int round = 0; round < ROUNDS; ++round) {
    const unsigned int item = round * THREADS + thread, at = tile * 16 + item / (OWN / 8);
    const unsigned int column = rank * OWN + item % (OWN / 8) * 8;
    if (item < ITEMS && at < ROWS) {
#if ADDED == 1
      added[round] = load_fresh(reinterpret_cast<const Quad*>(x + at * WIDE + column));
#if GATED
      added[round] = times(added[round], load_fresh(reinterpret_cast<const Quad*>(gate + at / GATED * WIDE + column)));
#endif
#else
      added[round] = load_fresh(reinterpret_cast<const Quad*>(residual + at * OUT + column));
#endif
    }
  }
#endif

  float sums[2][FIRSTS][4];
#pragma unroll
  for (unsigned int each = 0; each < FIRSTS; ++each) {
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
      sums[0][each][number] = offsets[each][number % 2], sums[1][each][number] = 0.0f;
    }
  }
  rows.multiply(sums, weights);
#pragma unroll
  for (unsigned int each = 0; each < FIRSTS; ++each) {
    const Address to = between + row * PITCH + ((warp * FIRSTS + each) * 8 + 2 * quarter) * 2;
    float made[4];
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
      made[number] = activated<INNER>(sums[0][each][number] + sums[1][each][number]);
    }
    shared_store(to, narrow(made[0], made[1]));
    shared_store(to + 8 * PITCH, narrow(made[2], made[3]));
  }
  block_sync();

  float totals[SECONDS][4];
#pragma unroll
  for (unsigned int each = 0; each < SECONDS; ++each) {
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) totals[each][number] = ends[each][number % 2];
  }
#pragma unroll
  for (unsigned int depth = 0; depth < DEPTHS; ++depth) {
    const Address from = between + row * PITCH + 32 * depth + 8 * quarter;
    const Pair above = shared_load(from), below = shared_load(from + 8 * PITCH);
    const Quad left = Quad{above.x, below.x, above.y, below.y};
#pragma unroll
    for (unsigned int each = 0; each < SECONDS; ++each) {
      multiply_add(totals[each], left, weights.second[each][depth].x, weights.second[each][depth].y);
    }
  }
  // To whom those columns belong.
#pragma unroll
  for (unsigned int each = 0; each < SECONDS; each += 2) {
    const unsigned int column = (warp * SECONDS + each) * 8 + 4 * quarter, owner = column / OWN;
    const Address place = parts + rank * SENT + (row * OWN + column % OWN) * 4;
    const Address there = address_in_block(place, owner), counted = address_in_block(barrier, owner);
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const Quad sum = Quad{bits_of(totals[each][2 * half]), bits_of(totals[each][2 * half + 1]),
                            bits_of(totals[each + 1][2 * half]), bits_of(totals[each + 1][2 * half + 1])};
      store_async(there + half * 8 * OWN * 4, sum, counted);
    }
  }
  barrier_wait(barrier, 0);
#pragma unroll
  for (unsigned int round = 0; round < ROUNDS; ++round) {
    const unsigned int item = round * THREADS + thread, at = tile * 16 + item / (OWN / 8);
    if (item < ITEMS && at < ROWS) {
      const unsigned int column = item % (OWN / 8) * 8;
      float y[8] = {};
#pragma unroll
      for (unsigned int from = 0; from < CLUSTER; ++from) {
        const Address place = parts + from * SENT + (item / (OWN / 8) * OWN + column) * 4;
        const Floats one = shared_load_floats(place), other = shared_load_floats(place + 16);
        y[0] += one.x, y[1] += one.y, y[2] += one.z, y[3] += one.w;
        y[4] += other.x, y[5] += other.y, y[6] += other.z, y[7] += other.w;
      }
      const unsigned int more[4] = {added[round].x, added[round].y, added[round].z, added[round].w};
      unsigned int made[4];
#pragma unroll
      for (unsigned int pair = 0; pair < 4; ++pair) {
        float one = y[2 * pair], other = y[2 * pair + 1];
        const float plus = ADDED ? low(more[pair]) : 0.0f, also = ADDED ? high(more[pair]) : 0.0f;
        if (!ADDED_LAST) one += plus, other += also;
        one = activated<OUTER>(one), other = activated<OUTER>(other);
        if (ADDED_LAST) one += plus, other += also;
        made[pair] = narrow(one, other);
      }
      *reinterpret_cast<Quad*>(out + at * OUT + rank * OWN + column) = Quad{made[0], made[1], made[2], made[3]};
    }
  }
}
