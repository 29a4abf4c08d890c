// Comparisons as bits, one per lane, and keeping the lanes whose bit is set.
#pragma once

#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

// Bit i: a[i] > b[i].
inline uint32_t greater(Ints a, Ints b) {
#if defined(__AVX512F__)
  return _mm512_cmpgt_epi32_mask(bit_cast<__m512i>(a), bit_cast<__m512i>(b));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(a > b)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(bit_cast<__m128>(a > b)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= static_cast<uint32_t>(a[i] > b[i]) << i;
  return bits;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
struct Orders {
  uint8_t lane[256][8];
};

// For each set of lanes, their numbers in order.
constexpr Orders orders = [] {
  Orders all{};
  for (int bits = 0; bits < 256; ++bits)
    for (int lane = 0, kept = 0; lane < 8; ++lane)
      if (bits >> lane & 1) all.lane[bits][kept++] = static_cast<uint8_t>(lane);
  return all;
}();
#endif

// Write the lanes whose bit is set one after the other, and anything up to `lanes` numbers; returns how many are kept.
inline int64_t keep(int32_t* to, Ints values, uint32_t bits) {
#if defined(__AVX512F__)
  // Not the form that writes to memory: on Zen 4 it takes a hundred cycles.
  const __m512i kept = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), bit_cast<__m512i>(values));
  __builtin_memcpy(to, &kept, sizeof kept);
  return _mm_popcnt_u32(bits);
#elif defined(__AVX2__)
  const __m256i order = _mm256_cvtepu8_epi32(_mm_loadu_si64(orders.lane[bits]));
  const __m256i kept = _mm256_permutevar8x32_epi32(bit_cast<__m256i>(values), order);
  __builtin_memcpy(to, &kept, sizeof kept);
  return _mm_popcnt_u32(bits);
#else
  int64_t kept = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    to[kept] = values[lane];
    kept += bits >> lane & 1;
  }
  return kept;
#endif
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
