// delta_linear, for its binding. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

struct DeltaLinearArguments {
  const void* x;  // [tokens, width]
  int x_dtype;
  const void* base;  // [tokens, outputs]
  int base_dtype;
  const void* delta;  // [width, outputs]
  int delta_dtype;
  const std::int32_t* offsets;  // [sequences + 1]
  const float* weight;          // [tokens], or null
  bool activated;
  std::int64_t longest, tokens, width, outputs, sequences;
  float* side;      // [tokens, outputs], written
  float* distance;  // [tokens], written
  float* score;     // [sequences], written
  void* scratch;
};

extern "C" {
std::size_t corrigenda_delta_linear_scratch_bytes(const DeltaLinearArguments& arguments);
cudaError_t corrigenda_delta_linear(const DeltaLinearArguments& arguments, cudaStream_t stream);
}
