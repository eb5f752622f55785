// The body of a residual block in INT8: 3 x 3, 1 x 1 with what is added, and the next block's 1 x 1, whose maps between
// stay in registers. Maps of 64 channels, and a wide one that is written once and read once.
//
// A block has ROWS rows of a picture at a time, a warp thirty-two of their pixels from end to end; weights stay in shared
// memory from the first tile to the last. What a lane's sums of one layer become is just what the next layer's product
// wants of that lane, since the order of channels in a product is anybody's: weights lie so that a lane's channels are
// neighbours in memory, and what it reads and writes are whole pieces of sixteen or eight bytes. The next tile's pixels
// come while the layers behind the window are multiplied.
//
// Given by whoever compiles:
//   IMAGES HIGH WIDTH ROWS     of the maps, all of one size; pixels of a tile
//   WIDE                       channels of the sum, a multiple of 32
//   OUT                        channels of the layer behind it: 64, or 0 where there is none
//   HAS_RESIDUAL HAS_SHORTCUT  what is added: a map with as many channels, or a 1 x 1 layer of another one of 64
//   INNER_RELU RELU OUTER_RELU
//   WALKERS                    blocks
//   RESIDENT                   blocks of a multiprocessor at a time
#include "primitives.cuh"

constexpr unsigned int DEPTH = 64;
constexpr unsigned int PIXELS = ROWS * WIDTH;
constexpr unsigned int THREADS = (PIXELS + 31) / 32 * 32;
constexpr unsigned int ACROSS = WIDTH + 2;  // with a pixel of zeros on either side
constexpr unsigned int LOADED = (ROWS + 2) * ACROSS * (DEPTH / 16);  // pieces of sixteen bytes
constexpr unsigned int TILES_HIGH = (HIGH + ROWS - 1) / ROWS;
constexpr unsigned int TILES = IMAGES * TILES_HIGH;
constexpr unsigned int THIRD_PITCH = WIDE + 32;  // so that four rows lie in different banks

// Bytes of shared memory, one after the other.
constexpr unsigned int FIRST = 0;
constexpr unsigned int SECOND = FIRST + 9 * DEPTH * DEPTH;
constexpr unsigned int SHORTCUT = SECOND + WIDE * DEPTH;
constexpr unsigned int THIRD = SHORTCUT + (HAS_SHORTCUT ? WIDE * DEPTH : 0);
constexpr unsigned int NUMBERS = THIRD + OUT * THIRD_PITCH;  // scales and biases, FP32
constexpr unsigned int FIRST_NUMBERS = NUMBERS;
constexpr unsigned int SECOND_NUMBERS = FIRST_NUMBERS + 8 * DEPTH;
constexpr unsigned int SHORTCUT_NUMBERS = SECOND_NUMBERS + 8 * WIDE;
constexpr unsigned int THIRD_NUMBERS = SHORTCUT_NUMBERS + (HAS_SHORTCUT ? 4 * WIDE : 0);
constexpr unsigned int PICTURE = THIRD_NUMBERS + 8 * OUT;
static_assert(WIDE % 32 == 0 && (OUT == 0 || OUT == 64) && PICTURE % 16 == 0, "what the lanes' orders are made for");

// Which row of a weight lies where: of eight columns of a product a lane has numbers 2 t and 2 t + 1, and its channels of
// 64 columns are 16 t to 16 t + 15, of 32 columns 8 t to 8 t + 7.
__device__ __forceinline__ unsigned int channel_of_64(unsigned int row) {
  return row % 8 / 2 * 16 + row / 8 * 2 + row % 2;
}
__device__ __forceinline__ unsigned int channel_of_32(unsigned int row) {
  return row / 32 * 32 + row % 8 / 2 * 8 + row % 32 / 8 * 2 + row % 2;
}


// Four sums in steps of the result, maybe with what is added to them.
__device__ __forceinline__ void worth(float (&found)[4], Address factors, Address offsets, int one, int two, int three,
                                      int four) {
  const Floats factor = shared_load_floats(factors), offset = shared_load_floats(offsets);
  found[0] = static_cast<float>(one) * factor.x + offset.x, found[1] = static_cast<float>(two) * factor.y + offset.y;
  found[2] = static_cast<float>(three) * factor.z + offset.z, found[3] = static_cast<float>(four) * factor.w + offset.w;
}

