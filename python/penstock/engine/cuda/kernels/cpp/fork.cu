// A map's 2 x 2 maxima and a 2 x 2 convolution of a 2 x 2 convolution of it, side by side in one result: stride 1, windows
// that overhang below and to the right.
//
// A block has HIGH x WIDE pixels of one image. What they see lies in shared memory, read once; so does what the first
// convolution makes of it, one row and one column more than there are results, each number once. Weights lie in memory
// as lanes multiply by them. The depth of a product runs through eight channels at a time, of any of the four taps.
//
// Given by whoever compiles:
//   HEIGHT WIDTH                   of the pictures
//   CHANNELS BETWEEN MADE          of x, between, and of the second convolution; CHANNELS and MADE multiples of eight
//   X_PITCH OUT_PITCH              numbers from one pixel to the next
//   HIGH WIDE WARPS                how it is cut
//   INNER OUTER                    activations: 0 none, 1 relu
//   HAS_FIRST_BIAS HAS_SECOND_BIAS
//   BFLOAT16                       defined: sixteen bits are BF16, else FP16
#include "primitives.cuh"

constexpr unsigned int RELU = 1;
constexpr unsigned int THREADS = 32 * WARPS;
__device__ constexpr unsigned int odd(unsigned int pieces) { return pieces | 1; }  // rows of so many pieces lie in all banks
constexpr unsigned int GROUPS = CHANNELS / 8, INNER_GROUPS = (BETWEEN + 7) / 8, OUTER_GROUPS = MADE / 8;
constexpr unsigned int SEEN_WIDE = WIDE + 2, SEEN = (HIGH + 2) * SEEN_WIDE, SEEN_PITCH = 16 * odd(GROUPS);
constexpr unsigned int MIDDLE_WIDE = WIDE + 1, MIDDLE = (HIGH + 1) * MIDDLE_WIDE, MIDDLE_PITCH = 16 * odd(INNER_GROUPS);
constexpr unsigned int TILES_WIDE = (WIDTH + WIDE - 1) / WIDE, TILES_HIGH = (HEIGHT + HIGH - 1) / HIGH;

template <unsigned int ACTIVATION>
__device__ __forceinline__ float activated(float x) {
  return ACTIVATION == RELU ? greater(x, 0.0f) : x;
}

// Of 8 COLUMNS results, all of the depth, which is four taps: [column tile][pair of steps][lane] as they are multiplied.
template <unsigned int COLUMNS, unsigned int DEPTH_GROUPS>
struct Weights {
  Quad words[COLUMNS][DEPTH_GROUPS];

  __device__ __forceinline__ void load(const Quad* from, unsigned int lane) {
#pragma unroll
    for (unsigned int column = 0; column < COLUMNS; ++column) {
#pragma unroll
      for (unsigned int pair = 0; pair < DEPTH_GROUPS; ++pair) {
        words[column][pair] = load_constant(from + (column * DEPTH_GROUPS + pair) * 32 + lane);
      }
    }
  }

  // Sixteen pixels, of which the lane gives the address of one; WIDTH_OF_MAP pixels of PITCH bytes make a row.
  template <unsigned int WIDTH_OF_MAP, unsigned int PITCH>
  __device__ __forceinline__ void multiply(float (&sums)[COLUMNS][4], Address pixel, unsigned int lane) const {
#pragma unroll
    for (unsigned int step = 0; step < 2 * DEPTH_GROUPS; ++step) {
      const unsigned int low = 2 * step, high = 2 * step + 1;
      const unsigned int first = (low / DEPTH_GROUPS / 2 * WIDTH_OF_MAP + low / DEPTH_GROUPS % 2) * PITCH + low % DEPTH_GROUPS * 16;
      const unsigned int second = (high / DEPTH_GROUPS / 2 * WIDTH_OF_MAP + high / DEPTH_GROUPS % 2) * PITCH + high % DEPTH_GROUPS * 16;
      const Quad left = load_matrices(pixel + (lane < 16 ? first : second));
#pragma unroll
      for (unsigned int column = 0; column < COLUMNS; ++column) {
        const Quad& right = words[column][step / 2];
        multiply_add(sums[column], left, step % 2 ? right.z : right.x, step % 2 ? right.w : right.y);
      }
    }
  }
};

template <unsigned int COLUMNS>
__device__ __forceinline__ void begin(float (&sums)[COLUMNS][4], const float (&offsets)[COLUMNS][2]) {
#pragma unroll
  for (unsigned int column = 0; column < COLUMNS; ++column) {
#pragma unroll
    for (unsigned int number = 0; number < 4; ++number) sums[column][number] = offsets[column][number % 2];
  }
}

