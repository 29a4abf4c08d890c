// mask_route on CPU tensors: the masks of topk_mask, searched as in mask_overlap, in one call.
#include "cpu_masks.h"
#include "cpu_search.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor, Tensor> mask_route(Tensor x, Tensor offsets, int64_t k, std::optional<Tensor> weight,
                                              std::optional<Tensor> background, std::optional<Tensor> permutation,
                                              Tensor stored, Tensor minimum, std::optional<Tensor> valid,
                                              std::optional<Tensor> query_group, std::optional<Tensor> stored_group) {
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = offsets.size(0) - 1, words = stored.size(1);
  std::vector<int32_t> masks(batch * words);
  features(x, offsets, weight, background, permutation).make_masks(k, masks.data());
  const MaskOverlap op{masks.data(), data<int32_t>(stored), words,
                       {data<int32_t>(query_group), data<int32_t>(stored_group)}};
  const auto best = nearest_masks(op, batch, seen(stored.size(0), valid));
  const int32_t least = *data<int32_t>(minimum);
  Tensor nearest = torch::stable::new_empty(offsets, {batch});
  Tensor overlap = torch::stable::new_empty(offsets, {batch});
  Tensor route = torch::stable::new_empty(offsets, {batch});
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t shared = std::max(best[b].overlap, 0);
    nearest.mutable_data_ptr<int32_t>()[b] = best[b].index;
    overlap.mutable_data_ptr<int32_t>()[b] = shared;
    route.mutable_data_ptr<int32_t>()[b] = shared >= least ? best[b].index : -1;
  }
  return {nearest, overlap, route};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("mask_route", TORCH_BOX(&mask_route)); }

}  // namespace corrigenda
