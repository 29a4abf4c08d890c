// masked_sgd, for its binding. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

struct MaskedSgdArguments {
  float* delta;   // [width, outputs], stepped
  const void* x;  // [tokens, width]
  int x_dtype;
  const void* gradient;  // [tokens, outputs]
  int gradient_dtype;
  const std::uint32_t* masks;  // [width, words]
  const void* base;            // [width, outputs]; null where delta alone decays
  int base_dtype;
  float learning_rate, decay;
  bool decay_masked;
  float limit;
  std::int64_t tokens, width, outputs;
  void* scratch;
};

extern "C" {
std::size_t corrigenda_masked_sgd_scratch_bytes(const MaskedSgdArguments& arguments);
cudaError_t corrigenda_masked_sgd(const MaskedSgdArguments& arguments, cudaStream_t stream);
}