template <unsigned int COLUMNS>
__device__ __forceinline__ void load(float (&offsets)[COLUMNS][2], const float* bias, unsigned int count, unsigned int lane) {
#pragma unroll
  for (unsigned int column = 0; column < COLUMNS; ++column) {
#pragma unroll
    for (unsigned int each = 0; each < 2; ++each) {
      const unsigned int at = 8 * column + 2 * (lane % 4) + each;
      offsets[column][each] = bias != nullptr && at < count ? bias[at] : 0.0f;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    fork_maps(const unsigned short* x, const Quad* w1,
#if HAS_FIRST_BIAS
              const float* b1,
#endif
              const Quad* w2,
#if HAS_SECOND_BIAS
              const float* b2,
#endif
              unsigned short* out) {
  extern __shared__ Quad memory[];
#if !HAS_FIRST_BIAS
  const float* b1 = nullptr;
#endif
#if !HAS_SECOND_BIAS
  const float* b2 = nullptr;
#endif
  const unsigned int thread = thread_index(), lane = thread % 32, warp = thread / 32, row = lane / 4;
  const Address seen = shared_address(memory), middle = seen + SEEN * SEEN_PITCH;
  const unsigned int image = block_index() / (TILES_WIDE * TILES_HIGH), tile = block_index() % (TILES_WIDE * TILES_HIGH);
  const unsigned int top = tile / TILES_WIDE * HIGH, left = tile % TILES_WIDE * WIDE;

  Weights<INNER_GROUPS, GROUPS> firsts;
  firsts.load(w1, lane);
  float offsets[INNER_GROUPS][2];
  load<INNER_GROUPS>(offsets, b1, BETWEEN, lane);
  wait_for_kernel_ahead();
  let_kernel_behind_start();

  for (unsigned int item = thread; item < SEEN * GROUPS; item += THREADS) {
    const unsigned int pixel = item / GROUPS, group = item % GROUPS;
    const unsigned int y = top + pixel / SEEN_WIDE, z = left + pixel % SEEN_WIDE;
    const bool there = y < HEIGHT && z < WIDTH;
    const unsigned int at = there ? (image * HEIGHT + y) * WIDTH + z : 0;
    copy_ahead(seen + pixel * SEEN_PITCH + 16 * group, reinterpret_cast<const Quad*>(x + at * X_PITCH + 8 * group), there);
  }
  copies_commit();
  copies_are_done();
  block_sync();

#pragma unroll 1
  for (unsigned int first = 16 * warp; first < MIDDLE; first += 16 * WARPS) {
    const unsigned int own = first + lane % 16 < MIDDLE ? first + lane % 16 : MIDDLE - 1;
    float sums[INNER_GROUPS][4];
    begin<INNER_GROUPS>(sums, offsets);
    const Address pixel = seen + (own / MIDDLE_WIDE * SEEN_WIDE + own % MIDDLE_WIDE) * SEEN_PITCH;
    firsts.template multiply<SEEN_WIDE, SEEN_PITCH>(sums, pixel, lane);
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const unsigned int at = first + row + 8 * half;
      if (at < MIDDLE) {
        // The second convolution is padded with zeros, not with what the first would make of its padding.
        const bool there = top + at / MIDDLE_WIDE < HEIGHT && left + at % MIDDLE_WIDE < WIDTH;
#pragma unroll
        for (unsigned int column = 0; column < INNER_GROUPS; ++column) {
          const unsigned int both = narrow(activated<INNER>(sums[column][2 * half]), activated<INNER>(sums[column][2 * half + 1]));
          shared_store(middle + at * MIDDLE_PITCH + 16 * column + 4 * (lane % 4), there ? both : 0u);
        }
      }
    }
  }

  for (unsigned int item = thread; item < HIGH * WIDE * GROUPS; item += THREADS) {
    const unsigned int pixel = item / GROUPS, group = item % GROUPS;
    const unsigned int y = pixel / WIDE, z = pixel % WIDE;
    if (top + y < HEIGHT && left + z < WIDTH) {
      // A window that overhangs sees its last row or column once more.
      const unsigned int below = top + y + 1 < HEIGHT ? SEEN_WIDE * SEEN_PITCH : 0, beside = left + z + 1 < WIDTH ? SEEN_PITCH : 0;
      const Address at = seen + (y * SEEN_WIDE + z) * SEEN_PITCH + 16 * group;
      const Quad one = shared_load_quad(at), two = shared_load_quad(at + beside);
      const Quad three = shared_load_quad(at + below), four = shared_load_quad(at + below + beside);
      const Quad largest = Quad{
          greater_of_both(greater_of_both(one.x, two.x), greater_of_both(three.x, four.x)),
          greater_of_both(greater_of_both(one.y, two.y), greater_of_both(three.y, four.y)),
          greater_of_both(greater_of_both(one.z, two.z), greater_of_both(three.z, four.z)),
          greater_of_both(greater_of_both(one.w, two.w), greater_of_both(three.w, four.w))};
      const unsigned int to = (image * HEIGHT + top + y) * WIDTH + left + z;
      *reinterpret_cast<Quad*>(out + to * OUT_PITCH + 8 * group) = largest;
    }
  }

  Weights<OUTER_GROUPS, INNER_GROUPS> seconds;
  seconds.load(w2, lane);
  float ends[OUTER_GROUPS][2];
  load<OUTER_GROUPS>(ends, b2, MADE, lane);
  block_sync();
#pragma unroll 1
  for (unsigned int first = 16 * warp; first < HIGH * WIDE; first += 16 * WARPS) {
    const unsigned int own = first + lane % 16 < HIGH * WIDE ? first + lane % 16 : HIGH * WIDE - 1;
    float sums[OUTER_GROUPS][4];
    begin<OUTER_GROUPS>(sums, ends);
    const Address pixel = middle + (own / WIDE * MIDDLE_WIDE + own % WIDE) * MIDDLE_PITCH;
    seconds.template multiply<MIDDLE_WIDE, MIDDLE_PITCH>(sums, pixel, lane);
#pragma unroll
    for (unsigned int half = 0; half < 2; ++half) {
      const unsigned int at = first + row + 8 * half, y = top + at / WIDE, z = left + at % WIDE;
      if (at < HIGH * WIDE && y < HEIGHT && z < WIDTH) {
        unsigned short* to = out + ((image * HEIGHT + y) * WIDTH + z) * OUT_PITCH + CHANNELS + 2 * (lane % 4);
#pragma unroll
        for (unsigned int column = 0; column < OUTER_GROUPS; ++column) {
          *reinterpret_cast<unsigned int*>(to + 8 * column) =
              narrow(activated<OUTER>(sums[column][2 * half]), activated<OUTER>(sums[column][2 * half + 1]));
        }
      }
    }
  }
}
