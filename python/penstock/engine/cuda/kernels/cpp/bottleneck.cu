// The body of a residual block: 3 x 3, 1 x 1 with what is added, and the next block's 1 x 1, whose maps between stay in
// registers. Maps of 64 channels, and a wide one that is written once and read once; INT8 or sixteen bits throughout.
//
// A block has ROWS rows of a picture at a time, a warp thirty-two of their pixels from end to end; weights stay in shared
// memory from the first tile to the last. What a lane's sums of one layer become is just what the next layer's product
// wants of that lane, since the order of channels in a product is anybody's: weights lie so that a lane's channels are
// neighbours in memory, and what it reads and writes are whole pieces of sixteen or eight bytes. The next tile's pixels
// come while the layers behind the window are multiplied.
//
// Given by whoever compiles:
//   BYTES                      whether all of it is INT8, else sixteen bits
//   IMAGES HIGH WIDTH ROWS     of the maps, all of one size; rows of a tile
//   WIDE                       channels of the sum, a multiple of 32
//   OUT                        channels of the layer behind it: 64, or 0 where there is none
//   HAS_RESIDUAL HAS_SHORTCUT  what is added: a map with as many channels, or a 1 x 1 layer of another one of 64
//   INNER_RELU RELU OUTER_RELU
//   WALKERS                    blocks
//   RESIDENT                   blocks of a multiprocessor at a time
//   BFLOAT16                   defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int DEPTH = 64;
constexpr unsigned int PIXELS = ROWS * WIDTH;
constexpr unsigned int THREADS = (PIXELS + 31) / 32 * 32;
constexpr unsigned int ACROSS = WIDTH + 2;  // with a pixel of zeros on either side
constexpr unsigned int TILES_HIGH = (HIGH + ROWS - 1) / ROWS;
constexpr unsigned int TILES = IMAGES * TILES_HIGH;

#if BYTES
using Sum = int;
using Unit = Pair;  // eight numbers
constexpr unsigned int ITEM = 1;
#else
using Sum = float;
using Unit = Quad;
constexpr unsigned int ITEM = 2;
#endif
constexpr unsigned int LINE = DEPTH * ITEM;  // bytes of a pixel
constexpr unsigned int PIECES = LINE / 64;  // of sixteen bytes, of each of four lanes
constexpr unsigned int WORDS = 2 * ITEM;  // of eight numbers
constexpr unsigned int LOADED = (ROWS + 2) * ACROSS * (LINE / 16);
constexpr unsigned int THIRD_PITCH = WIDE * ITEM + 32 * ITEM;  // so that neighbouring rows lie in different banks

// Bytes of shared memory, one after the other.
constexpr unsigned int FIRST = 0;
constexpr unsigned int SECOND = FIRST + 9 * DEPTH * LINE;
constexpr unsigned int SHORTCUT = SECOND + WIDE * LINE;
constexpr unsigned int THIRD = SHORTCUT + (HAS_SHORTCUT ? WIDE * LINE : 0);
constexpr unsigned int FIRST_NUMBERS = THIRD + OUT * THIRD_PITCH;  // what sums are worth, and biases, FP32
constexpr unsigned int SECOND_NUMBERS = FIRST_NUMBERS + 8 * DEPTH;
constexpr unsigned int SHORTCUT_NUMBERS = SECOND_NUMBERS + 8 * WIDE;
constexpr unsigned int THIRD_NUMBERS = SHORTCUT_NUMBERS + (HAS_SHORTCUT ? 4 * WIDE : 0);
constexpr unsigned int PICTURE = (THIRD_NUMBERS + 8 * OUT + 127) / 128 * 128;
static_assert(WIDE % 32 == 0 && (OUT == 0 || OUT == 64), "what the lanes' orders are made for");

