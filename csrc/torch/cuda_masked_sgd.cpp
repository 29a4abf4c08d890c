// masked_sgd_ on CUDA tensors.
#include "../cuda/masked_sgd.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

void masked_sgd_(Tensor delta, Tensor x, Tensor gradient, Tensor masks, std::optional<Tensor> base,
                 double learning_rate, double decay, bool decay_masked, double limit) {
  x = torch::stable::contiguous(x);
  gradient = torch::stable::contiguous(gradient);
  masks = torch::stable::contiguous(masks);
  base = contiguous(base);
  in_place(delta, [&](const Tensor&, Tensor& stepped) {
    MaskedSgdArguments op{};
    op.delta = mutable_data<float>(stepped);
    op.x = x.const_data_ptr(), op.x_dtype = dtype_code(x);
    op.gradient = gradient.const_data_ptr(), op.gradient_dtype = dtype_code(gradient);
    op.masks = data<uint32_t>(masks);
    op.base = base ? base->const_data_ptr() : nullptr, op.base_dtype = base ? dtype_code(*base) : FLOAT32;
    op.learning_rate = static_cast<float>(learning_rate);
    op.decay = static_cast<float>(decay), op.decay_masked = decay_masked;
    op.limit = static_cast<float>(limit);
    op.tokens = x.size(0), op.width = delta.size(0), op.outputs = delta.size(1);
    start("masked_sgd", op, corrigenda_masked_sgd_scratch_bytes, corrigenda_masked_sgd, delta);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_)); }

}  // namespace corrigenda
