// The one header that a .cu file includes before its own: CUDA under nvcc, and under g++ with CORRIGENDA_EMULATE a
// processor that runs the same kernels on CPU threads (csrc/emulate), so that their logic is tested without a GPU.
//
// What differs between the two hides behind four names:
//   SHARED_ARRAY(type, name, count)   static shared memory; in the emulator a heap block of its own, so that the
//                                     address sanitizer sees an index out of bounds
//   DYNAMIC_SHARED(type, name)        the block's dynamic shared memory, 16-byte aligned
//   launch(kernel, grid, block, shared_bytes, stream, arguments...)             in place of <<<...>>>
//   launch_early(...)                 the same, but the grid may start while the one before it still runs: the kernel
//                                     calls wait_for_previous_grid() before it touches what that one reads or writes
#pragma once

#ifdef CORRIGENDA_EMULATE
#include "../emulate/cuda_on_cpu.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define SHARED_ARRAY(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name)                                     \
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];   \
  type* name = reinterpret_cast<type*>(dynamic_shared_bytes)

constexpr std::size_t SHARED_WITHOUT_ASKING = 48 * 1024;  // a kernel has to opt in to more

template <typename... Parameters, typename... Arguments>
cudaError_t launch_with(cudaLaunchAttribute* attributes, unsigned count, void (*kernel)(Parameters...), dim3 grid,
                        dim3 block, std::size_t shared, cudaStream_t stream, Arguments&&... arguments) {
  if (shared > SHARED_WITHOUT_ASKING) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                   Arguments&&... arguments) {
  return launch_with(nullptr, 0, kernel, grid, block, shared, stream, std::forward<Arguments>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                         Arguments&&... arguments) {
  int device = 0, major = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return launch_with(&attribute, major >= 9 ? 1 : 0, kernel, grid, block, shared, stream,
                     std::forward<Arguments>(arguments)...);
}

// In a kernel launched by launch_early: what the previous grid wrote is visible from here on.
__device__ inline void wait_for_previous_grid() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ inline void prefetch_to_l2(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// In the kernel before it: once every block has come here, the next grid may start.
__device__ inline void let_next_grid_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

#endif
