// mask_overlap on CPU tensors.
#include "cpu_search.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor> mask_overlap(Tensor query, Tensor stored, std::optional<Tensor> valid,
                                        std::optional<Tensor> query_group, std::optional<Tensor> stored_group) {
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0);
  const MaskOverlap op{data<int32_t>(query), data<int32_t>(stored), query.size(1),
                       {data<int32_t>(query_group), data<int32_t>(stored_group)}};
  const auto best = nearest_masks(op, batch, seen(stored.size(0), valid));
  Tensor index = torch::stable::new_empty(query, {batch});
  Tensor overlap = torch::stable::new_empty(query, {batch});
  for (int64_t b = 0; b < batch; ++b) {
    index.mutable_data_ptr<int32_t>()[b] = best[b].index;
    overlap.mutable_data_ptr<int32_t>()[b] = std::max(best[b].overlap, 0);
  }
  return {index, overlap};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("mask_overlap", TORCH_BOX(&mask_overlap)); }

}  // namespace corrigenda
