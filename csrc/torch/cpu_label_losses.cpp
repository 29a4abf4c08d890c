// label_losses on CPU tensors: which labels and rows of the weight a thread takes at a time.
#include <algorithm>
#include <tuple>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

// Of the weight at once, 192 KB as float32, beside as much of the next block: for 16 labels of SmolLM2 half as many
// take 3 % longer, one and a half times as many 8 %.
constexpr int64_t block_entries = 48 * 1024;

// At a width of 4096 that is few rows, and each block reads and writes the means of all labels: of 256 labels blocks of
// 16, 32 and 64 rows take 289, 251 and 229 ms, of 16 labels 21, 24 and 26.
int64_t least_rows(int64_t labels) { return labels > 64 ? 64 : 16; }

std::tuple<Tensor, Tensor> label_losses(Tensor hidden, Tensor weight, Tensor labels) {
  const int64_t count = hidden.size(0), width = hidden.size(1), vocabulary = weight.size(0);
  Tensor losses = torch::stable::new_empty(hidden, {count}, ScalarType::Float);
  Tensor gradient = torch::stable::new_empty(hidden, {count, width});
  hidden = torch::stable::contiguous(hidden);
  labels = torch::stable::contiguous(labels);
  if (weight.stride(1) != 1) weight = torch::stable::contiguous(weight);
  LabelLosses op = {};
  op.hidden_type = type(hidden), op.hidden = hidden.const_data_ptr();
  op.count = count, op.width = width;
  op.weight_type = type(weight), op.weight = weight.const_data_ptr();
  op.weight_row = weight.stride(0), op.vocabulary = vocabulary;
  op.labels = data<int64_t>(labels);
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(0 <= op.labels[i] && op.labels[i] < vocabulary, "labels must be rows of weight, 0 to ",
                    vocabulary - 1, ", not ", op.labels[i]);
  if (count == 0) return {losses, gradient};
  op.block = std::clamp<int64_t>(block_entries / std::max<int64_t>(width, 1) / 16 * 16, least_rows(count), 512);
  const int64_t blocks = (vocabulary + op.block - 1) / op.block;
  op.parts = std::min<int64_t>(torch::stable::get_num_threads(), blocks);
  op.stride = (count + row_multiple - 1) / row_multiple * row_multiple;
  Tensor sums = torch::stable::new_empty(hidden, {op.parts, width + 4, op.stride}, ScalarType::Float);
  op.sums = sums.mutable_data_ptr<float>();
  op.losses = losses.mutable_data_ptr<float>(), op.gradient = gradient.mutable_data_ptr();
  torch::stable::parallel_for(0, op.parts, 1,
                              [&](int64_t begin, int64_t end) { kernels().label_losses(op, begin, end); });
  kernels().label_losses_combine(op);
  return {losses, gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("label_losses", TORCH_BOX(&label_losses)); }

}  // namespace corrigenda
