// masked_sgd, for its binding. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

extern "C" {
std::size_t corrigenda_masked_sgd_scratch_bytes(std::int64_t tokens, std::int64_t width, std::int64_t outputs,
                                                int x_dtype, int gradient_dtype);

// `base` is null where delta alone decays.
cudaError_t corrigenda_masked_sgd(float* delta, const void* x, int x_dtype, const void* gradient, int gradient_dtype,
                                  const std::int32_t* masks, const void* base, int base_dtype, float learning_rate,
                                  float decay, std::int64_t decay_masked, float limit, std::int64_t tokens,
                                  std::int64_t width, std::int64_t outputs, void* scratch, cudaStream_t stream);
}