// Which row of a weight lies where. Of eight columns of a product lane t of four has numbers 2 t and 2 t + 1; its channels
// are runs of eight, of bytes in 64 columns one of sixteen.
__device__ __forceinline__ unsigned int channel_of_32(unsigned int row) {
  return row / 32 * 32 + row % 8 / 2 * 8 + row % 32 / 8 * 2 + row % 2;
}
__device__ __forceinline__ unsigned int channel_of_64(unsigned int row) {
  return BYTES ? row % 8 / 2 * 16 + row / 8 * 2 + row % 2 : channel_of_32(row);
}
// The first of four channels of a lane in columns 16 four to 16 four + 15 of 64.
__device__ __forceinline__ unsigned int lane_channel(unsigned int four, unsigned int quarter) {
  return BYTES ? 16 * quarter + 4 * four : four / 2 * 32 + 8 * quarter + four % 2 * 4;
}

// Where a piece of sixteen bytes lies: rows of 128 bytes exchange their halves if they are odd, so that two rows that are
// read at once lie in different banks.
__device__ __forceinline__ unsigned int place(unsigned int row, unsigned int piece) {
  return row * LINE + 16 * (BYTES ? piece : piece ^ row % 2 * 4);
}

#if BYTES
// Of DEPTHS products.
template <unsigned int DEPTHS>
__device__ __forceinline__ float float_of(int sum) {
  return DEPTHS * 128 * 127 < 1 << 22 ? whole_to_float(sum) : static_cast<float>(sum);
}
#else
template <unsigned int DEPTHS>
__device__ __forceinline__ float float_of(float sum) {
  return sum;
}
#endif

// Four sums as what is made of them, but for what is added and the activation.
template <unsigned int DEPTHS>
__device__ __forceinline__ void worth(float (&found)[4], Address numbers, unsigned int count, const Sum (&low)[4],
                                      const Sum (&high)[4], unsigned int half) {
  const Floats offset = shared_load_floats(numbers + 4 * count);
#if BYTES
  const Floats factor = shared_load_floats(numbers);
#else
  constexpr Floats factor = {1.0f, 1.0f, 1.0f, 1.0f};
#endif
  found[0] = float_of<DEPTHS>(low[2 * half]) * factor.x + offset.x;
  found[1] = float_of<DEPTHS>(low[2 * half + 1]) * factor.y + offset.y;
  found[2] = float_of<DEPTHS>(high[2 * half]) * factor.z + offset.z;
  found[3] = float_of<DEPTHS>(high[2 * half + 1]) * factor.w + offset.w;
}

template <bool POSITIVE>
__device__ __forceinline__ void pack(unsigned int* words, float (&from)[4]) {
#pragma unroll
  for (unsigned int number = 0; number < 4; ++number) {
    if (POSITIVE) from[number] = from[number] < 0.0f ? 0.0f : from[number];
  }
#if BYTES
  words[0] = bytes(from[0], from[1], from[2], from[3]);
#else
  words[0] = narrow(from[0], from[1]), words[1] = narrow(from[2], from[3]);
#endif
}

#if BYTES
__device__ __forceinline__ float number_of(const Pair& unit, unsigned int which) {
  const unsigned int word = which / 4 == 0 ? unit.x : unit.y;
  return byte_to_float(word, which % 4);
}
#else
__device__ __forceinline__ float number_of(const Quad& unit, unsigned int which) {
  const unsigned int word = which / 2 == 0 ? unit.x : which / 2 == 1 ? unit.y : which / 2 == 2 ? unit.z : unit.w;
  return wide(static_cast<unsigned short>(word >> which % 2 * 16));
}
#endif

// A lane's channels of 64 in two rows.
template <unsigned int DEPTHS, bool POSITIVE>
__device__ __forceinline__ void narrowed(Quad (&found)[2][PIECES], const Sum (&sums)[8][4], Address numbers,
                                         unsigned int quarter) {
#pragma unroll
  for (unsigned int half = 0; half < 2; ++half) {
    unsigned int words[4 * PIECES];
#pragma unroll
    for (unsigned int four = 0; four < 4; ++four) {
      float each[4];
      worth<DEPTHS>(each, numbers + 4 * lane_channel(four, quarter), DEPTH, sums[2 * four], sums[2 * four + 1], half);
      pack<POSITIVE>(words + ITEM * four, each);
    }
#pragma unroll
    for (unsigned int piece = 0; piece < PIECES; ++piece) {
      found[half][piece] = Quad{words[4 * piece], words[4 * piece + 1], words[4 * piece + 2], words[4 * piece + 3]};
    }
  }
}

