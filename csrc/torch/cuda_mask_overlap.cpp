// mask_overlap on CUDA tensors.
#include "../cuda/mask_overlap.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

std::tuple<Tensor, Tensor> mask_overlap(Tensor query, Tensor stored, std::optional<Tensor> valid,
                                        std::optional<Tensor> query_group, std::optional<Tensor> stored_group) {
  query = torch::stable::contiguous(query);
  stored = torch::stable::contiguous(stored);
  query_group = contiguous(query_group);
  stored_group = contiguous(stored_group);
  const int64_t batch = query.size(0);
  Tensor index = output_of(query, {batch}, ScalarType::Int), overlap = output_of(query, {batch}, ScalarType::Int);
  MaskOverlapArguments op{};
  op.query = data<uint32_t>(query);
  op.stored = data<uint32_t>(stored);
  op.batch = batch, op.rows = stored.size(0), op.words = query.size(1);
  op.valid = data<int32_t>(valid);
  op.query_group = data<int32_t>(query_group);
  op.stored_group = data<int32_t>(stored_group);
  op.index = mutable_data<int32_t>(index);
  op.overlap = mutable_data<int32_t>(overlap);
  start("mask_overlap", op, corrigenda_mask_overlap_scratch_bytes, corrigenda_mask_overlap, query);
  return {index, overlap};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("mask_overlap", TORCH_BOX(&mask_overlap)); }

}  // namespace corrigenda
