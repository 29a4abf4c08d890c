// token_overlap on CPU tensors.
#include "cpu_search.h"

namespace corrigenda {
namespace {

void merge(NearestTokens& best, const NearestTokens& later) {
  if (later.score > best.score) {
    best = {later.index, later.score, std::max(best.score, later.runner_up)};
  } else {
    best.runner_up = std::max(best.runner_up, later.score);
  }
}

std::tuple<Tensor, Tensor, Tensor> token_overlap(Tensor query, Tensor stored, Tensor rarity, double extra_weight,
                                                 std::optional<Tensor> valid, std::optional<Tensor> query_group,
                                                 std::optional<Tensor> stored_group) {
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  rarity = torch::stable::contiguous(rarity);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0);
  const TokenOverlap op{data<int32_t>(query),
                        data<int32_t>(stored),
                        data<int32_t>(rarity),
                        query.size(1),
                        stored.size(1),
                        rarity.size(0),
                        static_cast<float>(extra_weight),
                        {data<int32_t>(query_group), data<int32_t>(stored_group)}};
  const auto best = search<NearestTokens>(
      batch, seen(stored.size(0), valid), 4 * op.stored_tokens, 1,
      [&](const Part& part, NearestTokens* found) { kernels().token_overlap(op, part, found); }, merge);
  Tensor index = torch::stable::new_empty(query, {batch});
  Tensor score = torch::stable::new_empty(query, {batch}, ScalarType::Float);
  Tensor runner_up = torch::stable::new_empty(query, {batch}, ScalarType::Float);
  for (int64_t b = 0; b < batch; ++b) {
    index.mutable_data_ptr<int32_t>()[b] = best[b].index;
    score.mutable_data_ptr<float>()[b] = std::max(best[b].score, 0.0f);
    runner_up.mutable_data_ptr<float>()[b] = std::max(best[b].runner_up, 0.0f);
  }
  return {index, score, runner_up};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("token_overlap", TORCH_BOX(&token_overlap)); }

}  // namespace corrigenda
