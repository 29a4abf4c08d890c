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

}  // namespace corrigenda
