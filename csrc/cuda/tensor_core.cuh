// The instructions of the tensor cores, for bfloat16 and float16, and of copies to shared memory. In the emulator they
// are spelled out lane by lane, as the PTX manual lays their registers out.
#pragma once

#include "elements.cuh"

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(std::uint32_t (&out)[4], const void* row) {
#ifndef CORRIGENDA_EMULATE
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
#else
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  const auto own = reinterpret_cast<std::uintptr_t>(row);
  for (int matrix = 0; matrix < 4; matrix++) {
    std::uint32_t value = 0;
    for (int half = 0; half < 2; half++) {
      const int source_row = TRANSPOSED ? 2 * pair + half : group, column = TRANSPOSED ? group : 2 * pair + half;
      const auto* source = reinterpret_cast<const std::uint16_t*>(__shfl_sync(~0u, own, 8 * matrix + source_row));
      value |= static_cast<std::uint32_t>(source[column]) << (16 * half);
    }
    out[matrix] = value;
  }
#endif
}

#ifdef CORRIGENDA_EMULATE
template <typename T>
inline float half_of(std::uint32_t pair, int half) {
  const std::uint16_t bits = static_cast<std::uint16_t>(pair >> (16 * half));
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return to_float(value);
}
#endif

// c [16, 8] += a [16, 16] b [16, 8], in the registers that the PTX manual gives each lane.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
#ifndef CORRIGENDA_EMULATE
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  for (int k = 0; k < 16; k += 2) {
    // Columns k and k + 1 of a: lane 4 row + (k % 8) / 2, registers 0 and 1 below column 8, 2 and 3 from there on.
    const int of_row = 4 * group + k % 8 / 2, upper = k / 8;
    const std::uint32_t top = __shfl_sync(~0u, a[2 * upper], of_row);
    const std::uint32_t bottom = __shfl_sync(~0u, a[2 * upper + 1], of_row);
    for (int column = 0; column < 2; column++) {
      const std::uint32_t b = __shfl_sync(~0u, upper ? b1 : b0, 4 * (2 * pair + column) + k % 8 / 2);
      for (int half = 0; half < 2; half++) {
        c[column] += half_of<T>(top, half) * half_of<T>(b, half);
        c[2 + column] += half_of<T>(bottom, half) * half_of<T>(b, half);
      }
    }
  }
#endif
}

// Two float32 as bfloat16, rounded to the nearest, the first in the lower half.
__device__ __forceinline__ std::uint32_t halves_of(float first, float second) {
#ifndef CORRIGENDA_EMULATE
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  const auto bits = [](float value) { return bits_as<std::uint16_t>(__float2bfloat16_rn(value)); };
  return bits(first) | std::uint32_t{bits(second)} << 16;
#endif
}

// Float32 on the tensor cores: a number as the sum of two bfloat16, which hold 16 of its 24 bits and its whole range.
// Three products of the four, all but that of the two rests, make a matrix product to 4e-6 of itself (float32: 3e-7).
// Three products of TF32 would be as good as float32, at half the rate; float32 multiply-adds run at a fifteenth of the
// rate of one product (H200: 67 and 990 TFLOP/s).
// An infinite number has a rest that is not one, so that sums that are not finite are to be made anew (hand_out).
struct SplitPair {
  std::uint32_t high, low;

  __device__ __forceinline__ SplitPair(float first, float second) : high(halves_of(first, second)) {
    low = halves_of(first - __uint_as_float(high << 16), second - __uint_as_float(high & 0xFFFF0000u));
  }
};

// 16 bytes from global to shared memory without a register between; zeros where `source` is null.
__device__ __forceinline__ void copy_async(void* target, const void* source) {
#ifndef CORRIGENDA_EMULATE
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(target));
  const int bytes = source == nullptr ? 0 : 16;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(bytes) : "memory");
#else
  if (source == nullptr) {
    std::memset(target, 0, 16);
  } else {
    *static_cast<uint4*>(target) = *static_cast<const uint4*>(source);
  }
#endif
}

__device__ __forceinline__ void commit_copies() {
#ifndef CORRIGENDA_EMULATE
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most `PENDING` of the groups that this thread committed are under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#ifndef CORRIGENDA_EMULATE
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}