// sum += sixteen pixels times eight columns, over two instructions' depth.
__device__ __forceinline__ void multiply_pieces(Sum (&sum)[4], const Quad& upper, const Quad& lower, const Quad& column) {
  multiply_add(sum, Quad{upper.x, lower.x, upper.y, lower.y}, column.x, column.y);
  multiply_add(sum, Quad{upper.z, lower.z, upper.w, lower.w}, column.z, column.w);
}

__device__ __forceinline__ void load_numbers(Address to, const float* from, unsigned int count, unsigned int thread) {
  for (unsigned int number = thread; number < count; number += THREADS) {
    shared_store(to + 4 * number, bits_of_float(from[number]));
  }
}

// The pixels of a tile, and those around it.
__device__ __forceinline__ void load_picture(Address memory, const Quad* x, unsigned int tile, unsigned int thread) {
  constexpr unsigned int EACH = LINE / 16;
  const unsigned int image = tile / TILES_HIGH, top = tile % TILES_HIGH * ROWS;
  for (unsigned int piece = thread; piece < LOADED; piece += THREADS) {
    const unsigned int pixel = piece / EACH, row = top + pixel / ACROSS - 1, column = pixel % ACROSS - 1;
    const bool inside = row < HIGH && column < WIDTH;  // what is negative is large
    const unsigned int from = inside ? ((image * HIGH + row) * WIDTH + column) * EACH + piece % EACH : 0;
    copy_ahead(memory + PICTURE + place(pixel, piece % EACH), x + from, inside);
  }
  copies_commit();
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    bottleneck(const Quad* x, const Quad* first, const float* first_bias, const Quad* second, const float* second_bias,
#if HAS_RESIDUAL
               const Unit* residual,
#endif
#if HAS_SHORTCUT
               const Quad* source, const Quad* shortcut,
#endif
#if OUT
               const Quad* third, const float* third_bias,
#endif
#if BYTES
               const float* first_scale, const float* second_scale,
#if HAS_RESIDUAL
               const float* residual_worth,
#endif
#if HAS_SHORTCUT
               const float* shortcut_scale,
#endif
#if OUT
               const float* third_scale,
#endif
#endif
#if OUT
               Quad* out,
#endif
               Unit* wide) {
  extern __shared__ Quad memory[];
  const Address here = shared_address(memory);
  const unsigned int thread = thread_index(), group = thread % 32 / 4, quarter = thread % 4;
  constexpr unsigned int EACH = LINE / 16;  // pieces of a row
  // Nobody writes weights: they come while the kernel ahead still runs.
  for (unsigned int piece = thread; piece < 9 * DEPTH * EACH; piece += THREADS) {
    const unsigned int row = piece / EACH, tap = row / DEPTH;
    copy_ahead(here + FIRST + place(row, piece % EACH), first + (channel_of_64(row % DEPTH) * 9 + tap) * EACH + piece % EACH,
               true);
  }
  for (unsigned int piece = thread; piece < WIDE * EACH; piece += THREADS) {
    const unsigned int row = piece / EACH, from = channel_of_32(row) * EACH + piece % EACH;
    copy_ahead(here + SECOND + place(row, piece % EACH), second + from, true);
#if HAS_SHORTCUT
    copy_ahead(here + SHORTCUT + place(row, piece % EACH), shortcut + from, true);
#endif
  }
  load_numbers(here + FIRST_NUMBERS + 4 * DEPTH, first_bias, DEPTH, thread);
  load_numbers(here + SECOND_NUMBERS + 4 * WIDE, second_bias, WIDE, thread);
#if BYTES
  load_numbers(here + FIRST_NUMBERS, first_scale, DEPTH, thread);
  load_numbers(here + SECOND_NUMBERS, second_scale, WIDE, thread);
#if HAS_SHORTCUT
  load_numbers(here + SHORTCUT_NUMBERS, shortcut_scale, WIDE, thread);
#endif
#endif
#if HAS_RESIDUAL
#if BYTES
  const float added_worth = residual_worth[0];
#else
  constexpr float added_worth = 1.0f;
#endif
#endif
#if OUT
  constexpr unsigned int ALONG = WIDE * ITEM / 16;
  for (unsigned int piece = thread; piece < OUT * ALONG; piece += THREADS) {
    const unsigned int row = piece / ALONG, along = piece % ALONG;
    copy_ahead(here + THIRD + row * THIRD_PITCH + 16 * along, third + channel_of_64(row) * ALONG + along, true);
  }
  load_numbers(here + THIRD_NUMBERS + 4 * OUT, third_bias, OUT, thread);
#if BYTES
  load_numbers(here + THIRD_NUMBERS, third_scale, OUT, thread);
#endif
#endif
  Address seen[2][2];  // where the window of each of a lane's pixels begins
  unsigned int pixels[2][2];
#pragma unroll
  for (unsigned int number = 0; number < 4; ++number) {
    const unsigned int pixel = thread / 32 * 32 + 8 * number + group, within = pixel < PIXELS ? pixel : PIXELS - 1;
    pixels[number / 2][number % 2] = pixel;
    seen[number / 2][number % 2] = here + PICTURE + place(within / WIDTH * ACROSS + within % WIDTH, quarter);
  }
  const unsigned int columns = here + place(group, quarter);  // of each eight rows of a weight
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

    Quad middle[2][2][PIECES];
    {
      Sum sums[2][8][4] = {};
#pragma unroll
      for (unsigned int tap = 0; tap < 9; ++tap) {
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
          constexpr unsigned int HALF = 64;
          const unsigned int moved = tap / 3 * ACROSS + tap % 3;
          Quad rows[2][2];
#pragma unroll
          for (unsigned int number = 0; number < 4; ++number) {
            const Address other = PIECES == 1 ? 0 : (piece + moved) % 2 * HALF;
            rows[number / 2][number % 2] = shared_load_quad((seen[number / 2][number % 2] ^ other) + moved * LINE);
          }
#pragma unroll
          for (unsigned int eight = 0; eight < 8; ++eight) {
            const Quad column = shared_load_quad((columns ^ piece * HALF) + FIRST + (tap * DEPTH + 8 * eight) * LINE);
            multiply_pieces(sums[0][eight], rows[0][0], rows[0][1], column);
            multiply_pieces(sums[1][eight], rows[1][0], rows[1][1], column);
          }
        }
      }
      // All have done with the picture: the next one comes in its place.
      block_sync();
      if (tile + WALKERS < TILES) load_picture(here, x, tile + WALKERS, thread);
      narrowed<9 * DEPTH, INNER_RELU>(middle[0], sums[0], here + FIRST_NUMBERS, quarter);
      narrowed<9 * DEPTH, INNER_RELU>(middle[1], sums[1], here + FIRST_NUMBERS, quarter);
    }

#if HAS_SHORTCUT
    Quad others[2][2][PIECES];
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
#pragma unroll
      for (unsigned int piece = 0; piece < PIECES; ++piece) {
        const unsigned int at = from[number / 2][number % 2] * EACH + 4 * piece + quarter;
        others[number / 2][number % 2][piece] = load_fresh(source + at);
      }
    }
