// The part of CUDA that the kernels use, for g++: types, built-in variables, barriers, collectives, atomics, launches.
// A name that is missing here does not compile in the emulator; add it with its CUDA meaning.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fibers.h"
#include "half_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define SHARED_ARRAY(type, name, count)                             \
  using name##_element = type;                                      \
  name##_element* const name = static_cast<name##_element*>(        \
      ::emulate::shared_array(sizeof(name##_element) * (count), __FILE__, __LINE__))
#define DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::emulate::dynamic_shared())

#define threadIdx (::emulate::here().thread)
#define blockIdx (::emulate::here().block)
#define blockDim (::emulate::here().block_size)
#define gridDim (::emulate::here().grid_size)

// Vectors, aligned as CUDA's: the undefined-behaviour sanitizer then sees a misaligned 16-byte load.
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline long long max(long long a, int b) { return a < b ? b : a; }
inline long long min(long long a, int b) { return a < b ? a : b; }

// Scalars
inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }
inline int __clz(int word) { return word == 0 ? 32 : __builtin_clz(static_cast<unsigned>(word)); }
inline int __ffs(int word) { return __builtin_ffs(word); }
template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
inline unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }
inline int __float_as_int(float value) { return bits_as<int>(value); }
inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __expf(float value) { return std::exp(value); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
template <typename T>
T __ldg(const T* pointer) { return *pointer; }
template <typename T>
T __ldcs(const T* pointer) { return *pointer; }
template <typename T>
T __ldcg(const T* pointer) { return *pointer; }

// Barriers; the default arguments are the caller's place in the source
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::emulate::wait(::emulate::State::at_block_barrier, 0, 0, file, line);
}
inline int __syncthreads_count(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::emulate::wait(::emulate::State::at_block_barrier, 0, vote != 0, file, line);
  return ::emulate::here().votes;
}
inline int __syncthreads_or(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return __syncthreads_count(vote, file, line) != 0;
}
inline int __syncthreads_and(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return __syncthreads_count(vote == 0, file, line) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::emulate::wait(::emulate::State::at_warp_barrier, mask, 0, file, line);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// Warp collectives
namespace emulate {

template <typename T>
const std::uint64_t* exchange(unsigned mask, T value, const char* file, int line) {
  static_assert(sizeof(T) <= 8, "a lane sends 8 bytes at most");
  std::uint64_t sent = 0;
  std::memcpy(&sent, &value, sizeof value);
  wait(State::at_warp_barrier, mask, sent, file, line);
  return here().received;
}

template <typename T>
T received(const std::uint64_t* values, unsigned lane) {
  T value;
  std::memcpy(&value, &values[lane], sizeof value);
  return value;
}

template <typename T, typename Combine>
T reduce(unsigned mask, T value, Combine combine, const char* file, int line) {
  const std::uint64_t* values = exchange(mask, value, file, line);
  bool any = false;
  T result{};
  for (unsigned lane = 0; lane < WARP; ++lane) {
    if (!(mask >> lane & 1)) continue;
    result = any ? combine(result, received<T>(values, lane)) : received<T>(values, lane);
    any = true;
  }
  return result;
}

}  // namespace emulate

#define EMULATE_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATE_PLACE) {
  const unsigned lane = ::emulate::here().lane;
  const auto* values = ::emulate::exchange(mask, value, file, line);
  return ::emulate::received<T>(values, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATE_PLACE) {
  const unsigned lane = ::emulate::here().lane;
  const auto* values = ::emulate::exchange(mask, value, file, line);
  const unsigned source = lane ^ bits;
  return ::emulate::received<T>(values, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATE_PLACE) {
  const unsigned lane = ::emulate::here().lane;
  const auto* values = ::emulate::exchange(mask, value, file, line);
  return ::emulate::received<T>(values, lane % width >= delta ? lane - delta : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATE_PLACE) {
  const unsigned lane = ::emulate::here().lane;
  const auto* values = ::emulate::exchange(mask, value, file, line);
  return ::emulate::received<T>(values, lane % width + delta < static_cast<unsigned>(width) ? lane + delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMULATE_PLACE) {
  const auto* values = ::emulate::exchange(mask, vote, file, line);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && ::emulate::received<int>(values, lane) != 0) ballot |= 1u << lane;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int vote, EMULATE_PLACE) { return __ballot_sync(mask, vote, file, line) != 0; }
inline int __all_sync(unsigned mask, int vote, EMULATE_PLACE) {
  return __ballot_sync(mask, vote == 0, file, line) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, EMULATE_PLACE) {
  const auto* values = ::emulate::exchange(mask, value, file, line);
  unsigned same = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && ::emulate::received<T>(values, lane) == value) same |= 1u << lane;
  }
  return same;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, EMULATE_PLACE) {
  return ::emulate::reduce(mask, value, [](T a, T b) { return a + b; }, file, line);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, EMULATE_PLACE) {
  return ::emulate::reduce(mask, value, [](T a, T b) { return std::max(a, b); }, file, line);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, EMULATE_PLACE) {
  return ::emulate::reduce(mask, value, [](T a, T b) { return std::min(a, b); }, file, line);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATE_PLACE) {
  return ::emulate::reduce(mask, value, [](unsigned a, unsigned b) { return a | b; }, file, line);
}

// Atomics, on shared and global memory alike: blocks run on several OS threads
template <typename T>
using SameAs = std::enable_if_t<true, T>;  // not deduced: the value converts to the type in memory
template <typename T, typename Update>
T emulate_atomic(T* address, Update update) {
  T before;
  __atomic_load(address, &before, __ATOMIC_SEQ_CST);
  for (;;) {
    T after = update(before);
    if (__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      return before;
    }
  }
}
template <typename T>
T atomicAdd(T* address, SameAs<T> value) {
  return emulate_atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, SameAs<T> value) {
  return emulate_atomic(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* address, SameAs<T> value) {
  return emulate_atomic(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* address, SameAs<T> value) {
  return emulate_atomic(address, [=](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicAnd(T* address, SameAs<T> value) {
  return emulate_atomic(address, [=](T old) { return static_cast<T>(old & value); });
}
template <typename T>
T atomicExch(T* address, SameAs<T> value) {
  return emulate_atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, SameAs<T> expected, SameAs<T> value) {
  return emulate_atomic(address, [=](T old) { return old == expected ? value : old; });
}

// The host's side
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};
using cudaStream_t = struct emulated_stream*;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "no error" : "refused"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // An H200, but with few processors, so that small inputs too make a block take several turns.
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 3; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 * 1024; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int byte, std::size_t bytes, cudaStream_t) {
  std::memset(memory, byte, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
constexpr int cudaMemcpyDeviceToDevice = 3;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t,
                   Arguments... arguments) {
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || shared > 227 * 1024) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const auto body = [=] { kernel(static_cast<Parameters>(arguments)...); };
  using Body = decltype(body);
  ::emulate::run_grid([](const void* context) { (*static_cast<Body*>(context))(); }, &body, grid, block, shared);
  return cudaSuccess;
}
template <typename... Arguments>
cudaError_t launch_early(Arguments... arguments) { return launch(arguments...); }
inline void wait_for_previous_grid() {}
inline void let_next_grid_start() {}
inline void prefetch_to_l2(const void*) {}
