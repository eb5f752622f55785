// A stem of 64 filters and the pool behind it, as `stem.cu` has them, by Hopper's own units: filters are the rows of the
// product, and columns of the map its columns. The filters stay in registers. Of the picture, windows that overlap are
// rows of a matrix which are sixteen bytes apart and share what they have in common: the units take them from a row of
// the picture as it lies in shared memory.
//
// A block has ROWS rows of one image's result. While a row of the map is multiplied, the largest of neighbours are found
// in the row before it: across a lane has columns 2 j and 2 j + 1, and its neighbour 2 j - 1; down they are other sums of
// the same lane. Maxima are taken of sums: what comes behind never lets a smaller one pass a larger one.
//
// Given by whoever compiles:
//   TAPS                       of the window, downwards: 2 to 8
//   PLANES                     0: x is a picture of pixels of four numbers with zeros around it, laid out before; else how
//                              many planes x has, 1 to 4, and this kernel narrows them and lays them out
//   HIGH WIDE TOP LEFT         of the planes, and where they begin in the picture with zeros around it
//   PLANE_QUADS ROW_QUADS      sixteens of bytes from one to the next
//   WIDE_NUMBERS               whether the planes are of FP32, else sixteen bits
//   UNITS                      of eight numbers in a row of the picture, which is dense: results in a row and three
//   IMAGE_UNITS                sixteens of bytes from one image to the next
//   POOL_HIGH POOL_WIDE        of the result; the map between has twice as many rows and columns
//   COLUMNS                    of a product, at least those of the map: 64, 96, 112 or 128
//   ROWS                       of the result, of one block
//   RELU                       whether negative results become zero
//   BFLOAT16                   defined: sixteen bits are BF16, else FP16
#define KIND 0
#include "primitives.cuh"
#include "warpgroup.cuh"

constexpr unsigned int FILTERS = 64, THREADS = 128;
constexpr unsigned int SLOTS = 16;       // rows of the picture: eleven that a block begins with, and four more
constexpr unsigned int SLOT = 16 * UNITS;
constexpr unsigned int READ = TAPS + 2;  // rows of the picture for two of the map
constexpr unsigned int BLOCKS_HIGH = (POOL_HIGH + ROWS - 1) / ROWS;
constexpr unsigned int GROUPS = COLUMNS / 8;  // of columns: a lane has two of each
#if PLANES
constexpr unsigned int PIXELS = WIDE_NUMBERS ? 4 : 8;  // in sixteen bytes of a plane
constexpr unsigned int PIECES = WIDE / PIXELS;         // of a row
constexpr unsigned int EACH = (4 * PIECES + THREADS - 1) / THREADS;  // of four rows, for each thread
constexpr unsigned int FIRST = ((READ + 2) * PIECES + THREADS - 1) / THREADS;
constexpr unsigned int PIXELS_BEFORE = 16 * (SLOTS * UNITS + COLUMNS - 2 * POOL_WIDE);  // bytes of laid out rows
static_assert(WIDE % PIXELS == 0 && LEFT + WIDE <= 2 * UNITS, "whole pieces");
#else
constexpr unsigned int LOADS = (UNITS + THREADS - 1) / THREADS;  // of each row, for each thread
#endif
constexpr float LEAST = -3.402823466e38f;
static_assert(READ + 2 + 4 <= SLOTS && COLUMNS >= 2 * POOL_WIDE && COLUMNS % 16 == 0, "what a block keeps");

// The largest of each window across, of two filters, for every other column.
struct Largest {
  float of[GROUPS][2];
};

struct Stem {
  Address memory;
  const Quad* image;
  unsigned int thread, lane, warp, until;  // a row of the result
  unsigned int weights[TAPS][2][4];

  // Of rows i and i + 8 of a product: filters are so distributed that four of a lane's are neighbours at the end.
  __device__ __forceinline__ void load_weights(const unsigned int* from) {
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const unsigned int filter = 16 * warp + lane / 8 * 4 + lane / 4 % 2 + 2 * half;
#pragma unroll
      for (unsigned int tap = 0; tap < TAPS; ++tap) {
        const unsigned int* row = from + (filter * TAPS + tap) * 16 + lane % 4;
#pragma unroll
        for (unsigned int step = 0; step < 2; ++step) {
          weights[tap][step][half] = row[8 * step], weights[tap][step][2 + half] = row[8 * step + 4];
        }
      }
    }
  }

