// A stem and the pool behind it: a window of TAPS rows of eight pixels of four channels, every other pixel of every other
// row, and the largest of each 3 x 3 of what that makes, every other one too. The wide map in between stays in registers.
//
// A block has ROWS rows of one image's result, a warp sixteen channels of them; its weights stay in registers. Rows of
// the picture lie in shared memory as they are, sixteen at most, each read once by the block: windows overlap, and so
// does what a warp reads of a row for its products, where column 2 j and column 2 j + 1 are rows j and j + 8 of the left
// matrix. So the maximum of both is one lane's, and that with column 2 j - 1 the neighbour's. Rows of the picture serve
// two rows of the window's results at once. Maxima are taken of sums: what comes behind never lets a smaller one pass a
// larger one.
//
// Given by whoever compiles:
//   TAPS                       of the window, downwards: 2 to 8
//   UNITS                      of eight numbers in a row of the picture, which is dense: results in a row and three
//   IMAGE_UNITS                from one image to the next
//   POOL_HIGH POOL_WIDE        of the result; the map between has twice as many rows and columns
//   FILTERS                    sixteen for each warp
//   ROWS                       of the result, of one block
//   RELU                       whether negative results become zero
//   BYTES                      whether INT8 is multiplied, else sixteen bits; needs `scale`
//   NARROW_OUTPUT              whether the result is INT8, of which scale and bias say how many steps
//   RESIDENT                   blocks of a multiprocessor at a time
//   BFLOAT16                   defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int TILES = (POOL_WIDE + 7) / 8;
constexpr unsigned int SLOTS = 16;  // nine rows that a step reads, four that the next one does
constexpr unsigned int READ = TAPS + 2;  // rows of the picture for two of the map
constexpr unsigned int BLOCKS_HIGH = (POOL_HIGH + ROWS - 1) / ROWS;
constexpr unsigned int THREADS = FILTERS * 2;
constexpr unsigned int LOADS = (UNITS + THREADS - 1) / THREADS;  // of each row, for each thread
static_assert(READ + 4 <= SLOTS && FILTERS % 16 == 0, "what a block keeps");

#if BYTES
using Sum = int;
using Unit = Pair;  // eight numbers
constexpr Sum LEAST = -2147483647;
constexpr unsigned int STEPS = 1;  // of thirty-two numbers: a row of the window
constexpr unsigned int SLOT = 128 * TILES + 32;
#else
using Sum = float;
using Unit = Quad;
constexpr Sum LEAST = -3.402823466e38f;
constexpr unsigned int STEPS = 2;
constexpr unsigned int HALF = 16 * (8 * TILES + 2);  // even units, then odd ones: neighbours are in other banks
constexpr unsigned int SLOT = 2 * HALF;
#endif

__device__ __forceinline__ int larger(int one, int other) { return one > other ? one : other; }
__device__ __forceinline__ float larger(float one, float other) { return greater(one, other); }  // NaN if either is

__device__ __forceinline__ Address place(Address memory, unsigned int row, unsigned int unit) {
#if BYTES
  return memory + row % SLOTS * SLOT + 8 * unit;
#else
  return memory + row % SLOTS * SLOT + unit % 2 * HALF + 16 * (unit / 2);
#endif
}

struct Filters {
  unsigned int words[TAPS][STEPS][2][2];  // columns: eight channels, and the eight between them

  __device__ __forceinline__ void load(const unsigned int* from, unsigned int warp, unsigned int lane) {
    constexpr unsigned int WORDS = 8 * STEPS;  // of a row of the window
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const unsigned int channel = 16 * warp + lane / 8 * 4 + 2 * half + lane / 4 % 2;
#pragma unroll
      for (unsigned int tap = 0; tap < TAPS; ++tap) {
        const unsigned int* row = from + (channel * TAPS + tap) * WORDS;
#pragma unroll
        for (unsigned int step = 0; step < STEPS; ++step) {
#if BYTES
          // Whatever the order of the numbers is, it is the pictures'.
          words[tap][step][half][0] = row[2 * (lane % 4)], words[tap][step][half][1] = row[2 * (lane % 4) + 1];
#else
          words[tap][step][half][0] = row[8 * step + lane % 4], words[tap][step][half][1] = row[8 * step + lane % 4 + 4];
#endif
        }
      }
    }
  }
};

