// What threads do that walk down the rows of a depthwise convolution: each has one word of channels and COLUMNS results
// beside each other, keeps its filters and the rows of results that a pixel belongs to in registers, and adds a row of
// pixels at a time. What is given by whoever compiles is told in depthwise.cu.
#pragma once

constexpr unsigned int BOUNDED = 0, HARD_SWISH = 1, SILU = 2;
constexpr unsigned int NO_LOW = 0xff800000u, NO_HIGH = 0x7f800000u;

constexpr int TAPS = TAPS_HIGH * TAPS_WIDE;
constexpr int REACH = (COLUMNS - 1) * STRIDE_WIDE + TAPS_WIDE;  // pixels of a row that a strip looks at
constexpr int WALKS = (OUT_HEIGHT + ROWS - 1) / ROWS;
constexpr int KEPT = (TAPS_HIGH + STRIDE_HIGH - 1) / STRIDE_HIGH;  // rows of results that one row belongs to
constexpr int VECTOR = EIGHT_IN ? 4 : 2;                           // channels of a word
constexpr int VECTORS = CHANNELS / VECTOR;
constexpr int LANES = 2;  // of what is multiplied

static_assert(CHANNELS % VECTOR == 0 && OUT_PITCH % VECTOR == 0, "whole words");

#if EIGHT_IN
using Number = unsigned int;  // two of FP16

// A byte below 256 is the last bits of the half that is 1024 more.
__device__ __forceinline__ void spread(unsigned int word, Number (&to)[LANES]) {
  const unsigned int above = word ^ 0x80808080u;
  to[0] = halves_add(permuted(above, 0x64646464u, 0x4140u), 0xe480e480u);
  to[1] = halves_add(permuted(above, 0x64646464u, 0x4342u), 0xe480e480u);
}

__device__ __forceinline__ Number times_plus(Number one, Number other, Number sum) {
  return halves_multiply_add(one, other, sum);
}

__device__ __forceinline__ void load_filter(const unsigned int* w, int tap, unsigned int vector, Number (&to)[LANES]) {
  const unsigned int* from = w + (tap * VECTORS + vector) * LANES;
  to[0] = from[0], to[1] = from[1];
}

__device__ __forceinline__ float sum_of(const Number (&sum)[LANES], int channel) {
  return channel % 2 == 0 ? low_of_halves(sum[channel / 2]) : high_of_halves(sum[channel / 2]);
}
#else
using Number = float;

__device__ __forceinline__ void spread(unsigned int word, Number (&to)[LANES]) {
  to[0] = wide(static_cast<unsigned short>(word)), to[1] = wide(static_cast<unsigned short>(word >> 16));
}

__device__ __forceinline__ Number times_plus(Number one, Number other, Number sum) { return one * other + sum; }

__device__ __forceinline__ void load_filter(const unsigned int* w, int tap, unsigned int vector, Number (&to)[LANES]) {
  spread(w[tap * VECTORS + vector], to);
}

__device__ __forceinline__ float sum_of(const Number (&sum)[LANES], int channel) { return sum[channel]; }
#endif

// From a sum, its channel's factor and bias. Bounds are in the result's steps, and so are factor and bias.
__device__ __forceinline__ float finished(float sum, float factor, float bias) {
  float y = EIGHT_IN || EIGHT_OUT ? sum * factor + bias : sum + bias;
  if (ACTIVATION == HARD_SWISH) y = y * smaller(greater(y * 0.16666666666666666f + 0.5f, 0.0f), 1.0f);
  if (ACTIVATION == SILU) y = y * reciprocal(1.0f + power_of_two(y * -1.4426950408889634f));
  if (ACTIVATION != BOUNDED) return EIGHT_OUT ? y * number_of(OUT_INVERSE_BITS) : y;
  const float steps = EIGHT_OUT ? number_of(OUT_INVERSE_BITS) : 1.0f;
  if (LOW_BITS != NO_LOW) y = greater(y, number_of(LOW_BITS) * steps);
  // Those that are rounded to the largest of INT8 need no bound.
  if (HIGH_BITS != NO_HIGH && (!EIGHT_OUT || HIGH_MATTERS)) y = smaller(y, number_of(HIGH_BITS) * steps);
  return y;
}

// Of the finished numbers of a pixel, to where its channels lie.
#if EIGHT_OUT
using Out = unsigned char;
__device__ __forceinline__ void store(Out* to, const float (&y)[VECTOR]) {
#if EIGHT_IN
  *reinterpret_cast<unsigned int*>(to) = packed_int8(y[0], y[1], y[2], y[3]);
#else
  *reinterpret_cast<unsigned short*>(to) = static_cast<unsigned short>(packed_int8(y[0], y[1], 0.0f, 0.0f));
#endif
}
#else
using Out = unsigned short;
__device__ __forceinline__ void store(Out* to, const float (&y)[VECTOR]) {
#if EIGHT_IN
  *reinterpret_cast<Pair*>(to) = Pair{narrow(y[0], y[1]), narrow(y[2], y[3])};
#else
  *reinterpret_cast<unsigned int*>(to) = narrow(y[0], y[1]);
#endif
}
#endif

using Kept = Number[KEPT][COLUMNS][LANES];  // rows of results under way, the newest first

// A row of results is whole, the next one begins.
__device__ __forceinline__ void shift(Kept& kept) {
#pragma unroll
  for (int k = KEPT - 1; k >= 0; --k) {
#pragma unroll
    for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
      for (int lane = 0; lane < LANES; ++lane) {
        kept[k][column][lane] = k > 0 ? kept[k > 0 ? k - 1 : 0][column][lane] : Number(0);
      }
    }
  }
}

// Row number `t` of those between two rows of results.
__device__ __forceinline__ void add_row(Kept& kept, const Number (&pixels)[REACH][LANES],
                                        const Number (&filters)[TAPS][LANES], const int t) {
#pragma unroll
  for (int k = 0; k < KEPT; ++k) {
    const int r = t + STRIDE_HIGH * k;
    if (r < TAPS_HIGH) {
#pragma unroll
      for (int s = 0; s < TAPS_WIDE; ++s) {
#pragma unroll
        for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
          for (int lane = 0; lane < LANES; ++lane) {
            kept[k][column][lane] = times_plus(pixels[column * STRIDE_WIDE + s][lane],
                                               filters[r * TAPS_WIDE + s][lane], kept[k][column][lane]);
          }
        }
      }
    }
  }
}

// What sums are worth and what is added to them; an INT8 result's bounds, factor and offset are in its steps.
__device__ __forceinline__ void scales_of(float (&factor)[VECTOR], float (&offset)[VECTOR], const float* factors,
                                          const float* bias, unsigned int vector) {
#pragma unroll
  for (int channel = 0; channel < VECTOR; ++channel) {
    factor[channel] = 1.0f, offset[channel] = 0.0f;
    if (EIGHT_IN) factor[channel] = factors[vector * VECTOR + channel] * number_of(X_SCALE_BITS);
    if (HAS_BIAS) offset[channel] = bias[vector * VECTOR + channel];
    if (EIGHT_OUT && ACTIVATION == BOUNDED) {
      factor[channel] *= number_of(OUT_INVERSE_BITS), offset[channel] *= number_of(OUT_INVERSE_BITS);
    }
  }
}