#if PLANES
  struct Piece {
    unsigned int row, at;  // of the picture with zeros around it; which sixteen bytes of a plane's row
    const Quad* from;      // of the first plane
    bool there;
  };

  __device__ __forceinline__ Piece piece(unsigned int first, unsigned int number) const {
    Piece found;
    found.row = first + number / PIECES, found.at = number % PIECES;
    found.there = found.row - TOP < HIGH;  // what is above is a large number
    found.from = image + (found.there ? (found.row - TOP) * ROW_QUADS : 0) + found.at;
    return found;
  }

  static __device__ __forceinline__ unsigned int word(const Quad& quad, unsigned int which) {
    return which == 0 ? quad.x : which == 1 ? quad.y : which == 2 ? quad.z : quad.w;
  }

  // Pixels of four numbers, of which those that there is no plane of are zero.
  __device__ __forceinline__ void lay_out(const Piece& piece, const Quad (&planes)[PLANES]) {
    const Address to = memory + piece.row % SLOTS * SLOT + 8 * (LEFT + PIXELS * piece.at);
#pragma unroll
    for (unsigned int pixel = 0; pixel < PIXELS; ++pixel) {
      unsigned int words[2] = {0, 0};
#pragma unroll
      for (unsigned int half = 0; half < (PLANES + 1) / 2; ++half) {
#if WIDE_NUMBERS
        const float low = number_of(word(planes[2 * half], pixel));
        words[half] = narrow(low, 2 * half + 1 < PLANES ? number_of(word(planes[2 * half + 1 < PLANES ? 2 * half + 1 : 0], pixel)) : 0.0f);
#else
        const unsigned int low = word(planes[2 * half], pixel / 2);
        const unsigned int high = 2 * half + 1 < PLANES ? word(planes[2 * half + 1 < PLANES ? 2 * half + 1 : 0], pixel / 2) : 0;
        words[half] = permuted(low, high, pixel % 2 == 0 ? 0x5410 : 0x7632);
#endif
      }
      shared_store(to + 8 * pixel, Pair{words[0], words[1]});
    }
  }

  __device__ __forceinline__ Address copied(unsigned int number, unsigned int plane) const {
    return memory + PIXELS_BEFORE + 16 * (plane * 4 * PIECES + number);
  }

  // What is never one of the planes' pixels, for good.
  __device__ __forceinline__ void begin() {
    constexpr unsigned int AROUND = 2 * UNITS - WIDE;
    for (unsigned int number = thread; number < SLOTS * AROUND; number += THREADS) {
      const unsigned int at = number % AROUND;
      shared_store(memory + number / AROUND * SLOT + 8 * (at < LEFT ? at : at + WIDE), Pair{0, 0});
    }
  }

  __device__ __forceinline__ void load_first(unsigned int first, unsigned int behind) {
    Quad found[FIRST][PLANES];
#pragma unroll
    for (unsigned int part = 0; part < FIRST; ++part) {
      const unsigned int number = part * THREADS + thread;
      const Piece one = piece(first, number);
#pragma unroll
      for (unsigned int plane = 0; plane < PLANES; ++plane) {
        found[part][plane] = number < (behind - first) * PIECES && one.there ? load_fresh(one.from + plane * PLANE_QUADS) : Quad{};
      }
    }
#pragma unroll
    for (unsigned int part = 0; part < FIRST; ++part) {
      const unsigned int number = part * THREADS + thread;
      if (number < (behind - first) * PIECES) lay_out(piece(first, number), found[part]);
    }
  }

  // Those rows that row y of the result reads and the one above does not.
  __device__ __forceinline__ void copy_for(unsigned int y) {
    if (y < until) {
#pragma unroll
      for (unsigned int part = 0; part < EACH; ++part) {
        const unsigned int number = part * THREADS + thread;
        const Piece one = piece(4 * y + READ - 4, number);
        if (number < 4 * PIECES) {
#pragma unroll
          for (unsigned int plane = 0; plane < PLANES; ++plane) {
            copy_ahead(copied(number, plane), one.from + plane * PLANE_QUADS, one.there);
          }
        }
      }
    }
    copies_commit();
  }

  // What this thread has copied.
  __device__ __forceinline__ void lay_out_for(unsigned int y) {
    copies_are_done();
    if (y < until) {
#pragma unroll
      for (unsigned int part = 0; part < EACH; ++part) {
        const unsigned int number = part * THREADS + thread;
        if (number < 4 * PIECES) {
          Quad planes[PLANES];
#pragma unroll
          for (unsigned int plane = 0; plane < PLANES; ++plane) planes[plane] = shared_load_quad(copied(number, plane));
          lay_out(piece(4 * y + READ - 4, number), planes);
        }
      }
    }
  }

  __device__ __forceinline__ void meet() {
    show_to_stores();
    block_sync();
  }
#else
  __device__ __forceinline__ void begin() {}

  __device__ __forceinline__ void copy(unsigned int row) {
#pragma unroll
    for (unsigned int part = 0; part < LOADS; ++part) {
      const unsigned int unit = part * THREADS + thread;
      if (unit < UNITS) copy_ahead(memory + row % SLOTS * SLOT + 16 * unit, image + row * UNITS + unit, true);
    }
  }

  // Those rows that row y of the result reads and the one above does not.
  __device__ __forceinline__ void copy_for(unsigned int y) {
    if (y < until) {
#pragma unroll
      for (unsigned int row = READ - 4; row < READ; ++row) copy(4 * y + row);
    }
    copies_commit();
  }

  __device__ __forceinline__ void load_first(unsigned int first, unsigned int behind) {
    for (unsigned int row = first; row < behind; ++row) copy(row);
    copies_commit();
  }

  // All that was asked for is there, and everybody has done with what was read before.
  __device__ __forceinline__ void meet() {
    copies_are_done();
    show_to_stores();
    block_sync();
  }
