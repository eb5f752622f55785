// What CUDA C++ has no operators for, as PTX: matrix products of a warp, numbers of sixteen bits, and the barriers and
// stores by which the blocks of a cluster hand each other data. Needs compute capability 9.0 and no header.
// Kernels include nothing else, so that tests can compile them for the CPU with other definitions of these.
#pragma once

using Address = unsigned int;  // of shared memory: a block's own, or with a rank in it that of another in the cluster
using Barrier = unsigned long long;

struct __align__(8) Pair {
  unsigned int x, y;
};

struct __align__(16) Quad {
  unsigned int x, y, z, w;
};

struct __align__(16) Floats {
  float x, y, z, w;
};

// ---- where one is ----

__device__ __forceinline__ unsigned int thread_index() { return threadIdx.x; }
__device__ __forceinline__ unsigned int block_index() { return blockIdx.x; }

__device__ __forceinline__ unsigned int cluster_rank() {
  unsigned int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ Address shared_address(const void* pointer) {
  return static_cast<Address>(__cvta_generic_to_shared(pointer));
}

// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ Address address_in_block(Address own, unsigned int rank) {
  Address other;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
  return other;
}

// ---- the kernel ahead, and the one behind ----

__device__ __forceinline__ void wait_for_kernel_ahead() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_kernel_behind_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- blocks and clusters ----

__device__ __forceinline__ void block_sync() { __syncthreads(); }

// Of some warps of the block: barrier 0 is the block's.
__device__ __forceinline__ void warps_sync(unsigned int barrier, unsigned int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ void barrier_init(Address barrier, unsigned int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Initialised barriers are seen by the other blocks once the cluster has met.
__device__ __forceinline__ void barriers_initialised() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrive, and let the phase end when so many bytes have been stored, some of them perhaps already.
__device__ __forceinline__ void barrier_expect(Address barrier, unsigned int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Of the data that came with the phase, a block needs no wider order than its own: a cluster-wide acquire would empty
// the first cache each time.
__device__ __forceinline__ void barrier_wait(Address barrier, unsigned int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Sixteen bytes into the shared memory of any block of the cluster, counted by a barrier there.
__device__ __forceinline__ void store_async(Address to, Quad value, Address barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
      : "memory");
}

// ---- memory ----

__device__ __forceinline__ Quad load_constant(const Quad* from) {
  Quad value;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

__device__ __forceinline__ Pair load_constant(const Pair* from) {
  Pair value;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
  return value;
}

// Of what the kernel ahead wrote, past the first cache: it may hold what was there before.
__device__ __forceinline__ Pair load_fresh(const Pair* from) {
  Pair value;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ Floats load_fresh(const Floats* from) {
  Floats value;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

__device__ __forceinline__ unsigned short load_fresh(const unsigned short* from) {
  unsigned short value;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ Quad load_fresh(const Quad* from) {
  Quad value;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

__device__ __forceinline__ void shared_store(Address to, Pair value) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(value.x), "r"(value.y) : "memory");
}

__device__ __forceinline__ void shared_store(Address to, Quad value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}

__device__ __forceinline__ Pair shared_load(Address from) {
  Pair value;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(from) : "memory");
  return value;
}

__device__ __forceinline__ Quad shared_load_quad(Address from) {
  Quad value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

// Sixteen bytes into shared memory, zero where they are not `there`, past the first cache and while others go on.
__device__ __forceinline__ void copy_ahead(Address to, const Quad* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copies_are_done() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ unsigned int shared_load_word(Address from) {
  unsigned int value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}

__device__ __forceinline__ void shared_store(Address to, unsigned int value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void shared_store(Address to, const float (&value)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(value[0]), "f"(value[1]), "f"(value[2]),
               "f"(value[3])
               : "memory");
}

__device__ __forceinline__ Floats shared_load_floats(Address from) {
  Floats value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

// Four 8 x 8 matrices of which lane l gives the address of row l % 8 of matrix l / 8; of each matrix a lane gets the
// numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ Quad load_matrices(Address row) {
  Quad value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(row)
               : "memory");
  return value;
}

// ---- warps ----

__device__ __forceinline__ unsigned int from_lane(unsigned int value, unsigned int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

__device__ __forceinline__ int from_lane(int value, unsigned int lane) { return __shfl_sync(0xffffffffu, value, lane); }
__device__ __forceinline__ float from_lane(float value, unsigned int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// An 8 x 8 matrix of which a lane holds the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, and then of column l / 4.
__device__ __forceinline__ unsigned int transposed(unsigned int value) {
  unsigned int other;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(value));
  return other;
}

// sum [16, 8] += a [16, 16] times b [16, 8]
__device__ __forceinline__ void multiply_add(float (&sum)[4], const Quad& a, unsigned int b_low, unsigned int b_high) {
#ifdef BFLOAT16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
#endif
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b_low), "r"(b_high));
}

// sum [16, 8] += a [16, 8] times b [8, 8]
__device__ __forceinline__ void multiply_add_half(float (&sum)[4], unsigned int a_upper, unsigned int a_lower, unsigned int b) {
#ifdef BFLOAT16
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
#endif
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a_upper), "r"(a_lower), "r"(b));
}

// sum [16, 8] += a [16, 32] times b [32, 8], INT8: four numbers where the other has two.
__device__ __forceinline__ void multiply_add(int (&sum)[4], const Quad& a, unsigned int b_low, unsigned int b_high) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b_low), "r"(b_high));
}

// sum [16, 8] += a [16, 16] times b [16, 8], INT8
__device__ __forceinline__ void multiply_add_half(int (&sum)[4], unsigned int a_upper, unsigned int a_lower, unsigned int b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a_upper), "r"(a_lower), "r"(b));
}