template <bool POSITIVE>
__device__ __forceinline__ unsigned int packed(float (&from)[4]) {
#pragma unroll
  for (unsigned int number = 0; number < 4; ++number) {
    if (POSITIVE) from[number] = from[number] < 0.0f ? 0.0f : from[number];
  }
  return bytes(from[0], from[1], from[2], from[3]);
}

__device__ __forceinline__ float byte_of(unsigned int word, unsigned int which) {
  return static_cast<float>(static_cast<signed char>(word >> 8 * which & 0xff));
}

// Sixteen channels of a lane in two rows: bytes of its columns in eight products of eight.
template <bool POSITIVE>
__device__ __forceinline__ void narrowed(Quad (&found)[2], const int (&sums)[8][4], Address factors, Address offsets,
                                         unsigned int quarter) {
  unsigned int words[2][4];
#pragma unroll
  for (unsigned int word = 0; word < 4; ++word) {
    const unsigned int at = 4 * (16 * quarter + 4 * word);
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const int(&low)[4] = sums[2 * word], (&high)[4] = sums[2 * word + 1];
      float four[4];
      worth(four, factors + at, offsets + at, low[2 * half], low[2 * half + 1], high[2 * half], high[2 * half + 1]);
      words[half][word] = packed<POSITIVE>(four);
    }
  }
#pragma unroll
  for (unsigned int half = 0; half < 2; ++half) {
    found[half] = Quad{words[half][0], words[half][1], words[half][2], words[half][3]};
  }
}

// sum += sixteen pixels times eight columns, over 64 channels.
__device__ __forceinline__ void multiply_pieces(int (&sum)[4], const Quad (&rows)[2], const Quad& column) {
  multiply_add(sum, Quad{rows[0].x, rows[1].x, rows[0].y, rows[1].y}, column.x, column.y);
  multiply_add(sum, Quad{rows[0].z, rows[1].z, rows[0].w, rows[1].w}, column.z, column.w);
}

__device__ __forceinline__ void load_numbers(Address to, const float* from, unsigned int count, unsigned int thread) {
  for (unsigned int number = thread; number < count; number += THREADS) {
    shared_store(to + 4 * number, bits_of_float(from[number]));
  }
}

