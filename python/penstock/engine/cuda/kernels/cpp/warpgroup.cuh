// What four warps do together on Hopper, as PTX: products whose operands lie in shared memory, tiles of tensors loaded and
// stored by the machine that copies them, and registers handed from some warps to others. Needs compute capability 9.0a.
// As with `primitives.cuh`, tests have other definitions of these for the CPU. KIND: of what is multiplied, 0 sixteen
// bits, 1 INT8 (summed in INT32), 2 e4m3.
#pragma once
#include "primitives.cuh"

// Of a matrix in device memory, as the driver makes it: its address, sizes and the tile that is copied at once.
struct __align__(64) TensorMap {
  unsigned long long words[16];
};

struct __align__(8) Two {
  float low, high;
};

// ---- tiles of tensors: rows of 128 bytes, whose pieces of sixteen are exchanged as their row says ----

__device__ __forceinline__ void fetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// What lies outside of the tensor is zero; the barrier counts it all the same.
__device__ __forceinline__ void tile_load(Address to, const TensorMap& map, unsigned int column, unsigned int row,
                                          Address barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

// To the same place in some blocks of the cluster, each counting on its own barrier.
__device__ __forceinline__ void tile_load_to(unsigned short blocks, Address to, const TensorMap& map,
                                             unsigned int column, unsigned int row, Address barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
      : "memory");
}

// Of a picture [images, high, wide, channels], pixels in a row of those a window's corner goes to, from one corner on:
// from the end of a row to the next one's beginning, and on to the next picture; `tap_...` further down and to the right.
__device__ __forceinline__ void window_load(Address to, const TensorMap& map, unsigned int channel, int wide, int high,
                                            int image, unsigned int tap_wide, unsigned int tap_high, Address barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2], {%7, %8};" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(channel), "r"(wide), "r"(high), "r"(image),
      "h"(static_cast<unsigned short>(tap_wide)), "h"(static_cast<unsigned short>(tap_high))
      : "memory");
}

// Of the same, a rectangle of pixels.
__device__ __forceinline__ void pixels_load(Address to, const TensorMap& map, unsigned int channel, int wide, int high,
                                            int image, Address barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
          to),
      "l"(&map), "r"(barrier), "r"(channel), "r"(wide), "r"(high), "r"(image)
      : "memory");
}

__device__ __forceinline__ void pixels_store(const TensorMap& map, unsigned int channel, int wide, int high, int image,
                                             Address from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(from), "r"(channel), "r"(wide), "r"(high), "r"(image)
               : "memory");
}

// Those of `pixels_store` since the last time count as one store.
__device__ __forceinline__ void stores_are_one() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// To the second cache only.
__device__ __forceinline__ void tile_fetch(const TensorMap& map, unsigned int column, unsigned int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row) : "memory");
}

// What lies outside of the tensor is not stored.
__device__ __forceinline__ void tile_store(const TensorMap& map, unsigned int column, unsigned int row, Address from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from),
               "r"(column), "r"(row)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Of this thread's stores, all but so many have read what they store.
template <int BUT>
__device__ __forceinline__ void stores_have_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(BUT) : "memory");
}

// What this thread wrote to shared memory is seen by stores of tiles from here on.
__device__ __forceinline__ void show_to_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- barriers ----

