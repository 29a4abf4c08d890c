// masked_linear and its gradients, for their bindings. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

extern "C" {
std::size_t corrigenda_masked_linear_scratch_bytes(std::int64_t tokens, std::int64_t width, std::int64_t outputs);

// `out` may be `y`: then rows of tokens without a route are not written.
cudaError_t corrigenda_masked_linear(const void* y, int y_dtype, const void* x, int x_dtype, const void* memory,
                                     int memory_dtype, const std::int32_t* masks, const std::int32_t* route,
                                     std::int64_t tokens, std::int64_t width, std::int64_t outputs, void* out,
                                     void* scratch, cudaStream_t stream);

// `dx` and `dmemory` are written in full, or null where they are not wanted.
cudaError_t corrigenda_masked_linear_backward(const void* grad, int grad_dtype, const void* x, int x_dtype,
                                              const void* memory, int memory_dtype, const std::int32_t* masks,
                                              const std::int32_t* route, std::int64_t tokens, std::int64_t width,
                                              std::int64_t outputs, void* dx, void* dmemory, cudaStream_t stream);
}
