#include <algorithm>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor> mask_overlap(Tensor query, Tensor stored, std::optional<Tensor> valid,
                                        std::optional<Tensor> query_group, std::optional<Tensor> stored_group) {
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0);
  Tensor index = torch::stable::new_empty(query, {batch});
  Tensor overlap = torch::stable::new_empty(query, {batch});
  const MaskOverlap op{data<int32_t>(query),
                       data<int32_t>(stored),
                       query.size(1),
                       visible(stored.size(0), valid, query_group, stored_group),
                       index.mutable_data_ptr<int32_t>(),
                       overlap.mutable_data_ptr<int32_t>()};
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) { kernels().mask_overlap(op, begin, end); });
  return {index, overlap};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("mask_overlap", TORCH_BOX(&mask_overlap)); }

}  // namespace corrigenda
