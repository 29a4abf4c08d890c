// What the kernels share: conversions, vector loads, warp and block sums.
#pragma once

#include "device.h"
#include "interface.h"

constexpr unsigned FULL_WARP = 0xFFFFFFFFu;
constexpr int WARP_SIZE = 32;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(std::int8_t value) { return static_cast<float>(value); }

// Round to nearest even, once.
template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }

// COUNT neighbours that move as one load or store of COUNT * sizeof(T) bytes, at most 16.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Vector {
  T values[COUNT];
};

template <typename T>
constexpr int VECTOR_WIDTH = 16 / sizeof(T);  // elements of one 16-byte load

__host__ __device__ inline bool is_aligned(const void* pointer, std::size_t bytes = 16) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <int LANES = WARP_SIZE, typename T>
__device__ __forceinline__ T lanes_sum(T value) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(FULL_WARP, value, step);
  return value;
}

template <int LANES = WARP_SIZE, typename T>
__device__ __forceinline__ T lanes_max(T value) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(FULL_WARP, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Sums of a block of whole warps, of at most 1024 threads.
struct Prefix {
  unsigned before;  // the sum over the threads before this one
  unsigned total;
};

// `partial` is shared memory for one number a warp, free again when the threads return.
__device__ inline Prefix block_prefix(unsigned value, unsigned* partial) {
  const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const unsigned warps = blockDim.x / WARP_SIZE;
  unsigned sum = value;
#pragma unroll
  for (unsigned step = 1; step < WARP_SIZE; step *= 2) {
    const unsigned below = __shfl_up_sync(FULL_WARP, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == WARP_SIZE - 1) partial[warp] = sum;
  __syncthreads();
  // Every warp adds up the warps' sums for itself: one barrier less than if the first did it for all.
  unsigned warp_sum = lane < warps ? partial[lane] : 0;
#pragma unroll
  for (unsigned step = 1; step < WARP_SIZE; step *= 2) {
    const unsigned below = __shfl_up_sync(FULL_WARP, warp_sum, step);
    if (lane >= step) warp_sum += below;
  }
  const unsigned earlier = __shfl_sync(FULL_WARP, warp_sum, warp == 0 ? 0 : warp - 1);
  const unsigned total = __shfl_sync(FULL_WARP, warp_sum, WARP_SIZE - 1);
  __syncthreads();
  return {(warp == 0 ? 0 : earlier) + sum - value, total};
}

// Whether this block is the last of `blocks` to come here; what the others wrote before is then visible to it.
__device__ inline bool last_block_done(unsigned* finished, unsigned blocks, unsigned* shared_flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *shared_flag = atomicAdd(finished, 1u) == blocks - 1;
  __syncthreads();
  __threadfence();
  return *shared_flag != 0;
}

// Add-and-carry of three words, bit by bit: the popcount of seven then takes three POPC (16 a cycle and processor)
// and eight LOP3 (64), where one by one it takes seven POPC.
__device__ __forceinline__ void carry_save(unsigned& carry, unsigned& sum, unsigned a, unsigned b, unsigned c) {
  sum = a ^ b ^ c;
  carry = (a & b) | (a & c) | (b & c);
}

__device__ __forceinline__ int popcount_of_seven(const unsigned (&word)[7]) {
  unsigned ones, twos, fours, carry_a, carry_b, carry_c;
  carry_save(carry_a, ones, word[0], word[1], word[2]);
  carry_save(carry_b, ones, ones, word[3], word[4]);
  carry_save(carry_c, ones, ones, word[5], word[6]);
  carry_save(fours, twos, carry_a, carry_b, carry_c);
  return __popc(ones) + 2 * __popc(twos) + 4 * __popc(fours);
}

inline cudaError_t device_attribute(int* value, cudaDeviceAttr attribute) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  return status == cudaSuccess ? cudaDeviceGetAttribute(value, attribute, device) : status;
}
