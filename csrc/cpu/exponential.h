// e^x of float32 lanes.
#pragma once

#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

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

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
