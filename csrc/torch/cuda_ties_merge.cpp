// ties_merge on CUDA tensors.
#include "../cuda/ties_merge.h"

#include <algorithm>

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

Tensor ties_merge(Tensor deltas, Tensor weights, std::vector<double> densities) {
  deltas = torch::stable::contiguous(deltas);
  weights = torch::stable::contiguous(weights);
  std::vector<int64_t> shape, keep;
  int64_t entries = 1;
  for (int64_t i = 1; i < deltas.dim(); i++) {
    shape.push_back(deltas.size(i));
    entries *= deltas.size(i);
  }
  for (double density : densities) keep.push_back(std::max<int64_t>(static_cast<int64_t>(density * entries), 1));
  Tensor merged = torch::stable::new_empty(deltas, shape);
  TiesMergeArguments op{};
  op.deltas = deltas.const_data_ptr(), op.deltas_dtype = dtype_code(deltas);
  op.weights = data<float>(weights);
  op.keep = keep.data();
  op.shards = deltas.size(0), op.entries = entries;
  op.sampled_from = CORRIGENDA_TIES_SAMPLED_FROM;
  op.merged = merged.mutable_data_ptr();
  start("ties_merge", op, corrigenda_ties_merge_scratch_bytes, corrigenda_ties_merge, deltas);
  return merged;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("ties_merge", TORCH_BOX(&ties_merge)); }

}  // namespace corrigenda
