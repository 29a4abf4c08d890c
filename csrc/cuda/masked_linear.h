// masked_linear and its gradients, for their bindings. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

struct MaskedLinearArguments {
  const void* y;  // [tokens, outputs]
  int y_dtype;
  const void* x;  // [tokens, width]
  int x_dtype;
  const void* memory;  // [width, outputs]
  int memory_dtype;
  const std::uint32_t* masks;  // [entries, words]
  const std::int32_t* route;   // [tokens]
  std::int64_t tokens, width, outputs;
  void* out;  // as y, written; where it is y, rows of tokens without a route are not
  void* scratch;
};

struct MaskedLinearBackwardArguments {
  const void* grad;  // [tokens, outputs]
  int grad_dtype;
  const void* x;  // [tokens, width]
  int x_dtype;
  const void* memory;  // [width, outputs]
  int memory_dtype;
  const std::uint32_t* masks;  // [entries, words]
  const std::int32_t* route;   // [tokens]
  std::int64_t tokens, width, outputs;
  void* dx;       // as x, written in full, or null where it is not wanted
  void* dmemory;  // as memory, likewise
};

extern "C" {
std::size_t corrigenda_masked_linear_scratch_bytes(const MaskedLinearArguments& arguments);
cudaError_t corrigenda_masked_linear(const MaskedLinearArguments& arguments, cudaStream_t stream);
cudaError_t corrigenda_masked_linear_backward(const MaskedLinearBackwardArguments& arguments, cudaStream_t stream);
}
