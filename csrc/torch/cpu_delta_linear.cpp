#include <algorithm>
#include <tuple>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

// The mean distance of a sequence's tokens by weight, or the largest where more than `longest` have one.
float score_of(const float* distance, const float* weight, int64_t begin, int64_t end, int64_t longest) {
  int64_t counted = 0;
  float total = 0, mass = 0, largest = 0;
  for (int64_t t = begin; t < end; ++t) {
    const float share = weight ? weight[t] : 1.0f;
    if (!(share > 0)) continue;
    ++counted;
    total += share * distance[t], mass += share;
    largest = distance[t] > largest || distance[t] != distance[t] ? distance[t] : largest;
  }
  if (counted > longest) return largest;
  return counted ? total / mass : 0.0f;
}

std::tuple<Tensor, Tensor, Tensor> delta_linear(Tensor x, Tensor base, Tensor delta, Tensor offsets,
                                                std::optional<Tensor> weight, bool activated, int64_t longest) {
  const int64_t tokens = x.size(0), sequences = offsets.size(0) - 1;
  Tensor side = torch::stable::contiguous(
      torch::stable::matmul(torch::stable::to(x, ScalarType::Float), torch::stable::to(delta, ScalarType::Float)));
  Tensor distance = torch::stable::new_empty(side, {tokens});
  Tensor score = torch::stable::new_empty(side, {sequences});
  base = torch::stable::contiguous(base);
  offsets = torch::stable::contiguous(offsets);
  weight = contiguous(weight);
  DeltaLinear op = {};
  op.side = data<float>(side), op.outputs = side.size(1);
  op.base_type = type(base), op.base = base.const_data_ptr(), op.activated = activated;
  op.distance = distance.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, tokens, 16,
                              [&](int64_t begin, int64_t end) { kernels().delta_linear(op, begin, end); });
  const int32_t* bounds = data<int32_t>(offsets);
  float* scores = score.mutable_data_ptr<float>();
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t begin = std::clamp<int64_t>(bounds[b], 0, tokens), end = std::clamp<int64_t>(bounds[b + 1], 0, tokens);
    scores[b] = score_of(op.distance, data<float>(weight), begin, end, longest);
  }
  return {side, distance, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("delta_linear", TORCH_BOX(&delta_linear)); }

}  // namespace corrigenda
