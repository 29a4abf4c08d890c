// masked_sgd_ on CPU tensors: torch multiplies a block of rows of the gradient, the kernel steps them.
#include <algorithm>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

// Entries of the gradient that are alive at a time, a thread. Of few tokens 256 KB, which the second cache holds until they are
// used; of many 4 MB, for every block packs the other factor anew: 400 tokens at 14336 x 4096 take 0.39 s so, not 0.66.
int64_t gradient_entries(int64_t tokens) { return tokens < 64 ? 1 << 16 : 1 << 20; }

void masked_sgd_(Tensor delta, Tensor x, Tensor gradient, Tensor masks, std::optional<Tensor> base,
                 double learning_rate, double decay, bool decay_masked, double limit) {
  const int64_t width = delta.size(0), outputs = delta.size(1);
  if (width == 0 || outputs == 0) return;
  Tensor held = delta.stride(1) == 1 || outputs == 1 ? delta : torch::stable::contiguous(delta);
  Tensor transposed = torch::stable::transpose(torch::stable::to(x, ScalarType::Float), 0, 1);
  gradient = torch::stable::to(gradient, ScalarType::Float);
  masks = torch::stable::contiguous(masks);
  base = contiguous(base);
  MaskedSgd op = {};
  op.delta = held.mutable_data_ptr<float>(), op.delta_row = held.stride(0), op.outputs = outputs;
  op.masks = data<int32_t>(masks), op.words = masks.size(1);
  op.base_type = base ? type(*base) : Type::float32;
  op.base = base ? base->const_data_ptr() : nullptr;
  op.learning_rate = static_cast<float>(learning_rate), op.decay = static_cast<float>(decay);
  op.decay_masked = decay_masked, op.limit = static_cast<float>(limit);
  const int64_t alive = gradient_entries(x.size(0)) * torch::stable::get_num_threads();
  const int64_t block = std::max<int64_t>(16, alive / outputs);
  const int64_t share = std::max<int64_t>(1, 32768 / outputs);  // of a thread, at least
  for (int64_t first = 0; first < width; first += block) {
    const int64_t count = std::min(block, width - first);
    const Tensor rows =
        torch::stable::contiguous(torch::stable::matmul(torch::stable::narrow(transposed, 0, first, count), gradient));
    op.first = first, op.gradient = data<float>(rows);
    torch::stable::parallel_for(first, first + count, share,
                                [&](int64_t begin, int64_t end) { kernels().masked_sgd(op, begin, end); });
  }
  if (held.const_data_ptr() != delta.const_data_ptr()) torch::stable::copy_(delta, held);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_)); }

}  // namespace corrigenda
