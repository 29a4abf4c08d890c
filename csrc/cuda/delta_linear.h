// delta_linear, for its binding. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

extern "C" {
std::size_t corrigenda_delta_linear_scratch_bytes(std::int64_t tokens, std::int64_t width, std::int64_t outputs);

// `weight` may be null.
cudaError_t corrigenda_delta_linear(const void* x, int x_dtype, const void* base, int base_dtype, const void* delta,
                                    int delta_dtype, const std::int32_t* offsets, const float* weight,
                                    std::int64_t activated, std::int64_t longest, std::int64_t tokens,
                                    std::int64_t width, std::int64_t outputs, std::int64_t sequences, float* side,
                                    float* distance, float* score, void* scratch, cudaStream_t stream);
}
