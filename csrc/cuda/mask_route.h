// mask_route, for its binding.
#pragma once

#include "interface.h"

extern "C" {
std::size_t corrigenda_mask_route_scratch_bytes(std::int64_t tokens, std::int64_t batch, std::int64_t width);
cudaError_t corrigenda_mask_route(const void* x, int dtype, const std::int32_t* offsets, std::int64_t tokens,
                                  std::int64_t batch, std::int64_t width, std::int64_t k, const float* weight,
                                  const float* background, const std::int64_t* permutation,
                                  const std::int32_t* stored, std::int64_t rows, const std::int32_t* minimum,
                                  const std::int32_t* valid, const std::int32_t* query_group,
                                  const std::int32_t* stored_group, std::int32_t* nearest, std::int32_t* overlap,
                                  std::int32_t* route, void* scratch, cudaStream_t stream);
}
