// How far a residual moves each token's output, raw or after SiLU.
#include "exponential.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

inline Floats silu(Floats x) { return x / (exponential(-x) + 1.0f); }

template <bool activated, class Base>
inline Floats squared(Floats side, const Base& base) {
  const Floats change = activated ? silu(base + side) - silu(base) : side;
  return change * change;
}

template <bool activated, class Base>
void measure(const DeltaLinear& op, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const float* side = op.side + token * op.outputs;
    const Base* base = static_cast<const Base*>(op.base) + token * op.outputs;
    Floats total = {};
    int64_t j = 0;
    for (; j + lanes <= op.outputs; j += lanes) total += squared<activated>(load(side + j), load(base + j));
    if (const int64_t rest = op.outputs - j; rest > 0)
      total += squared<activated>(load_some(side + j, rest), load_some(base + j, rest));
    op.distance[token] = __builtin_sqrtf(sum(total));
  }
}

}  // namespace

void delta_linear(const DeltaLinear& op, int64_t begin, int64_t end) {
  with_element(op.base_type, [&](auto base) {
    op.activated ? measure<true, decltype(base)>(op, begin, end) : measure<false, decltype(base)>(op, begin, end);
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