// ---- numbers ----

__device__ __forceinline__ unsigned int bits_of_float(float number) { return __float_as_uint(number); }

// Whole numbers and FP32 by what the bits of 1.5 x 2^23 and more mean: conversions are instructions of a slow unit.

// Of less than 2^22.
__device__ __forceinline__ float whole_to_float(int number) {
  return __int_as_float(number + 0x4b400000) - 12582912.0f;
}

__device__ __forceinline__ float byte_to_float(unsigned int word, unsigned int which) {
  return __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7440u + which)) - 8388736.0f;
}

// To the nearest, ties to even, saturating.
__device__ __forceinline__ unsigned int bytes(float first, float second, float third, float fourth) {
  unsigned int each[4];
  const float numbers[4] = {first, second, third, fourth};
#pragma unroll
  for (unsigned int number = 0; number < 4; ++number) {
    each[number] = __float_as_uint(fminf(fmaxf(numbers[number], -128.0f), 127.0f) + 12582912.0f);
  }
  return __byte_perm(__byte_perm(each[0], each[1], 0x0040), __byte_perm(each[2], each[3], 0x0040), 0x5410);
}

__device__ __forceinline__ unsigned int narrow(float low, float high) {
  unsigned int both;
#ifdef BFLOAT16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
  return both;
}

__device__ __forceinline__ float wide(unsigned short bits) {
#ifdef BFLOAT16
  return __uint_as_float(static_cast<unsigned int>(bits) << 16);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#endif
}

__device__ __forceinline__ float power_of_two(float exponent) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
  return value;
}

__device__ __forceinline__ float reciprocal(float number) {
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(number));
  return value;
}

// Right to about 2^-11.
__device__ __forceinline__ float rough_tanh(float number) {
  float value;
  asm("tanh.approx.f32 %0, %1;" : "=f"(value) : "f"(number));
  return value;
}

__device__ __forceinline__ unsigned int bits_of(float number) { return __float_as_uint(number); }

__device__ __forceinline__ float number_of(unsigned int bits) { return __uint_as_float(bits); }

// NaN if either is.
__device__ __forceinline__ float greater(float one, float other) {
  float value;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(value) : "f"(one), "f"(other));
  return value;
}

__device__ __forceinline__ float smaller(float one, float other) {
  float value;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(value) : "f"(one), "f"(other));
  return value;
}

// Two numbers of FP16 in a word, whatever sixteen bits are elsewhere.
__device__ __forceinline__ unsigned int halves_multiply_add(unsigned int one, unsigned int other, unsigned int sum) {
  unsigned int value;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(value) : "r"(one), "r"(other), "r"(sum));
  return value;
}

__device__ __forceinline__ unsigned int halves_add(unsigned int one, unsigned int other) {
  unsigned int value;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
  return value;
}

// To the nearest, ties to even.
__device__ __forceinline__ unsigned int halves_of_numbers(float low, float high) {
  unsigned int both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// 0 where the sum is less.
__device__ __forceinline__ unsigned int halves_add_bounded(unsigned int one, unsigned int other) {
  unsigned int value;
  asm("fma.rn.relu.f16x2 %0, %1, %2, %3;" : "=r"(value) : "r"(one), "r"(0x3c003c00u), "r"(other));
  return value;
}

__device__ __forceinline__ unsigned int greater_of_halves(unsigned int one, unsigned int other) {
  unsigned int value;
  asm("max.f16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
  return value;
}

__device__ __forceinline__ unsigned int smaller_of_halves(unsigned int one, unsigned int other) {
  unsigned int value;
  asm("min.f16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
  return value;
}

__device__ __forceinline__ float low_of_halves(unsigned int both) {
  float value;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, low;\n}" : "=f"(value) : "r"(both));
  return value;
}

__device__ __forceinline__ float high_of_halves(unsigned int both) {
  float value;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, high;\n}" : "=f"(value) : "r"(both));
  return value;
}

// Of eight bytes, the first's before the second's, those that the selector's four digits name, the last digit first.
__device__ __forceinline__ unsigned int permuted(unsigned int first, unsigned int second, unsigned int selector) {
  return __byte_perm(first, second, selector);
}

// Four numbers to INT8, to the nearest, ties to even, saturating; NaN to 0.
__device__ __forceinline__ unsigned int packed_int8(float first, float second, float third, float fourth) {
  unsigned int all;
  asm("{\n"
      ".reg .s32 a, b, c, d, high;\n"
      "cvt.rni.s32.f32 a, %1;\n"
      "cvt.rni.s32.f32 b, %2;\n"
      "cvt.rni.s32.f32 c, %3;\n"
      "cvt.rni.s32.f32 d, %4;\n"
      "cvt.pack.sat.s8.s32.b32 high, d, c, 0;\n"
      "cvt.pack.sat.s8.s32.b32 %0, b, a, high;\n"
      "}"
      : "=r"(all)
      : "f"(first), "f"(second), "f"(third), "f"(fourth));
  return all;
}

// Of two pairs of sixteen bits; NaN if either is.
__device__ __forceinline__ unsigned int greater_of_both(unsigned int one, unsigned int other) {
  unsigned int value;
#ifdef BFLOAT16
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
#else
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
#endif
  return value;
}

__device__ __forceinline__ unsigned int smaller_of_both(unsigned int one, unsigned int other) {
  unsigned int value;
#ifdef BFLOAT16
  asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
#else
  asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(value) : "r"(one), "r"(other));
#endif
  return value;
}
