// token_overlap, for its binding.
#pragma once

#include "interface.h"

// Widest vocabulary: one bit a token in the shared memory of a block, 160 KB, which an A100 has.
constexpr std::int64_t TOKEN_OVERLAP_WIDEST = 160 * 1024 * 8;

struct TokenOverlapArguments {
  const std::int32_t* query;   // [batch, query_length]
  const std::int32_t* stored;  // [rows, stored_length]
  const std::int32_t* rarity;  // [vocabulary]
  std::int64_t batch, query_length, rows, stored_length, vocabulary;
  float extra_weight;
  const std::int32_t* valid;         // [1], or null
  const std::int32_t* query_group;   // [batch], or null
  const std::int32_t* stored_group;  // [rows], or null
  std::int32_t* index;               // [batch], written
  float* score;                      // [batch], written
  float* runner_up;                  // [batch], written
  void* scratch;
};

extern "C" {
std::size_t corrigenda_token_overlap_scratch_bytes(const TokenOverlapArguments& arguments);
cudaError_t corrigenda_token_overlap(const TokenOverlapArguments& arguments, cudaStream_t stream);
}
