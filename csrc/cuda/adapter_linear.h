// adapter_linear, for its binding. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

struct AdapterLinearArguments {
  void* y;  // [tokens, outputs], added to
  int y_dtype;
  const void* x;  // [tokens, width]
  int x_dtype;
  const void* down;  // [blocks, rank, width]
  int down_dtype;    // of up too
  const void* up;    // [blocks, rank, outputs]
  const std::int32_t* block_of;  // [edits]
  const std::int32_t* route;     // [tokens]
  std::int64_t tokens, width, rank, outputs;
};

extern "C" {
cudaError_t corrigenda_adapter_linear(const AdapterLinearArguments& arguments, cudaStream_t stream);
}
