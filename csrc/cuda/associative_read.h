// associative_read and its gradients, for their bindings. Tensors are contiguous; dtypes are codes, mixed as you like.
#pragma once

#include "interface.h"

// What an edit's rows are read by and from.
struct ReadingArguments {
  const void* x;  // [tokens, width]
  int x_dtype;
  const bool* first;  // [tokens]
  const void* keys;   // [banks, 8, width]
  int keys_dtype;
  const void* values;  // [banks, 8, outputs]
  int values_dtype;
  const std::int32_t* pages;  // [edits, max_pages]
  const std::int32_t* rows;   // [edits]
  const std::int32_t* route;  // [tokens]
  const float* background;    // [width]
  float beta;
  std::int64_t tokens, width, outputs, max_pages;
};

struct AssociativeReadArguments : ReadingArguments {
  const void* y;  // [tokens, outputs]
  int y_dtype;
  const float* scales;  // [banks, 8]; null but for int8 values
  void* out;            // as y, written; where it is y, rows of tokens that get nothing are not
  void* scratch;
};

struct AssociativeReadBackwardArguments : ReadingArguments {
  const void* grad;  // [tokens, outputs]
  int grad_dtype;
  std::int64_t edits, banks;
  void* dx;       // as x, written in full, or null where it is not wanted
  void* dkeys;    // as keys, likewise
  void* dvalues;  // as values, likewise
  void* scratch;
};

extern "C" {
std::size_t corrigenda_associative_read_scratch_bytes(const AssociativeReadArguments& arguments);
cudaError_t corrigenda_associative_read(const AssociativeReadArguments& arguments, cudaStream_t stream);
std::size_t corrigenda_associative_read_backward_scratch_bytes(const AssociativeReadBackwardArguments& arguments);
cudaError_t corrigenda_associative_read_backward(const AssociativeReadBackwardArguments& arguments,
                                                 cudaStream_t stream);
}