// What sixteen columns of the map read of a row of the picture.
__device__ __forceinline__ void pixels(Quad (&found)[STEPS], Address memory, unsigned int row, unsigned int tile,
                                       unsigned int lane) {
#if BYTES
  const Address first = memory + row % SLOTS * SLOT + 16 * (8 * tile + lane / 4) + 8 * (lane % 4);
  const Pair even = shared_load(first), odd = shared_load(first + 8);
  found[0] = Quad{even.x, odd.x, even.y, odd.y};
#else
  const Address slot = memory + row % SLOTS * SLOT;
  const Quad four = load_matrices(slot + lane / 8 % 2 * HALF + 16 * (8 * tile + lane % 8 + lane / 16));
  const unsigned int last = shared_load_word(slot + 16 * (8 * tile + lane / 4 + 2) + 4 * (lane % 4));
  found[0] = Quad{four.x, four.y, four.y, four.z}, found[1] = Quad{four.z, four.w, four.w, last};
#endif
}

struct Walk {
  Address memory;
  const Unit* image;
  unsigned int thread, lane, warp, until;  // a row of the result
  Filters weights;
  Sum carried[TILES][2][2];  // of the row of the map above
  Unit ahead[4][LOADS];

  __device__ __forceinline__ void store(unsigned int row, unsigned int part, Unit value) {
    const unsigned int unit = part * THREADS + thread;
    if (unit < UNITS) shared_store(place(memory, row, unit), value);
  }

  __device__ __forceinline__ Unit load(unsigned int row, unsigned int part) {
    const unsigned int unit = part * THREADS + thread;
    return unit < UNITS ? load_fresh(image + row * UNITS + unit) : Unit{};
  }

  // Those rows that the step `above` reads and the one before it does not.
  __device__ __forceinline__ void look_ahead(unsigned int above) {
    if (above >= until) return;
#pragma unroll
    for (unsigned int row = 0; row < 4; ++row) {
#pragma unroll
      for (unsigned int part = 0; part < LOADS; ++part) ahead[row][part] = load(4 * above + READ - 4 + row, part);
    }
  }

  __device__ __forceinline__ void keep(unsigned int above) {
    if (above >= until) return;
#pragma unroll
    for (unsigned int row = 0; row < 4; ++row) {
#pragma unroll
      for (unsigned int part = 0; part < LOADS; ++part) store(4 * above + READ - 4 + row, part, ahead[row][part]);
    }
  }

  // The largest of columns 2 j - 1, 2 j and 2 j + 1, of two channels; `before` is that of the tile to the left.
  __device__ __forceinline__ void across(Sum (&found)[2], const Sum (&sums)[4], Sum (&before)[2]) {
#pragma unroll
    for (unsigned int channel = 0; channel < 2; ++channel) {
      const Sum turned = from_lane(sums[2 + channel], (lane + 28) % 32);
      found[channel] = larger(larger(sums[channel], sums[2 + channel]), lane < 4 ? before[channel] : turned);
      before[channel] = turned;
    }
  }

