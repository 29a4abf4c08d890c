// What the bindings of the CPU kernels share.
#pragma once

#include "../cpu/kernels.h"
#include "tensors.h"

namespace corrigenda {

inline Type type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    case ScalarType::Char: return Type::int8;
    default: STD_TORCH_CHECK(false, "the CPU kernels take float32, bfloat16, float16 and int8 tensors"); std::abort();
  }
}

// The functional form of an op that adds to its first argument: `in_place`, on a contiguous copy of it.
template <auto in_place>
struct OnCopy;

template <class... Others, void (*in_place)(Tensor, Others...)>
struct OnCopy<in_place> {
  static Tensor run(Tensor y, Others... others) {
    Tensor out = torch::stable::new_empty(y, y.sizes());
    torch::stable::copy_(out, y);
    in_place(out, others...);
    return out;
  }
};

}  // namespace corrigenda
