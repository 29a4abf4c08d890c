// token_overlap on CUDA tensors.
#include "../cuda/token_overlap.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor, Tensor> token_overlap(Tensor query, Tensor stored, Tensor rarity, double extra_weight,
                                                 std::optional<Tensor> valid, std::optional<Tensor> query_group,
                                                 std::optional<Tensor> stored_group) {
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  rarity = torch::stable::contiguous(rarity);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0), vocabulary = rarity.size(0);
  STD_TORCH_CHECK(vocabulary <= TOKEN_OVERLAP_WIDEST, "the CUDA kernel takes vocabularies of up to ",
                  TOKEN_OVERLAP_WIDEST, " tokens, not ", vocabulary, "; set CORRIGENDA_BACKEND=triton or reference");
  Tensor index = output_of(query, {batch}, ScalarType::Int);
  Tensor score = output_of(query, {batch}, ScalarType::Float);
  Tensor runner_up = output_of(query, {batch}, ScalarType::Float);
  TokenOverlapArguments op{};
  op.query = data<int32_t>(query);
  op.stored = data<int32_t>(stored);
  op.rarity = data<int32_t>(rarity);
  op.batch = batch, op.query_length = query.size(1);
  op.rows = stored.size(0), op.stored_length = stored.size(1), op.vocabulary = vocabulary;
  op.extra_weight = static_cast<float>(extra_weight);
  op.valid = data<int32_t>(valid);
  op.query_group = data<int32_t>(query_group);
  op.stored_group = data<int32_t>(stored_group);
  op.index = mutable_data<int32_t>(index);
  op.score = mutable_data<float>(score);
  op.runner_up = mutable_data<float>(runner_up);
  start("token_overlap", op, corrigenda_token_overlap_scratch_bytes, corrigenda_token_overlap, query);
  return {index, score, runner_up};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("token_overlap", TORCH_BOX(&token_overlap)); }

}  // namespace corrigenda