#endif
#if HAS_RESIDUAL
    Unit next[2][2];
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) {
      next[number / 2][number % 2] = load_fresh(residual + from[number / 2][number % 2] * (WIDE / 8) + quarter);
    }
#endif
#if OUT
    Sum last[2][8][4] = {};
#endif
#pragma unroll 1
    for (unsigned int chunk = 0; chunk < WIDE / 32; ++chunk) {
      Sum sums[2][4][4] = {};
#if HAS_SHORTCUT && BYTES
      Sum more[2][4][4] = {};
#elif HAS_SHORTCUT
      Sum(&more)[2][4][4] = sums;
#endif
#pragma unroll
      for (unsigned int eight = 0; eight < 4; ++eight) {
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
          const Address row = (columns ^ piece * 64) + (32 * chunk + 8 * eight) * LINE;
          const Quad column = shared_load_quad(row + SECOND);
          multiply_pieces(sums[0][eight], middle[0][0][piece], middle[0][1][piece], column);
          multiply_pieces(sums[1][eight], middle[1][0][piece], middle[1][1][piece], column);
#if HAS_SHORTCUT
          const Quad other = shared_load_quad(row + SHORTCUT);
          multiply_pieces(more[0][eight], others[0][0][piece], others[0][1][piece], other);
          multiply_pieces(more[1][eight], others[1][0][piece], others[1][1][piece], other);
#endif
        }
      }
