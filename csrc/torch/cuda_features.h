// How the bindings of `topk_mask` and `mask_route` say what a fingerprint is made of.
#pragma once

#include "../cuda/topk_mask.h"
#include "cuda_tensors.h"

namespace corrigenda {

// The tensors of `FeatureArguments`, contiguous, and kept while the kernels are started.
struct Features {
  Tensor x, offsets;
  std::optional<Tensor> weight, background, permutation;

  Features(const Tensor& x, const Tensor& offsets, const std::optional<Tensor>& weight,
           const std::optional<Tensor>& background, const std::optional<Tensor>& permutation)
      : x(torch::stable::contiguous(x)),
        offsets(torch::stable::contiguous(offsets)),
        weight(contiguous(weight)),
        background(contiguous(background)),
        permutation(contiguous(permutation)) {
    STD_TORCH_CHECK(x.size(1) <= TOPK_MASK_WIDEST, "the CUDA kernels fingerprint up to ", TOPK_MASK_WIDEST,
                    " features, not ", x.size(1), "; set CORRIGENDA_BACKEND=triton or reference");
  }

  int64_t batch() const { return offsets.size(0) - 1; }

  void fill(FeatureArguments& op, int64_t k) const {
    op.x = x.const_data_ptr(), op.x_dtype = dtype_code(x);
    op.offsets = data<int32_t>(offsets);
    op.tokens = x.size(0), op.batch = batch(), op.width = x.size(1), op.k = k;
    op.weight = data<float>(weight);
    op.background = data<float>(background);
    op.permutation = data<int64_t>(permutation);
  }
};

}  // namespace corrigenda
