// nearest_key on CUDA tensors.
#include "../cuda/nearest_key.h"

#include "cuda_tensors.h"

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
  const int64_t batch = query.size(0);
  Tensor index = output_of(query, {batch}, ScalarType::Int), route = output_of(query, {batch}, ScalarType::Int);
  Tensor distance = output_of(query, {batch}, ScalarType::Float);
  NearestKeyArguments op{};
  op.query = query.const_data_ptr(), op.query_dtype = dtype_code(query);
  op.stored = stored.const_data_ptr();
  op.radius = data<float>(radius);
  op.cosine = cosine;
  op.batch = batch, op.rows = stored.size(0), op.width = query.size(1);
  op.valid = data<int32_t>(valid);
  op.query_group = data<int32_t>(query_group);
  op.stored_group = data<int32_t>(stored_group);
  op.index = mutable_data<int32_t>(index);
  op.distance = mutable_data<float>(distance);
  op.route = mutable_data<int32_t>(route);
  start("nearest_key", op, corrigenda_nearest_key_scratch_bytes, corrigenda_nearest_key, query);
  return {index, distance, route};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("nearest_key", TORCH_BOX(&nearest_key)); }

}  // namespace corrigenda