  // Rows 2 y and 2 y + 1 of the map, or with HEAD only the second of them; what `finish` is told is row y of the result.
  template <bool HEAD, class Finish>
  __device__ __forceinline__ void step(unsigned int y, const Finish& finish) {
    Sum before[2][2][2];
#pragma unroll
    for (unsigned int number = 0; number < 8; ++number) before[number / 4][number / 2 % 2][number % 2] = LEAST;
#pragma unroll
    for (unsigned int tile = 0; tile < TILES; ++tile) {
      Sum sums[2][2][4] = {};
#pragma unroll
      for (unsigned int row = HEAD ? 2 : 0; row < READ; ++row) {
        Quad left[STEPS];
        pixels(left, memory, 4 * y + row, tile, lane);
#pragma unroll
        for (unsigned int step = 0; step < STEPS; ++step) {
#pragma unroll
          for (unsigned int half = 0; half < 2; ++half) {
            if (!HEAD && row < TAPS) {
              const unsigned int(&right)[2] = weights.words[row][step][half];
              multiply_add(sums[0][half], left[step], right[0], right[1]);
            }
            if (row >= 2) {
              const unsigned int(&right)[2] = weights.words[row - 2][step][half];
              multiply_add(sums[1][half], left[step], right[0], right[1]);
            }
          }
        }
      }
      Sum largest[4];
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
        Sum below[2], both[2];
        if (!HEAD) {
#pragma unroll
          for (unsigned int number = 0; number < 4; ++number) {
            sums[0][half][number] = larger(sums[0][half][number], sums[1][half][number]);
          }
          across(both, sums[0][half], before[0][half]);
        }
        across(below, sums[1][half], before[1][half]);
#pragma unroll
        for (unsigned int channel = 0; channel < 2; ++channel) {
          if (!HEAD) largest[2 * half + channel] = larger(both[channel], carried[tile][half][channel]);
          carried[tile][half][channel] = below[channel];
        }
      }
      if (!HEAD) finish(8 * tile + lane / 4, largest);
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    stem_pool(const Unit* x, const unsigned int* weight, const float* bias,
#if BYTES
              const float* scale,
#endif
              void* out) {
  extern __shared__ Quad memory[];
  Walk walk;
  walk.memory = shared_address(memory), walk.thread = thread_index();
  walk.lane = walk.thread % 32, walk.warp = walk.thread / 32;
  const unsigned int image = block_index() / BLOCKS_HIGH, first = block_index() % BLOCKS_HIGH * ROWS;
  walk.image = x + static_cast<unsigned long long>(image) * IMAGE_UNITS;
  walk.until = first + ROWS < POOL_HIGH ? first + ROWS : POOL_HIGH;
  walk.weights.load(weight, walk.warp, walk.lane);
  // A lane's four channels lie side by side.
  const unsigned int channel = 16 * walk.warp + 4 * (walk.lane % 4);
  float offsets[4], factors[4];
#pragma unroll
  for (unsigned int number = 0; number < 4; ++number) {
    offsets[number] = bias[channel + number];
#if BYTES
    factors[number] = scale[channel + number];
#else
    factors[number] = 1.0f;
#endif
  }
#pragma unroll
  for (unsigned int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) walk.carried[tile][number / 2][number % 2] = LEAST;
  }
  wait_for_kernel_ahead();
  let_kernel_behind_start();

  unsigned int y = first == 0 ? 0 : first - 1;
  for (unsigned int row = 0; row < READ; ++row) {
    for (unsigned int part = 0; part < LOADS; ++part) walk.store(4 * y + row, part, walk.load(4 * y + row, part));
  }
  walk.look_ahead(y + 1);
  const auto none = [](unsigned int, const Sum(&)[4]) {};
  if (first != 0) {
    block_sync();
    walk.keep(y + 1);
    walk.look_ahead(y + 2);
    walk.step<true>(y, none);
    ++y;
  }
  for (; y < walk.until; ++y) {
    // All have done with the rows whose places the next ones take.
    block_sync();
    walk.keep(y + 1);
    walk.look_ahead(y + 2);
    const unsigned int row = (image * POOL_HIGH + y) * POOL_WIDE;
    walk.step<false>(y, [&](unsigned int column, const Sum(&sums)[4]) {
      float found[4];
#pragma unroll
      for (unsigned int number = 0; number < 4; ++number) {
        found[number] = static_cast<float>(sums[number]) * factors[number] + offsets[number];
        if (RELU) found[number] = found[number] < 0.0f ? 0.0f : found[number];
      }
      if (column >= POOL_WIDE) return;
      const unsigned int at = (row + column) * FILTERS + channel;
#if NARROW_OUTPUT
      static_cast<unsigned int*>(out)[at / 4] = bytes(found[0], found[1], found[2], found[3]);
#else
      static_cast<Pair*>(out)[at / 4] = Pair{narrow(found[0], found[1]), narrow(found[2], found[3])};
#endif
    });
  }
}
