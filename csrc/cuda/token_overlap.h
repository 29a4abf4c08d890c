// token_overlap, for its binding.
#pragma once

#include "interface.h"

// Widest vocabulary: one bit a token in the shared memory of a block, 160 KB, which an A100 has.
constexpr std::int64_t TOKEN_OVERLAP_WIDEST = 160 * 1024 * 8;

extern "C" {
std::size_t corrigenda_token_overlap_scratch_bytes(std::int64_t batch, std::int64_t rows);
cudaError_t corrigenda_token_overlap(const std::int32_t* query, const std::int32_t* stored,
                                     const std::int32_t* rarity, std::int64_t batch, std::int64_t query_length,
                                     std::int64_t rows, std::int64_t stored_length, std::int64_t vocabulary,
                                     float extra_weight, const std::int32_t* valid, const std::int32_t* query_group,
                                     const std::int32_t* stored_group, std::int32_t* index, float* score,
                                     float* runner_up, void* scratch, cudaStream_t stream);
}
