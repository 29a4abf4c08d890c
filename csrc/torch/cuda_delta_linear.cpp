// delta_linear on CUDA tensors.
#include "../cuda/delta_linear.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor, Tensor> delta_linear(Tensor x, Tensor base, Tensor delta, Tensor offsets,
                                                std::optional<Tensor> weight, bool activated, int64_t longest) {
  x = torch::stable::contiguous(x);
  base = torch::stable::contiguous(base);
  delta = torch::stable::contiguous(delta);
  offsets = torch::stable::contiguous(offsets);
  weight = contiguous(weight);
  const int64_t tokens = x.size(0), outputs = delta.size(1), sequences = offsets.size(0) - 1;
  Tensor side = output_of(x, {tokens, outputs}, ScalarType::Float);
  Tensor distance = output_of(x, {tokens}, ScalarType::Float);
  Tensor score = output_of(x, {sequences}, ScalarType::Float);
  DeltaLinearArguments op{};
  op.x = x.const_data_ptr(), op.x_dtype = dtype_code(x);
  op.base = base.const_data_ptr(), op.base_dtype = dtype_code(base);
  op.delta = delta.const_data_ptr(), op.delta_dtype = dtype_code(delta);
  op.offsets = data<int32_t>(offsets);
  op.weight = data<float>(weight);
  op.activated = activated, op.longest = longest;
  op.tokens = tokens, op.width = x.size(1), op.outputs = outputs, op.sequences = sequences;
  op.side = mutable_data<float>(side);
  op.distance = mutable_data<float>(distance);
  op.score = mutable_data<float>(score);
  start("delta_linear", op, corrigenda_delta_linear_scratch_bytes, corrigenda_delta_linear, x);
  return {side, distance, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("delta_linear", TORCH_BOX(&delta_linear)); }

}  // namespace corrigenda
