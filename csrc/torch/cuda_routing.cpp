// topk_mask, mask_overlap, mask_route and token_overlap on CUDA tensors.
#include "../cuda/mask_overlap.h"
#include "../cuda/mask_route.h"
#include "../cuda/token_overlap.h"
#include "../cuda/topk_mask.h"
#include "cuda_tensors.h"

namespace corrigenda {
namespace {

using Optional = std::optional<Tensor>;

// The arguments that say what a fingerprint is, contiguous.
struct Features {
  Tensor x, offsets;
  Optional weight, background, permutation;
  int64_t tokens, batch, width;

  Features(const Tensor& x, const Tensor& offsets, const Optional& weight, const Optional& background,
           const Optional& permutation)
      : x(torch::stable::contiguous(x)),
        offsets(torch::stable::contiguous(offsets)),
        weight(contiguous(weight)),
        background(contiguous(background)),
        permutation(contiguous(permutation)),
        tokens(x.size(0)),
        batch(offsets.size(0) - 1),
        width(x.size(1)) {
    STD_TORCH_CHECK(width <= TOPK_MASK_WIDEST, "the CUDA kernels fingerprint up to ", TOPK_MASK_WIDEST,
                    " features, not ", width, "; set CORRIGENDA_BACKEND=triton or reference");
  }
};

Tensor int32_like(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::Int);
}

Tensor topk_mask(Tensor x, Tensor offsets, int64_t k, Optional weight, Optional background, Optional permutation) {
  const OnDeviceOf device(x);
  const Features f(x, offsets, weight, background, permutation);
  Tensor masks = torch::stable::new_empty(f.offsets, {f.batch, (f.width + 31) / 32});
  const Tensor memory = scratch(x, corrigenda_topk_mask_scratch_bytes(f.tokens, f.batch, f.width));
  check_launch(corrigenda_topk_mask(f.x.const_data_ptr(), dtype_code(x), data<int32_t>(f.offsets), f.tokens, f.batch,
                                    f.width, k, data<float>(f.weight), data<float>(f.background),
                                    data<int64_t>(f.permutation), masks.mutable_data_ptr<int32_t>(),
                                    memory.mutable_data_ptr(), device.stream()),
               "topk_mask");
  return masks;
}

std::tuple<Tensor, Tensor> mask_overlap(Tensor query, Tensor stored, Optional valid, Optional query_group,
                                        Optional stored_group) {
  const OnDeviceOf device(query);
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0);
  Tensor index = int32_like(query, batch), overlap = int32_like(query, batch);
  const Tensor memory = scratch(query, corrigenda_mask_overlap_scratch_bytes(batch));
  check_launch(corrigenda_mask_overlap(data<int32_t>(query), data<int32_t>(stored), batch, stored.size(0),
                                       query.size(1), data<int32_t>(valid), data<int32_t>(query_group),
                                       data<int32_t>(stored_group), index.mutable_data_ptr<int32_t>(),
                                       overlap.mutable_data_ptr<int32_t>(), memory.mutable_data_ptr(),
                                       device.stream()),
               "mask_overlap");
  return {index, overlap};
}

std::tuple<Tensor, Tensor, Tensor> mask_route(Tensor x, Tensor offsets, int64_t k, Optional weight,
                                              Optional background, Optional permutation, Tensor stored,
                                              Tensor minimum, Optional valid, Optional query_group,
                                              Optional stored_group) {
  const OnDeviceOf device(x);
  const Features f(x, offsets, weight, background, permutation);
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  Tensor nearest = int32_like(x, f.batch), overlap = int32_like(x, f.batch), route = int32_like(x, f.batch);
  const Tensor memory = scratch(x, corrigenda_mask_route_scratch_bytes(f.tokens, f.batch, f.width));
  check_launch(
      corrigenda_mask_route(f.x.const_data_ptr(), dtype_code(x), data<int32_t>(f.offsets), f.tokens, f.batch, f.width,
                            k, data<float>(f.weight), data<float>(f.background), data<int64_t>(f.permutation),
                            data<int32_t>(stored), stored.size(0), data<int32_t>(minimum), data<int32_t>(valid),
                            data<int32_t>(query_group), data<int32_t>(stored_group),
                            nearest.mutable_data_ptr<int32_t>(), overlap.mutable_data_ptr<int32_t>(),
                            route.mutable_data_ptr<int32_t>(), memory.mutable_data_ptr(), device.stream()),
      "mask_route");
  return {nearest, overlap, route};
}

std::tuple<Tensor, Tensor, Tensor> token_overlap(Tensor query, Tensor stored, Tensor rarity, double extra_weight,
                                                 Optional valid, Optional query_group, Optional stored_group) {
  const OnDeviceOf device(query);
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  rarity = torch::stable::contiguous(rarity);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0), rows = stored.size(0), vocabulary = rarity.size(0);
  STD_TORCH_CHECK(vocabulary <= TOKEN_OVERLAP_WIDEST, "the CUDA kernel takes vocabularies of up to ",
                  TOKEN_OVERLAP_WIDEST, " tokens, not ", vocabulary, "; set CORRIGENDA_BACKEND=triton or reference");
  Tensor index = int32_like(query, batch);
  Tensor score = torch::stable::new_empty(query, {batch}, ScalarType::Float);
  Tensor runner_up = torch::stable::new_empty(query, {batch}, ScalarType::Float);
  const Tensor memory = scratch(query, corrigenda_token_overlap_scratch_bytes(batch, rows));
  check_launch(
      corrigenda_token_overlap(data<int32_t>(query), data<int32_t>(stored), data<int32_t>(rarity), batch,
                               query.size(1), rows, stored.size(1), vocabulary, static_cast<float>(extra_weight),
                               data<int32_t>(valid), data<int32_t>(query_group), data<int32_t>(stored_group),
                               index.mutable_data_ptr<int32_t>(), score.mutable_data_ptr<float>(),
                               runner_up.mutable_data_ptr<float>(), memory.mutable_data_ptr(), device.stream()),
      "token_overlap");
  return {index, score, runner_up};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) {
  m.impl("topk_mask", TORCH_BOX(&topk_mask));
  m.impl("mask_overlap", TORCH_BOX(&mask_overlap));
  m.impl("mask_route", TORCH_BOX(&mask_route));
  m.impl("token_overlap", TORCH_BOX(&token_overlap));
}

}  // namespace corrigenda
