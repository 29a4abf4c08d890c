// How far a residual moves each token's output, raw or after SiLU.
#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// e^x to 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; beyond +-87, the value there.
inline Floats exponential(Floats x) {
  x = select<Floats>(x > 87.0f, floats(87.0f), x);
  x = select<Floats>(x < -87.0f, floats(-87.0f), x);
  const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are x / ln 2, rounded
  const Ints exponent = bit_cast<Ints>(shifted) - 0x4B400000;
  const Floats whole = shifted - 12582912.0f;
  Floats rest = x - whole * 0.693359375f;
  rest = rest + whole * 2.12194440e-4f;
  Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * (rest * rest) + rest + 1.0f;
  return sum * bit_cast<Floats>((exponent + 127) << 23);
}

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
