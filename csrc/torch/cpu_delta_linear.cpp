// delta_linear on CPU tensors: a product, distances by the kernel, scores here.
#include <algorithm>
#include <tuple>

#include "../cpu/kernels.h"
#include "cpu_masked_linear.h"
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

// Up to so many tokens one pass over delta is faster than a product: 1 token of 14336 x 4096 in bfloat16 takes 11 ms
// so, 80 with; 64 take 115 and 122. In float32, which needs no conversion, 8 take 42 and 46, 16 as long either way.
// With tiles of bfloat16, which need none either, 400 take 69, and 356 by a product.
bool one_pass(const Tensor& x, const Tensor& delta) {
  const bool tiles = kernels().tiles && x.scalar_type() == ScalarType::BFloat16 && x.stride(1) == 1;
  if (tiles && delta.scalar_type() == ScalarType::BFloat16) return true;
  return x.size(0) <= (delta.scalar_type() == ScalarType::Float ? 8 : 64);
}

// Columns that are converted to float32 at a time: 29 MB at 14336 rows. More come from fresh pages at every call, and
// 96 tokens take 0.27 s, not 0.15.
constexpr int64_t converted_columns = 512;

// x delta in one pass over delta in its own format: masked_linear under a mask of all bits.
Tensor streamed(const Tensor& x, const Tensor& delta) {
  const int64_t width = x.size(1), words = (width + 31) / 32;
  Tensor side = torch::stable::new_zeros(x, {x.size(0), delta.size(1)}, ScalarType::Float);
  Tensor mask = torch::stable::new_empty(x, {1, words}, ScalarType::Int);
  int32_t* bits = mask.mutable_data_ptr<int32_t>();
  std::fill_n(bits, words, -1);
  if (width % 32) bits[words - 1] = (1 << width % 32) - 1;
  masked_linear_(side, x, delta, mask, torch::stable::new_zeros(x, {x.size(0)}, ScalarType::Int));
  return side;
}

Tensor multiplied(const Tensor& x, Tensor delta) {
  const int64_t outputs = delta.size(1);
  const Tensor features = torch::stable::to(x, ScalarType::Float);
  if (delta.scalar_type() == ScalarType::Float)
    return torch::stable::contiguous(torch::stable::matmul(features, delta));
  Tensor side = torch::stable::new_empty(features, {x.size(0), outputs});
  for (int64_t from = 0; from < outputs; from += converted_columns) {
    const int64_t count = std::min(converted_columns, outputs - from);
    const Tensor columns = torch::stable::to(torch::stable::narrow(delta, 1, from, count), ScalarType::Float);
    Tensor part = torch::stable::narrow(side, 1, from, count);
    torch::stable::copy_(part, torch::stable::matmul(features, columns));
  }
  return side;
}

std::tuple<Tensor, Tensor, Tensor> delta_linear(Tensor x, Tensor base, Tensor delta, Tensor offsets,
                                                std::optional<Tensor> weight, bool activated, int64_t longest) {
  const int64_t tokens = x.size(0), sequences = offsets.size(0) - 1;
  Tensor side = one_pass(x, delta) ? streamed(x, delta) : multiplied(x, delta);
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
    const int64_t begin = std::clamp<int64_t>(bounds[b], 0, tokens);
    const int64_t end = std::clamp<int64_t>(bounds[b + 1], 0, tokens);
    scores[b] = score_of(op.distance, data<float>(weight), begin, end, longest);
  }
  return {side, distance, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("delta_linear", TORCH_BOX(&delta_linear)); }

}  // namespace corrigenda
