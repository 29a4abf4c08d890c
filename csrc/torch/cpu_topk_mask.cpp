// topk_mask on CPU tensors.
#include "cpu_masks.h"

namespace corrigenda {
namespace {

Tensor topk_mask(Tensor x, Tensor offsets, int64_t k, std::optional<Tensor> weight, std::optional<Tensor> background,
                 std::optional<Tensor> permutation) {
  Tensor masks = torch::stable::new_empty(offsets, {offsets.size(0) - 1, (x.size(1) + 31) / 32});
  features(x, offsets, weight, background, permutation).make_masks(k, masks.mutable_data_ptr<int32_t>());
  return masks;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace corrigenda