// The pixels of a tile, and those around it.
__device__ __forceinline__ void load_picture(Address memory, const Quad* x, unsigned int tile, unsigned int thread) {
  const unsigned int image = tile / TILES_HIGH, top = tile % TILES_HIGH * ROWS;
  for (unsigned int piece = thread; piece < LOADED; piece += THREADS) {
    const unsigned int pixel = piece / 4, row = top + pixel / ACROSS - 1, column = pixel % ACROSS - 1;
    const bool inside = row < HIGH && column < WIDTH;  // what is negative is large
    const unsigned int from = inside ? ((image * HIGH + row) * WIDTH + column) * 4 + piece % 4 : 0;
    copy_ahead(memory + PICTURE + 16 * piece, x + from, inside);
  }
  copies_commit();
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    bottleneck(const Quad* x, const Quad* first, const float* first_scale, const float* first_bias, const Quad* second,
               const float* second_scale, const float* second_bias,
#if HAS_RESIDUAL
               const Pair* residual, const float* residual_worth,
#endif
#if HAS_SHORTCUT
               const Quad* source, const Quad* shortcut, const float* shortcut_scale,
#endif
#if OUT
               const Quad* third, const float* third_scale, const float* third_bias,
#endif
               Pair* wide
#if OUT
               ,
               Quad* out
#endif
    ) {
  extern __shared__ Quad memory[];
  const Address here = shared_address(memory);
  const unsigned int thread = thread_index(), group = thread % 32 / 4, quarter = thread % 4;
  // Nobody writes weights: they come while the kernel ahead still runs.
  for (unsigned int piece = thread; piece < 9 * DEPTH * 4; piece += THREADS) {
    const unsigned int tap = piece / 4 / DEPTH, row = piece / 4 % DEPTH;
    copy_ahead(here + FIRST + 16 * piece, first + (channel_of_64(row) * 9 + tap) * 4 + piece % 4, true);
  }
  for (unsigned int piece = thread; piece < WIDE * 4; piece += THREADS) {
    copy_ahead(here + SECOND + 16 * piece, second + channel_of_32(piece / 4) * 4 + piece % 4, true);
#if HAS_SHORTCUT
    copy_ahead(here + SHORTCUT + 16 * piece, shortcut + channel_of_32(piece / 4) * 4 + piece % 4, true);
#endif
  }
  load_numbers(here + FIRST_NUMBERS, first_scale, DEPTH, thread);
  load_numbers(here + FIRST_NUMBERS + 4 * DEPTH, first_bias, DEPTH, thread);
  load_numbers(here + SECOND_NUMBERS, second_scale, WIDE, thread);
  load_numbers(here + SECOND_NUMBERS + 4 * WIDE, second_bias, WIDE, thread);
#if HAS_SHORTCUT
  load_numbers(here + SHORTCUT_NUMBERS, shortcut_scale, WIDE, thread);
#endif
#if HAS_RESIDUAL
  const float added_worth = residual_worth[0];
#endif
#if OUT
  constexpr unsigned int EACH = WIDE / 16;  // pieces of a row
  for (unsigned int piece = thread; piece < OUT * EACH; piece += THREADS) {
    const unsigned int row = piece / EACH;
    copy_ahead(here + THIRD + row * THIRD_PITCH + 16 * (piece % EACH), third + channel_of_64(row) * EACH + piece % EACH,
               true);
  }
  load_numbers(here + THIRD_NUMBERS, third_scale, OUT, thread);
  load_numbers(here + THIRD_NUMBERS + 4 * OUT, third_bias, OUT, thread);
#endif
  Address seen[2][2];  // where the window of each of a lane's pixels begins
  unsigned int pixels[2][2];
#pragma unroll
  for (unsigned int number = 0; number < 4; ++number) {
    const unsigned int pixel = thread / 32 * 32 + 8 * number + group, within = pixel < PIXELS ? pixel : PIXELS - 1;
    pixels[number / 2][number % 2] = pixel;
    seen[number / 2][number % 2] =
        here + PICTURE + (within / WIDTH * ACROSS + within % WIDTH) * DEPTH + 16 * quarter;
  }
  wait_for_kernel_ahead();
  let_kernel_behind_start();

  load_picture(here, x, block_index(), thread);
  for (unsigned int tile = block_index(); tile < TILES; tile += WALKERS) {
    copies_are_done();
    block_sync();
    const unsigned int left = HIGH * WIDTH - tile % TILES_HIGH * PIXELS;  // pixels of the picture
    const unsigned int start = tile / TILES_HIGH * HIGH * WIDTH + tile % TILES_HIGH * PIXELS;
    bool there[2][2];
    unsigned int from[2][2];  // of pixels that are not there, the tile's first
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
      const unsigned int pixel = pixels[number / 2][number % 2];
      there[number / 2][number % 2] = pixel < PIXELS && pixel < left;
      from[number / 2][number % 2] = start + (there[number / 2][number % 2] ? pixel : 0);
    }

    Quad middle[2][2];
    {
      int sums[2][8][4] = {};
#pragma unroll
      for (unsigned int tap = 0; tap < 9; ++tap) {
        Quad rows[2][2];
#pragma unroll
        for (unsigned int number = 0; number < 4; ++number) {
          const unsigned int moved = (tap / 3 * ACROSS + tap % 3) * DEPTH;
          rows[number / 2][number % 2] = shared_load_quad(seen[number / 2][number % 2] + moved);
        }
#pragma unroll
        for (unsigned int eight = 0; eight < 8; ++eight) {
          const unsigned int row = tap * DEPTH + 8 * eight + group;
          const Quad column = shared_load_quad(here + FIRST + row * DEPTH + 16 * quarter);
          multiply_pieces(sums[0][eight], rows[0], column);
          multiply_pieces(sums[1][eight], rows[1], column);
        }
      }
      // All have done with the picture: the next one comes in its place.
      block_sync();
      if (tile + WALKERS < TILES) load_picture(here, x, tile + WALKERS, thread);
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
        const Address numbers = here + FIRST_NUMBERS;
        narrowed<INNER_RELU>(middle[half], sums[half], numbers, numbers + 4 * DEPTH, quarter);
      }
    }

#if HAS_SHORTCUT
    Quad others[2][2];
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
      others[number / 2][number % 2] = load_fresh(source + from[number / 2][number % 2] * 4 + quarter);
    }
#endif
#if HAS_RESIDUAL
    Pair next[2][2];
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
      next[number / 2][number % 2] = load_fresh(residual + from[number / 2][number % 2] * (WIDE / 8) + quarter);
    }
#endif
#if OUT
    int last[2][8][4] = {};