#endif

  __device__ __forceinline__ void multiply(float (&sums)[COLUMNS / 2], unsigned int map_row) {
    products_begin();
#pragma unroll
    for (unsigned int tap = 0; tap < TAPS; ++tap) {
      const Matrix row = matrix_at(memory + (2 * map_row + tap) % SLOTS * SLOT);
#pragma unroll
      for (unsigned int step = 0; step < 2; ++step) {
        multiply_windows(sums, weights[tap][step], row + step * MATRIX_STEP, tap > 0 || step > 0);
      }
    }
    products_commit();
  }

  __device__ __forceinline__ void across(Largest& found, const float (&sums)[COLUMNS / 2]) {
    float before[2] = {LEAST, LEAST};
#pragma unroll
    for (unsigned int group = 0; group < GROUPS; ++group) {
#pragma unroll
      for (unsigned int filter = 0; filter < 2; ++filter) {
        const float even = sums[4 * group + 2 * filter], odd = sums[4 * group + 2 * filter + 1];
        const float turned = from_lane(odd, lane / 4 * 4 + (lane + 3) % 4);
        found.of[group][filter] = greater(greater(even, odd), lane % 4 == 0 ? before[filter] : turned);
        before[filter] = turned;
      }
    }
  }

  __device__ __forceinline__ void across_and_down(Largest& found, const float (&sums)[COLUMNS / 2], const Largest& above) {
    across(found, sums);
#pragma unroll
    for (unsigned int group = 0; group < GROUPS; ++group) {
#pragma unroll
      for (unsigned int filter = 0; filter < 2; ++filter) {
        found.of[group][filter] = greater(found.of[group][filter], above.of[group][filter]);
      }
    }
  }

  // A row of the result, of which `row` pixels lie before it.
  __device__ __forceinline__ void finish(Pair* out, unsigned int row, const Largest& one, const Largest& other,
                                         const float (&offsets)[2]) {
#pragma unroll
    for (unsigned int two = 0; two < GROUPS; two += 2) {
      unsigned int words[2];
#pragma unroll
      for (unsigned int filter = 0; filter < 2; ++filter) {
        float found[2];
#pragma unroll
        for (unsigned int group = 0; group < 2; ++group) {
          found[group] = greater(one.of[two + group][filter], other.of[two + group][filter]) + offsets[filter];
          if (RELU) found[group] = found[group] < 0.0f ? 0.0f : found[group];
        }
        words[filter] = transposed(narrow(found[0], found[1]));
      }
      // What a lane had of two groups' columns, it has of two filters now.
      const unsigned int column = 4 * (two + lane / 4 % 2) + lane / 8;
      const unsigned int at = (row + column) * FILTERS + 16 * warp + 4 * (lane % 4);
      if (column < POOL_WIDE) out[at / 4] = Pair{words[0], words[1]};
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    warpgroup_stem(const Quad* x, const unsigned int* weight, const float* bias, Pair* out) {
  extern __shared__ Quad memory[];
  Stem stem;
  stem.memory = shared_address(memory), stem.thread = thread_index();
  stem.lane = stem.thread % 32, stem.warp = stem.thread / 32;
  const unsigned int image = block_index() / BLOCKS_HIGH, first = block_index() % BLOCKS_HIGH * ROWS;
  stem.image = x + static_cast<unsigned long long>(image) * IMAGE_UNITS;
  stem.until = first + ROWS < POOL_HIGH ? first + ROWS : POOL_HIGH;
  stem.load_weights(weight);
  float offsets[2];
#pragma unroll
  for (unsigned int filter = 0; filter < 2; ++filter) {
    offsets[filter] = bias[16 * stem.warp + stem.lane / 8 * 4 + stem.lane / 4 % 2 + 2 * filter];
  }
  stem.begin();
  wait_for_kernel_ahead();
  let_kernel_behind_start();
  stem.load_first(first == 0 ? 0 : 4 * first - 2, 4 * first + READ);
#if PLANES
  stem.copy_for(first + 1);
#endif

  float even[COLUMNS / 2], odd[COLUMNS / 2];
  Largest above, both;
#pragma unroll
  for (unsigned int group = 0; group < GROUPS; ++group) above.of[group][0] = above.of[group][1] = LEAST;
  if (first != 0) {
    stem.meet();
    stem.multiply(odd, 2 * first - 1);
    products_are_done<0>();
    hold(odd);
    stem.across(above, odd);
  }
#pragma unroll 1
  for (unsigned int y = first; y < stem.until; ++y) {
    stem.meet();
#if !PLANES
    stem.copy_for(y + 1);
#endif
    stem.multiply(even, 2 * y);
    stem.multiply(odd, 2 * y + 1);
#if PLANES
    stem.lay_out_for(y + 1);
    stem.copy_for(y + 2);
#endif
    products_are_done<1>();
    hold(even);
    stem.across_and_down(both, even, above);
    products_are_done<0>();
    hold(odd);
    stem.across(above, odd);
    stem.finish(out, (image * POOL_HIGH + y) * POOL_WIDE, both, above, offsets);
  }
}
