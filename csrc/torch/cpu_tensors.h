// What the bindings of the CPU kernels share.
#pragma once

#include <algorithm>

#include "../cpu/kernels.h"
#include "tensors.h"

namespace corrigenda {

inline Type type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    case ScalarType::Char: return Type::int8;
    default: STD_TORCH_CHECK(false, "the native kernels take float32, bfloat16, float16 and int8 tensors"); std::abort();
  }
}

// `valid` holds one count in host memory, or is absent: then all `rows` are seen. Groups are contiguous.
inline Visible visible(int64_t rows, const std::optional<Tensor>& valid, const std::optional<Tensor>& query_group,
                       const std::optional<Tensor>& stored_group) {
  const int64_t seen = valid ? std::clamp<int64_t>(*data<int32_t>(*valid), 0, rows) : rows;
  return {seen, data<int32_t>(query_group), data<int32_t>(stored_group)};
}

}  // namespace corrigenda
