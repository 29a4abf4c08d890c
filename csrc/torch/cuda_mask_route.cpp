// mask_route on CUDA tensors.
#include "../cuda/mask_route.h"

#include "cuda_features.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor, Tensor> mask_route(Tensor x, Tensor offsets, int64_t k, std::optional<Tensor> weight,
                                              std::optional<Tensor> background, std::optional<Tensor> permutation,
                                              Tensor stored, Tensor minimum, std::optional<Tensor> valid,
                                              std::optional<Tensor> query_group, std::optional<Tensor> stored_group) {
  const Features features(x, offsets, weight, background, permutation);
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const auto output = [&] { return output_of(x, {features.batch()}, ScalarType::Int); };
  Tensor nearest = output(), overlap = output(), route = output();
  MaskRouteArguments op{};
  features.fill(op, k);
  op.stored = data<uint32_t>(stored);
  op.rows = stored.size(0);
  op.minimum = data<int32_t>(minimum);
  op.valid = data<int32_t>(valid);
  op.query_group = data<int32_t>(query_group);
  op.stored_group = data<int32_t>(stored_group);
  op.nearest = mutable_data<int32_t>(nearest);
  op.overlap = mutable_data<int32_t>(overlap);
  op.route = mutable_data<int32_t>(route);
  start("mask_route", op, corrigenda_mask_route_scratch_bytes, corrigenda_mask_route, x);
  return {nearest, overlap, route};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("mask_route", TORCH_BOX(&mask_route)); }

}  // namespace corrigenda
