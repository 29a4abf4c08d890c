// How many bits two masks share, in vectors: the instruction where there is one, a carry-save adder elsewhere.
#pragma once

#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

// `count` words, zero beyond, at most `lanes`.
inline Words load_words(const int32_t* from, int64_t count) {
#if defined(__AVX512F__)
  return bit_cast<Words>(_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), from));
#else
  Words words = {};
  __builtin_memcpy(&words, from, static_cast<size_t>(count) * 4);
  return words;
#endif
}

// Set bits of a vector, in lanes that sum to them.
inline Words count_bits(Words words) {
#if defined(__AVX512VPOPCNTDQ__)
  return bit_cast<Words>(_mm512_popcnt_epi32(bit_cast<__m512i>(words)));
#elif defined(__AVX2__)
  const __m256i nibble = _mm256_set1_epi8(15), bits = bit_cast<__m256i>(words);
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(bits, nibble));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble));
  return bit_cast<Words>(_mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256()));
#else
  words -= (words >> 1) & 0x55555555;
  words = (words & 0x33333333) + ((words >> 2) & 0x33333333);
  words = (words + (words >> 4)) & 0x0F0F0F0F;
#if defined(__x86_64__)
  return bit_cast<Words>(_mm_sad_epu8(bit_cast<__m128i>(words), _mm_setzero_si128()));
#else
  words += words >> 8;
  return (words + (words >> 16)) & 63;
#endif
#endif
}

// The set bits that `mask` shares with each of `rows` masks that lie one after the other, in lanes that sum to them.
template <int rows>
inline void shared_bits(const int32_t* mask, const int32_t* stored, int64_t words, Words (&total)[rows]) {
  const auto both = [&](int row, int64_t at) {
    const int32_t* from = stored + row * words + at;
    __builtin_prefetch(from + ahead);
    return load_vector<Words>(mask + at) & load_vector<Words>(from);
  };
#if defined(__AVX512VPOPCNTDQ__)
  // Rows side by side: at 28 vectors a row, leaving a loop costs as much as half of it.
  for (int row = 0; row < rows; ++row) total[row] = Words{};
  int64_t done = 0;
  for (; done + lanes <= words; done += lanes)
    for (int row = 0; row < rows; ++row) total[row] += count_bits(both(row, done));
  for (int row = 0; row < rows && done < words; ++row) {
    const int32_t* from = stored + row * words + done;
    total[row] += count_bits(load_words(mask + done, words - done) & load_words(from, words - done));
  }
#else
  // Harley and Seal: add eight vectors bit by bit and count the carries alone, one count for eight.
  const auto add = [](Words& sum, Words x, Words y) {  // sum becomes the low bit of sum + x + y, the carry is returned
    const Words parity = sum ^ x;
    const Words carry = (sum & x) | (parity & y);
    sum = parity ^ y;
    return carry;
  };
  for (int row = 0; row < rows; ++row) {
    Words eights = {}, ones = {}, twos = {}, fours = {};
    int64_t i = 0;
    for (; i + 8 * lanes <= words; i += 8 * lanes) {
      const Words twos_0 = add(ones, both(row, i), both(row, i + lanes));
      const Words twos_1 = add(ones, both(row, i + 2 * lanes), both(row, i + 3 * lanes));
      const Words fours_0 = add(twos, twos_0, twos_1);
      const Words twos_2 = add(ones, both(row, i + 4 * lanes), both(row, i + 5 * lanes));
      const Words twos_3 = add(ones, both(row, i + 6 * lanes), both(row, i + 7 * lanes));
      const Words fours_1 = add(twos, twos_2, twos_3);
      eights += count_bits(add(fours, fours_0, fours_1));
    }
    Words sum = {};
    if (i) sum = (eights << 3) + (count_bits(fours) << 2) + (count_bits(twos) << 1) + count_bits(ones);
    for (; i + lanes <= words; i += lanes) sum += count_bits(both(row, i));
    if (i < words) {
      sum += count_bits(load_words(mask + i, words - i) & load_words(stored + row * words + i, words - i));
    }
    total[row] = sum;
  }
#endif
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