#if HAS_RESIDUAL
      Unit added[2][2];
#pragma unroll
      for (unsigned int number = 0; number < 4; ++number) {
        const unsigned int at = from[number / 2][number % 2] * (WIDE / 8) + 4 * (chunk + 1) + quarter;
        added[number / 2][number % 2] = next[number / 2][number % 2];
        if (chunk + 1 < WIDE / 32) next[number / 2][number % 2] = load_fresh(residual + at);
      }
#endif
      unsigned int words[2][2][WORDS];  // of sixteen pixels, of row g or g + 8: eight channels
#pragma unroll
      for (unsigned int four = 0; four < 2; ++four) {
        const unsigned int channel = 32 * chunk + 8 * quarter + 4 * four;
#pragma unroll
        for (unsigned int number = 0; number < 4; ++number) {
          const unsigned int tall = number / 2, half = number % 2;
          float each[4];
          worth<DEPTH>(each, here + SECOND_NUMBERS + 4 * channel, WIDE, sums[tall][2 * four], sums[tall][2 * four + 1], half);
#if HAS_RESIDUAL
#pragma unroll
          for (unsigned int one = 0; one < 4; ++one) {
            each[one] += number_of(added[tall][half], 4 * four + one) * added_worth;
          }
#endif
#if HAS_SHORTCUT && BYTES
          const Sum(&low)[4] = more[tall][2 * four], (&high)[4] = more[tall][2 * four + 1];
          const Floats factor = shared_load_floats(here + SHORTCUT_NUMBERS + 4 * channel);
          each[0] += float_of<DEPTH>(low[2 * half]) * factor.x;
          each[1] += float_of<DEPTH>(low[2 * half + 1]) * factor.y;
          each[2] += float_of<DEPTH>(high[2 * half]) * factor.z;
          each[3] += float_of<DEPTH>(high[2 * half + 1]) * factor.w;
#endif
          pack<RELU>(words[tall][half] + ITEM * four, each);
        }
      }
#pragma unroll
      for (unsigned int number = 0; number < 4; ++number) {
        const unsigned int(&all)[WORDS] = words[number / 2][number % 2];
        const unsigned int at = from[number / 2][number % 2] * (WIDE / 8) + 4 * chunk + quarter;
#if BYTES
        if (there[number / 2][number % 2]) wide[at] = Pair{all[0], all[1]};
#else
        if (there[number / 2][number % 2]) wide[at] = Quad{all[0], all[1], all[2], all[3]};
#endif
      }
#if OUT
#pragma unroll
      for (unsigned int eight = 0; eight < 8; ++eight) {
        const Address at = here + THIRD + (8 * eight + group) * THIRD_PITCH + 32 * ITEM * chunk + 8 * ITEM * quarter;
#pragma unroll
        for (unsigned int tall = 0; tall < 2; ++tall) {
          const unsigned int(&upper)[WORDS] = words[tall][0], (&lower)[WORDS] = words[tall][1];
#if BYTES
          const Pair column = shared_load(at);
          multiply_add(last[tall][eight], Quad{upper[0], lower[0], upper[1], lower[1]}, column.x, column.y);
#else
          multiply_pieces(last[tall][eight], Quad{upper[0], upper[1], upper[2], upper[3]},
                          Quad{lower[0], lower[1], lower[2], lower[3]}, shared_load_quad(at));
#endif
        }
      }
#endif
    }
#if OUT
#pragma unroll
    for (unsigned int tall = 0; tall < 2; ++tall) {
      Quad found[2][PIECES];
      narrowed<WIDE, OUTER_RELU>(found, last[tall], here + THIRD_NUMBERS, quarter);
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
          if (there[tall][half]) out[from[tall][half] * EACH + 4 * piece + quarter] = found[half][piece];
        }
      }
    }
#endif
  }
}