#endif
#pragma unroll 1
    for (unsigned int chunk = 0; chunk < WIDE / 32; ++chunk) {
      int sums[2][4][4] = {};
#if HAS_SHORTCUT
      int more[2][4][4] = {};
#endif
#pragma unroll
      for (unsigned int eight = 0; eight < 4; ++eight) {
        const unsigned int row = (32 * chunk + 8 * eight + group) * DEPTH + 16 * quarter;
        const Quad column = shared_load_quad(here + SECOND + row);
        multiply_pieces(sums[0][eight], middle[0], column);
        multiply_pieces(sums[1][eight], middle[1], column);
#if HAS_SHORTCUT
        const Quad other = shared_load_quad(here + SHORTCUT + row);
        multiply_pieces(more[0][eight], others[0], other);
        multiply_pieces(more[1][eight], others[1], other);
#endif
      }
#if HAS_RESIDUAL
      Pair added[2][2];
#pragma unroll
      for (unsigned int number = 0; number < 4; ++number) {
        const unsigned int at = from[number / 2][number % 2] * (WIDE / 8) + 4 * (chunk + 1) + quarter;
        added[number / 2][number % 2] = next[number / 2][number % 2];
        if (chunk + 1 < WIDE / 32) next[number / 2][number % 2] = load_fresh(residual + at);
      }
#endif
      unsigned int words[2][2][2];  // tile of sixteen pixels, row g or g + 8, channels 8 t or 8 t + 4
#pragma unroll
      for (unsigned int word = 0; word < 2; ++word) {
        const Address numbers = here + SECOND_NUMBERS + 4 * (32 * chunk + 8 * quarter + 4 * word);
#pragma unroll
        for (unsigned int number = 0; number < 4; ++number) {
          const unsigned int tall = number / 2, half = number % 2;
          const int(&low)[4] = sums[tall][2 * word], (&high)[4] = sums[tall][2 * word + 1];
          float four[4];
          worth(four, numbers, numbers + 4 * WIDE, low[2 * half], low[2 * half + 1], high[2 * half], high[2 * half + 1]);
#if HAS_RESIDUAL
          const unsigned int both = word == 0 ? added[tall][half].x : added[tall][half].y;
#pragma unroll
          for (unsigned int each = 0; each < 4; ++each) four[each] += byte_of(both, each) * added_worth;
#endif
#if HAS_SHORTCUT
          const int(&less)[4] = more[tall][2 * word], (&rest)[4] = more[tall][2 * word + 1];
          const Floats factor = shared_load_floats(here + SHORTCUT_NUMBERS + 4 * (32 * chunk + 8 * quarter + 4 * word));
          four[0] += static_cast<float>(less[2 * half]) * factor.x;
          four[1] += static_cast<float>(less[2 * half + 1]) * factor.y;
          four[2] += static_cast<float>(rest[2 * half]) * factor.z;
          four[3] += static_cast<float>(rest[2 * half + 1]) * factor.w;
#endif
          words[tall][half][word] = packed<RELU>(four);
        }
      }
#pragma unroll
      for (unsigned int number = 0; number < 4; ++number) {
        const unsigned int(&both)[2] = words[number / 2][number % 2];
        const unsigned int at = from[number / 2][number % 2] * (WIDE / 8) + 4 * chunk + quarter;
        if (there[number / 2][number % 2]) wide[at] = Pair{both[0], both[1]};
      }
#if OUT
#pragma unroll
      for (unsigned int eight = 0; eight < 8; ++eight) {
        const Pair column = shared_load(here + THIRD + (8 * eight + group) * THIRD_PITCH + 32 * chunk + 8 * quarter);
#pragma unroll
        for (unsigned int tall = 0; tall < 2; ++tall) {
          const unsigned int(&rows)[2][2] = words[tall];
          multiply_add(last[tall][eight], Quad{rows[0][0], rows[1][0], rows[0][1], rows[1][1]}, column.x, column.y);
        }
      }
#endif
    }
#if OUT
#pragma unroll
    for (unsigned int tall = 0; tall < 2; ++tall) {
      Quad found[2];
      const Address numbers = here + THIRD_NUMBERS;
      narrowed<OUTER_RELU>(found, last[tall], numbers, numbers + 4 * OUT, quarter);
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
        if (there[tall][half]) out[from[tall][half] * (OUT / 16) + quarter] = found[half];
      }
    }
#endif
  }
}
