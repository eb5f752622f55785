// A product whose rows are asked for their largest number and its softmax: sums are never written.
//
// A warp keeps 16 TILES rows of x in registers and walks through some of the columns, thirty-two at a time, of which a lane
// sees eight for each of its rows: the largest so far, where it was, and the sum of exponents of what it saw. Lanes put
// theirs together at the end, parts of the columns are put together by another kernel. W lies in shared memory, the next
// stage on its way while one is multiplied; the depth is permuted alike for both, so that a lane reads sixteen bytes.
//
// Given by whoever compiles:
//   ROWS COLUMNS DEEP         of the product; DEEP a multiple of eight
//   X_PITCH                   numbers from one row of x to the next
//   TILES HIGH WIDE           row tiles of a warp, warps that share columns, warps that share rows
//   SPLITS                    blocks that share rows; parts are SPLITS times WIDE
//   HAS_BIAS
//   BFLOAT16                  defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int THREADS = 32 * HIGH * WIDE;
constexpr unsigned int PIECES = DEEP / 8, CHUNKS = (PIECES + 3) / 4;
constexpr unsigned int PITCH = 16 * ((4 * CHUNKS + 3) / 8 * 8 + 4);  // bytes: two columns lie in all banks
constexpr unsigned int GROUP = 4;                                    // tiles of eight columns, at a time
constexpr unsigned int STAGE = 8 * GROUP * (WIDE == 1 ? 2 : WIDE);   // columns
constexpr unsigned int STAGES = (COLUMNS + STAGE - 1) / STAGE, EACH = (STAGES + SPLITS - 1) / SPLITS;
constexpr unsigned int STAGE_BYTES = STAGE * PITCH;
constexpr unsigned int BLOCK_ROWS = 16 * TILES * HIGH;
constexpr unsigned int PARTS = SPLITS * WIDE;
constexpr float LOG2E = 1.4426950408889634f, LEAST = -1e38f;
static_assert(PITCH >= 64 * CHUNKS && DEEP % 8 == 0, "what a row takes");

struct Seen {
  float largest, place, total;

  // Columns come in their order, within a lane.
  __device__ __forceinline__ void add(const Seen& other) {
    const float top = greater(largest, other.largest);
    total = total * power_of_two((largest - top) * LOG2E) + other.total * power_of_two((other.largest - top) * LOG2E);
    const bool theirs = other.largest > largest || (other.largest == largest && other.place < place);
    place = theirs ? other.place : place;
    largest = top;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    walk_columns(const unsigned short* x, const unsigned short* w,
#if HAS_BIAS
                 const float* bias,
#endif
                 float* parts) {
  extern __shared__ Quad memory[];
  const unsigned int thread = thread_index(), lane = thread % 32, warp = thread / 32, row = lane / 4, quarter = lane % 4;
  const unsigned int across = warp % WIDE, down = warp / WIDE;
  const unsigned int split = block_index() % SPLITS, first_row = block_index() / SPLITS * BLOCK_ROWS + down * 16 * TILES;
  const Address stages = shared_address(memory);
  const unsigned int begin = split * EACH, end = begin + EACH < STAGES ? begin + EACH : STAGES;

  // What is beyond the depth stays zero.
  for (unsigned int item = thread; item < 2 * STAGE * (4 * CHUNKS - PIECES); item += THREADS) {
    const unsigned int line = item / (4 * CHUNKS - PIECES == 0 ? 1 : 4 * CHUNKS - PIECES);
    shared_store(stages + line * PITCH + (PIECES + item % (4 * CHUNKS - PIECES == 0 ? 1 : 4 * CHUNKS - PIECES)) * 16, Quad{0, 0, 0, 0});
  }
  const auto copy = [&](unsigned int stage) {
    for (unsigned int item = thread; item < STAGE * PIECES; item += THREADS) {
      const unsigned int line = item / PIECES, piece = item % PIECES, column = stage * STAGE + line;
      const bool there = column < COLUMNS;
      copy_ahead(stages + stage % 2 * STAGE_BYTES + line * PITCH + piece * 16,
                 reinterpret_cast<const Quad*>(w + (there ? column : 0) * DEEP + 8 * piece), there);
    }
    copies_commit();
  };
  if (begin < end) copy(begin);
  wait_for_kernel_ahead();
  let_kernel_behind_start();

  Quad left[TILES][CHUNKS][2];
#pragma unroll
  for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const unsigned int at = first_row + 16 * tile + 8 * half + row;
#pragma unroll
      for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
        const unsigned int piece = 4 * chunk + quarter;
        left[tile][chunk][half] = Quad{0, 0, 0, 0};
        if (at < ROWS && piece < PIECES) {
          left[tile][chunk][half] = load_fresh(reinterpret_cast<const Quad*>(x + at * X_PITCH + 8 * piece));
        }
      }
    }
  }
  Seen seen[TILES][2];
