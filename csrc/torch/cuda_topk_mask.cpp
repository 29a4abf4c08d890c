// topk_mask on CUDA tensors.
#include "cuda_features.h"

namespace corrigenda {
namespace {

Tensor topk_mask(Tensor x, Tensor offsets, int64_t k, std::optional<Tensor> weight, std::optional<Tensor> background,
                 std::optional<Tensor> permutation) {
  const Features features(x, offsets, weight, background, permutation);
  Tensor masks = output_of(x, {features.batch(), (x.size(1) + 31) / 32}, ScalarType::Int);
  TopkMaskArguments op{};
  features.fill(op, k);
  op.masks = mutable_data<uint32_t>(masks);
  start("topk_mask", op, corrigenda_topk_mask_scratch_bytes, corrigenda_topk_mask, x);
  return masks;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace corrigenda
