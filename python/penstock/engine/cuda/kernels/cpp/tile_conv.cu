// A convolution of few filters over a large map: what a tile of results sees lies in shared memory, read once, and so do
// all weights, as lanes multiply by them. The depth runs through eight channels at a time, of one tap after the other.
//
// Given by whoever compiles:
//   HEIGHT WIDTH OUT_HEIGHT OUT_WIDTH   of the pictures
//   CHANNELS FILTERS                    multiples of eight
//   TAPS_HIGH TAPS_WIDE STRIDE_HIGH STRIDE_WIDE PAD_TOP PAD_LEFT
//   X_PITCH OUT_PITCH                   numbers from one pixel to the next
//   HIGH WIDE WARPS TALL                pixels of a block, and times sixteen of them that a warp has at a time
//   ACTIVATION                          0 none, 1 relu
//   HAS_BIAS
//   BFLOAT16                            defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int THREADS = 32 * WARPS;
constexpr unsigned int GROUPS = CHANNELS / 8, COLUMNS = FILTERS / 8;
constexpr unsigned int PITCH = 16 * (GROUPS | 1);  // bytes, of a pixel: eight of them lie in all banks
constexpr unsigned int SEEN_HIGH = (HIGH - 1) * STRIDE_HIGH + TAPS_HIGH, SEEN_WIDE = (WIDE - 1) * STRIDE_WIDE + TAPS_WIDE;
constexpr unsigned int SEEN = SEEN_HIGH * SEEN_WIDE;
constexpr unsigned int DEPTH = TAPS_HIGH * TAPS_WIDE * GROUPS, PAIRS = (DEPTH + 3) / 4;  // of steps of sixteen
constexpr unsigned int WEIGHTS = PAIRS * COLUMNS * 32;                                   // pieces of sixteen bytes
constexpr unsigned int TILES_WIDE = (OUT_WIDTH + WIDE - 1) / WIDE, TILES_HIGH = (OUT_HEIGHT + HIGH - 1) / HIGH;
constexpr unsigned int PIXELS = HIGH * WIDE;

// Of eight channels of a tap, from a window's first pixel; those beyond the depth have no weight, and are the first again.
__device__ constexpr unsigned int place(unsigned int group) {
  return group >= DEPTH ? 0
                        : (group / GROUPS / TAPS_WIDE * SEEN_WIDE + group / GROUPS % TAPS_WIDE) * PITCH + group % GROUPS * 16;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    tile_conv(const unsigned short* x, const Quad* w,
#if HAS_BIAS
              const float* bias,
#endif
              unsigned short* out) {
  extern __shared__ Quad memory[];
  const unsigned int thread = thread_index(), lane = thread % 32, warp = thread / 32, row = lane / 4;
  const Address weights = shared_address(memory), seen = weights + 16 * WEIGHTS;
  const unsigned int image = block_index() / (TILES_WIDE * TILES_HIGH), tile = block_index() % (TILES_WIDE * TILES_HIGH);
  const unsigned int top = tile / TILES_WIDE * HIGH, left = tile % TILES_WIDE * WIDE;

  for (unsigned int item = thread; item < WEIGHTS; item += THREADS) copy_ahead(weights + 16 * item, w + item, true);
  copies_commit();
  float offsets[COLUMNS][2];
#pragma unroll
  for (unsigned int column = 0; column < COLUMNS; ++column) {
    offsets[column][0] = offsets[column][1] = 0.0f;
#if HAS_BIAS
    offsets[column][0] = bias[8 * column + 2 * (lane % 4)], offsets[column][1] = bias[8 * column + 2 * (lane % 4) + 1];
#endif
  }
  wait_for_kernel_ahead();
  let_kernel_behind_start();

  for (unsigned int item = thread; item < SEEN * GROUPS; item += THREADS) {
    const unsigned int pixel = item / GROUPS, group = item % GROUPS;
    const int y = static_cast<int>(top * STRIDE_HIGH + pixel / SEEN_WIDE) - PAD_TOP;
    const int z = static_cast<int>(left * STRIDE_WIDE + pixel % SEEN_WIDE) - PAD_LEFT;
    const bool there = y >= 0 && y < HEIGHT && z >= 0 && z < WIDTH;
    const int at = there ? (static_cast<int>(image) * HEIGHT + y) * WIDTH + z : 0;
    copy_ahead(seen + pixel * PITCH + 16 * group, reinterpret_cast<const Quad*>(x + at * X_PITCH + 8 * group), there);
  }
  copies_commit();
  copies_are_done();
  block_sync();

#pragma unroll 1
  for (unsigned int first = 16 * TALL * warp; first < PIXELS; first += 16 * TALL * WARPS) {
    Address pixels[TALL];
    float sums[TALL][COLUMNS][4];
#pragma unroll
    for (unsigned int part = 0; part < TALL; ++part) {
      const unsigned int wanted = first + 16 * part + lane % 16, own = wanted < PIXELS ? wanted : PIXELS - 1;
      pixels[part] = seen + (own / WIDE * STRIDE_HIGH * SEEN_WIDE + own % WIDE * STRIDE_WIDE) * PITCH;
#pragma unroll
      for (unsigned int column = 0; column < COLUMNS; ++column) {
#pragma unroll
        for (unsigned int number = 0; number < 4; ++number) sums[part][column][number] = offsets[column][number % 2];
      }
    }
#pragma unroll
    for (unsigned int pair = 0; pair < PAIRS; ++pair) {
      Quad right[COLUMNS];
#pragma unroll
      for (unsigned int column = 0; column < COLUMNS; ++column) {
        right[column] = shared_load_quad(weights + ((pair * COLUMNS + column) * 32 + lane) * 16);
      }
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
        const unsigned int low = place(4 * pair + 2 * half), high = place(4 * pair + 2 * half + 1);
#pragma unroll
        for (unsigned int part = 0; part < TALL; ++part) {
          const Quad above = load_matrices(pixels[part] + (lane < 16 ? low : high));
#pragma unroll
          for (unsigned int column = 0; column < COLUMNS; ++column) {
            multiply_add(sums[part][column], above, half ? right[column].z : right[column].x,
                         half ? right[column].w : right[column].y);
          }
        }
      }
    }
#pragma unroll
    for (unsigned int part = 0; part < TALL; ++part) {
#pragma unroll
      for (unsigned int half = 0; half < 2; ++half) {
        const unsigned int at = first + 16 * part + row + 8 * half, y = top + at / WIDE, z = left + at % WIDE;
        if (at < PIXELS && y < OUT_HEIGHT && z < OUT_WIDTH) {
          unsigned short* to = out + ((image * OUT_HEIGHT + y) * OUT_WIDTH + z) * OUT_PITCH + 2 * (lane % 4);
#pragma unroll
          for (unsigned int column = 0; column < COLUMNS; ++column) {
            float one = sums[part][column][2 * half], other = sums[part][column][2 * half + 1];
            if (ACTIVATION == 1) one = greater(one, 0.0f), other = greater(other, 0.0f);
            *reinterpret_cast<unsigned int*>(to + 8 * column) = narrow(one, other);
          }
        }
      }
    }
  }
}