__device__ __forceinline__ void barrier_arrive(Address barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One of `address_in_block`. It says that this warp has read what was copied, and nothing that it wrote is to be seen there:
// released to the whole cluster it would wait each time till the device has seen all its writes.
__device__ __forceinline__ void barrier_arrive_there(Address barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// All threads of the cluster: no more is known of the others than that they are there, and have made their barriers.
__device__ __forceinline__ void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void warp_sync() { __syncwarp(); }

// ---- registers: every thread of four warps in a row asks for so many ----

template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- memory ----

__device__ __forceinline__ Two load_two(const float* from) {
  Two value;
  asm("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(value.low), "=f"(value.high) : "l"(from));
  return value;
}

__device__ __forceinline__ unsigned short shared_load_short(Address from) {
  unsigned short value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
  return value;
}

__device__ __forceinline__ void shared_store_short(Address to, unsigned short value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
}

// ---- numbers ----

// Two of e4m3, the largest where there is none so large.
__device__ __forceinline__ unsigned short narrow_to_e4m3(float low, float high) {
  unsigned short both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
  return both;
}

// Two of INT8, to the nearest, ties to even, saturating; 0 of what is no number.
__device__ __forceinline__ unsigned short narrow_to_int8(float low, float high) {
  unsigned int both;
  asm("{\n"
      ".reg .s32 low, high;\n"
      "cvt.rni.s32.f32 low, %1;\n"
      "cvt.rni.s32.f32 high, %2;\n"
      "cvt.pack.sat.s8.s32.b32 %0, high, low, 0;\n"
      "}"
      : "=r"(both)
      : "f"(low), "f"(high));
  return static_cast<unsigned short>(both);
}

__device__ __forceinline__ Two wide_of_e4m3(unsigned short both) {
  Two value;
  asm("{\n"
      ".reg .b32 halves;\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.f16x2.e4m3x2 halves, %2;\n"
      "mov.b32 {low, high}, halves;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}"
      : "=f"(value.low), "=f"(value.high)
      : "h"(both));
  return value;
}

// ---- products of four warps ----

#if KIND == 1
using Sum = int;
#define LETTER(sum) "+r"(sum)
#else
using Sum = float;
#define LETTER(sum) "+f"(sum)
#endif

// Where a matrix lies in shared memory: the lower word of what describes it. The upper one is the same for all: how far it is
// from eight rows to the next eight, and that pieces are exchanged within a row of DEPTH_BYTES, 128 if it is not given.
using Matrix = unsigned int;
#if defined(DEPTH_BYTES) && DEPTH_BYTES == 64
#define UPPER_WORD "0x80000020"
#else
#define UPPER_WORD "0x40000040"
#endif

// Rows below each other, from an address that is a multiple of eight of them; 32 bytes further in the depth are
// `MATRIX_STEP` more.
__device__ __forceinline__ Matrix matrix_at(Address address) { return (address & 0x3ffff) >> 4 | 1u << 16; }
constexpr Matrix MATRIX_STEP = 2;

// Before the first product that adds to a sum, and again where the sum was touched.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int BUT>
__device__ __forceinline__ void products_are_done() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(BUT) : "memory");
}

// Sums may be read after `products_are_done`, and not before: the compiler does not see that one depends on the other.
template <int SIZE>
__device__ __forceinline__ void hold(Sum (&sum)[SIZE]) {
#pragma unroll
  for (int number = 0; number < SIZE; ++number) asm volatile("" : LETTER(sum[number])::"memory");
}

#if KIND == 1
#define TYPES "k32.s32.s8.s8"
#define FLAGS ""
#elif KIND == 2
#define TYPES "k32.f32.e4m3.e4m3"
#define FLAGS ", 1, 1"
#elif defined(BFLOAT16)
#define TYPES "k16.f32.bf16.bf16"
#define FLAGS ", 1, 1, 0, 0"
#else
#define TYPES "k16.f32.f16.f16"
#define FLAGS ", 1, 1, 0, 0"
#endif
#define EIGHT(sum, at)                                                                                          \
  LETTER(sum[at]), LETTER(sum[at + 1]), LETTER(sum[at + 2]), LETTER(sum[at + 3]), LETTER(sum[at + 4]), LETTER(sum[at + 5]), \
      LETTER(sum[at + 6]), LETTER(sum[at + 7])

#define FOUR(sum, at) LETTER(sum[at]), LETTER(sum[at + 1]), LETTER(sum[at + 2]), LETTER(sum[at + 3])

// sum [64, columns] (+)= a [64, 32 bytes] times b [columns, 32 bytes] transposed; where `add` is 0 what the sum was does not matter.
// Warp w has the rows from 16 w on: lane l of each eight columns the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4,
// then those of row l / 4 + 8. Under way until `products_are_done`.
__device__ __forceinline__ void multiply_rows(Sum (&sum)[32], Matrix a, Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 adds, %34, 0;\n"
      "mov.b64 a, {%32, " UPPER_WORD "};\n"
      "mov.b64 b, {%33, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n64" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "a, b, adds" FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24)
      : "r"(a), "r"(b), "r"(add));
}

__device__ __forceinline__ void multiply_rows(Sum (&sum)[64], Matrix a, Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 adds, %66, 0;\n"
      "mov.b64 a, {%64, " UPPER_WORD "};\n"
      "mov.b64 b, {%65, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n128" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "a, b, adds" FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24),
        EIGHT(sum, 32), EIGHT(sum, 40), EIGHT(sum, 48), EIGHT(sum, 56)
      : "r"(a), "r"(b), "r"(add));
}

#if KIND != 1  // units for INT8 know no such width
__device__ __forceinline__ void multiply_rows(Sum (&sum)[52], Matrix a, Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 adds, %54, 0;\n"
      "mov.b64 a, {%52, " UPPER_WORD "};\n"
      "mov.b64 b, {%53, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n104" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51}, "
      "a, b, adds" FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24),
        EIGHT(sum, 32), EIGHT(sum, 40), FOUR(sum, 48)
      : "r"(a), "r"(b), "r"(add));
}
#endif

