// How the bindings of `topk_mask` and `mask_route` make masks.
#pragma once

#include <atomic>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {

// The tensors of a `TopkMask`, contiguous, and kept while it runs.
struct Features {
  Tensor x, offsets;
  std::optional<Tensor> weight, background, permutation;

  void make_masks(int64_t k, int32_t* masks) const {
    const int64_t batch = offsets.size(0) - 1;
    const TopkMask op{type(x),          x.const_data_ptr(),      data<int32_t>(offsets),    x.size(0),
                      x.size(1),        k,                       data<float>(weight),
                      data<float>(background), data<int64_t>(permutation), masks};
    std::atomic<bool> fits = true;
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      if (!kernels().topk_mask(op, begin, end)) fits = false;
    });
    STD_TORCH_CHECK(fits, "permutation must hold the numbers 0 .. ", x.size(1) - 1, " only");
  }
};

inline Features features(const Tensor& x, const Tensor& offsets, const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& background, const std::optional<Tensor>& permutation) {
  return {torch::stable::contiguous(x), torch::stable::contiguous(offsets), contiguous(weight), contiguous(background),
          contiguous(permutation)};
}

}  // namespace corrigenda
