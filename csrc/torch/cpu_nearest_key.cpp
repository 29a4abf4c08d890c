// nearest_key on CPU tensors.
#include <cmath>

#include "cpu_search.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor, Tensor> nearest_key(Tensor query, Tensor stored, std::optional<Tensor> radius, bool cosine,
                                               std::optional<Tensor> valid, std::optional<Tensor> query_group,
                                               std::optional<Tensor> stored_group) {
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  radius = contiguous(radius);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0), width = query.size(1);
  const NearestKey op{type(query),
                      query.const_data_ptr(),
                      stored.const_data_ptr(),
                      width,
                      cosine,
                      {data<int32_t>(query_group), data<int32_t>(stored_group)}};
  const auto best = search<NearestStored>(
      batch, seen(stored.size(0), valid), width * (op.type == Type::float32 ? 4 : 2), 8,
      [&](const Part& part, NearestStored* found) { kernels().nearest_key(op, part, found); },
      [](NearestStored& nearest, const NearestStored& later) {
        if (later.distance < nearest.distance) nearest = later;
      });
  Tensor index = torch::stable::new_empty(query, {batch}, ScalarType::Int);
  Tensor distance = torch::stable::new_empty(query, {batch}, ScalarType::Float);
  Tensor route = torch::stable::new_empty(query, {batch}, ScalarType::Int);
  const float* reach = data<float>(radius);
  for (int64_t b = 0; b < batch; ++b) {
    const float apart = cosine ? best[b].distance : std::sqrt(best[b].distance);
    const bool inside = best[b].index >= 0 && (reach == nullptr || apart <= reach[best[b].index]);
    index.mutable_data_ptr<int32_t>()[b] = best[b].index;
    distance.mutable_data_ptr<float>()[b] = apart;
    route.mutable_data_ptr<int32_t>()[b] = inside ? best[b].index : -1;
  }
  return {index, distance, route};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("nearest_key", TORCH_BOX(&nearest_key)); }

}  // namespace corrigenda
