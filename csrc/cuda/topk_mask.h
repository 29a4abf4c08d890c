// topk_mask, for its binding and for mask_route.
#pragma once

#include "interface.h"

constexpr std::int64_t TOPK_MASK_WIDEST = 32768;  // 32 entries in the registers of each of 1024 threads

// What a fingerprint is made of.
struct FeatureArguments {
  const void* x;  // [tokens, width]
  int x_dtype;    // FLOAT32, BFLOAT16 or FLOAT16
  const std::int32_t* offsets;  // [batch + 1]
  std::int64_t tokens, batch, width, k;
  const float* weight;              // [tokens], or null
  const float* background;          // [width], or null
  const std::int64_t* permutation;  // [width], or null
};

struct TopkMaskArguments : FeatureArguments {
  std::uint32_t* masks;  // [batch, words], written
  void* scratch;
};

// What the kernels take; of mask_route too, whose masks lie in its scratch.
struct Fingerprint : FeatureArguments {
  float* pooled;             // scratch of fingerprint_scratch_bytes
  std::uint32_t* masks;      // [batch, words]
  unsigned long long* best;  // [batch] or null: set to zero on the way, for launch_overlap
  unsigned* finished;        // [batch] likewise
};

std::size_t fingerprint_scratch_bytes(const FeatureArguments& arguments);
cudaError_t launch_fingerprint(const Fingerprint& arguments, cudaStream_t stream);

extern "C" {
std::size_t corrigenda_topk_mask_scratch_bytes(const TopkMaskArguments& arguments);
cudaError_t corrigenda_topk_mask(const TopkMaskArguments& arguments, cudaStream_t stream);
}