__device__ __forceinline__ void multiply_rows(Sum (&sum)[96], Matrix a, Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 adds, %98, 0;\n"
      "mov.b64 a, {%96, " UPPER_WORD "};\n"
      "mov.b64 b, {%97, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n192" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, "
      "%72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, "
      "%88, %89, %90, %91, %92, %93, %94, %95}, "
      "a, b, adds" FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24),
        EIGHT(sum, 32), EIGHT(sum, 40), EIGHT(sum, 48), EIGHT(sum, 56),
        EIGHT(sum, 64), EIGHT(sum, 72), EIGHT(sum, 80), EIGHT(sum, 88)
      : "r"(a), "r"(b), "r"(add));
}

__device__ __forceinline__ void multiply_rows(Sum (&sum)[128], Matrix a, Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 a, b;\n"
      "setp.ne.b32 adds, %130, 0;\n"
      "mov.b64 a, {%128, " UPPER_WORD "};\n"
      "mov.b64 b, {%129, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n256" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, "
      "%72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, "
      "%88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, "
      "%104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, "
      "%120, %121, %122, %123, %124, %125, %126, %127}, "
      "a, b, adds" FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24),
        EIGHT(sum, 32), EIGHT(sum, 40), EIGHT(sum, 48), EIGHT(sum, 56),
        EIGHT(sum, 64), EIGHT(sum, 72), EIGHT(sum, 80), EIGHT(sum, 88),
        EIGHT(sum, 96), EIGHT(sum, 104), EIGHT(sum, 112), EIGHT(sum, 120)
      : "r"(a), "r"(b), "r"(add));
}

#if KIND == 0
// sum [64, columns] (+)= a [64, 16] times b [columns, 16] transposed, where rows of b begin sixteen bytes after each other
// and share what they have in common. Of a a lane has the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, those of row
// l / 4 + 8, and the same of eight numbers further on. Sums as above.
#define A_FLAGS ", 1, 1, 0"
__device__ __forceinline__ void multiply_windows(float (&sum)[32], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 adds, %37, 0;\n"
      "mov.b64 b, {%36, 0x8};\n"
      "wgmma.mma_async.sync.aligned.m64n64" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, b, adds" A_FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));
}

__device__ __forceinline__ void multiply_windows(float (&sum)[48], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 adds, %53, 0;\n"
      "mov.b64 b, {%52, 0x8};\n"
      "wgmma.mma_async.sync.aligned.m64n96" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47}, "
      "{%48, %49, %50, %51}, b, adds" A_FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24), EIGHT(sum, 32), EIGHT(sum, 40)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));
}

__device__ __forceinline__ void multiply_windows(float (&sum)[56], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 adds, %61, 0;\n"
      "mov.b64 b, {%60, 0x8};\n"
      "wgmma.mma_async.sync.aligned.m64n112" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55}, "
      "{%56, %57, %58, %59}, b, adds" A_FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24), EIGHT(sum, 32), EIGHT(sum, 40), EIGHT(sum, 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));
}

__device__ __forceinline__ void multiply_windows(float (&sum)[64], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 adds, %69, 0;\n"
      "mov.b64 b, {%68, 0x8};\n"
      "wgmma.mma_async.sync.aligned.m64n128" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, b, adds" A_FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24), EIGHT(sum, 32), EIGHT(sum, 40), EIGHT(sum, 48), EIGHT(sum, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));
}
// The same with b as in `multiply_rows`.
__device__ __forceinline__ void multiply_held(float (&sum)[32], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 adds, %37, 0;\n"
      "mov.b64 b, {%36, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n64" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, b, adds" A_FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));
}

__device__ __forceinline__ void multiply_held(float (&sum)[64], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      ".reg .b64 b;\n"
      "setp.ne.b32 adds, %69, 0;\n"
      "mov.b64 b, {%68, " UPPER_WORD "};\n"
      "wgmma.mma_async.sync.aligned.m64n128" TYPES " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, b, adds" A_FLAGS ";\n"
      "}\n"
      : EIGHT(sum, 0), EIGHT(sum, 8), EIGHT(sum, 16), EIGHT(sum, 24), EIGHT(sum, 32), EIGHT(sum, 40), EIGHT(sum, 48), EIGHT(sum, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add));
}
#undef A_FLAGS
#endif

#undef EIGHT
#undef FOUR
#undef TYPES
#undef UPPER_WORD
#undef FLAGS
#undef LETTER