#pragma unroll
  for (unsigned int tile = 0; tile < TILES; ++tile) seen[tile][0] = seen[tile][1] = Seen{LEAST, 0.0f, 0.0f};

#pragma unroll 1
  for (unsigned int stage = begin; stage < end; ++stage) {
    copies_are_done();
    block_sync();
    if (stage + 1 < end) copy(stage + 1);
#pragma unroll 1
    for (unsigned int group = across; group < STAGE / 8 / GROUP; group += WIDE) {
      const unsigned int line = group * 8 * GROUP, column = stage * STAGE + line + 2 * quarter;
      float sums[TILES][GROUP][4];
#pragma unroll
      for (unsigned int each = 0; each < GROUP; ++each) {
#pragma unroll
        for (unsigned int number = 0; number < 2; ++number) {
          const unsigned int at = column + 8 * each + number;
          float offset = number_of(0xff800000u);  // minus infinity
#if HAS_BIAS
          if (at < COLUMNS) offset = bias[at];
#else
          if (at < COLUMNS) offset = 0.0f;
#endif
#pragma unroll
          for (unsigned int tile = 0; tile < TILES; ++tile) sums[tile][each][number] = sums[tile][each][2 + number] = offset;
        }
      }
      const Address from = stages + stage % 2 * STAGE_BYTES + (line + row) * PITCH + 16 * quarter;
#pragma unroll
      for (unsigned int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
        for (unsigned int each = 0; each < GROUP; ++each) {
          const Quad right = shared_load_quad(from + 8 * each * PITCH + 64 * chunk);
#pragma unroll
          for (unsigned int tile = 0; tile < TILES; ++tile) {
            const Quad &above = left[tile][chunk][0], &below = left[tile][chunk][1];
            multiply_add(sums[tile][each], Quad{above.x, below.x, above.y, below.y}, right.x, right.y);
            multiply_add(sums[tile][each], Quad{above.z, below.z, above.w, below.w}, right.z, right.w);
          }
        }
      }
#pragma unroll
      for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (unsigned int half = 0; half < 2; ++half) {
          Seen& own = seen[tile][half];
          float here = sums[tile][0][2 * half];
#pragma unroll
          for (unsigned int number = 1; number < 2 * GROUP; ++number) {
            here = greater(here, sums[tile][number / 2][2 * half + number % 2]);
          }
          if (here > own.largest) {
            unsigned int found = 0;
#pragma unroll
            for (unsigned int number = 2 * GROUP; number-- > 0;) {
              if (sums[tile][number / 2][2 * half + number % 2] == here) found = 8 * (number / 2) + number % 2;
            }
            own.place = static_cast<float>(column + found);
          }
          const float top = greater(own.largest, here), offset = top * -LOG2E;
          float total = own.total * power_of_two((own.largest - top) * LOG2E);  // of equals 1, however large
#pragma unroll
          for (unsigned int number = 0; number < 2 * GROUP; ++number) {
            total += power_of_two(sums[tile][number / 2][2 * half + number % 2] * LOG2E + offset);
          }
          own.total = total, own.largest = top;
        }
      }
    }
  }

#pragma unroll
  for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      Seen own = seen[tile][half];
#pragma unroll
      for (unsigned int apart = 1; apart < 4; apart *= 2) {
        const unsigned int other = lane ^ apart;
        own.add(Seen{from_lane(own.largest, other), from_lane(own.place, other), from_lane(own.total, other)});
      }
      const unsigned int at = first_row + 16 * tile + 8 * half + row;
      if (quarter == 0 && at < ROWS) {
        float* to = parts + at * PARTS + split * WIDE + across;
        to[0] = own.largest, to[ROWS * PARTS] = own.place, to[2 * ROWS * PARTS] = own.total;
      }
    }
  }
}
