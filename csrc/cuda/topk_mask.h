// topk_mask, for its binding and for mask_route.
#pragma once

#include "interface.h"

constexpr std::int64_t TOPK_MASK_WIDEST = 32768;  // 32 entries in the registers of each of 1024 threads

struct FingerprintArguments {
  const void* x;                    // [tokens, width]
  int dtype;                        // of x: FLOAT32, BFLOAT16 or FLOAT16
  const std::int32_t* offsets;      // [batch + 1]
  std::int64_t tokens, batch, width, k;
  const float* weight;              // [tokens] or null, as the next two
  const float* background;          // [width]
  const std::int64_t* permutation;  // [width]
  float* pooled;                    // scratch of fingerprint_scratch_bytes
  std::uint32_t* masks;             // [batch, words]
  unsigned long long* best;         // [batch] or null: set to zero on the way, for launch_overlap
  unsigned* finished;               // [batch] likewise
};

std::size_t fingerprint_scratch_bytes(std::int64_t tokens, std::int64_t batch, std::int64_t width);
cudaError_t launch_fingerprint(const FingerprintArguments& arguments, cudaStream_t stream);

extern "C" {
std::size_t corrigenda_topk_mask_scratch_bytes(std::int64_t tokens, std::int64_t batch, std::int64_t width);
cudaError_t corrigenda_topk_mask(const void* x, int dtype, const std::int32_t* offsets, std::int64_t tokens,
                                 std::int64_t batch, std::int64_t width, std::int64_t k, const float* weight,
                                 const float* background, const std::int64_t* permutation, std::int32_t* masks,
                                 void* scratch, cudaStream_t stream);
}
