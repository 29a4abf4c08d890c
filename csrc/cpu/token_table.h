// The weights of one query's tokens, looked up for a vector of stored tokens at a time.
//
// A hash table in registers: a token's slot is a few of its bits, a permutation by slot is the lookup, and tokens that
// share a slot go to further layers. With 12 tokens and 16 slots two layers do, ten instructions for 16 stored tokens;
// neither a table of the vocabulary, which no cache near the core holds, nor a gather is needed.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

#if defined(__AVX2__)
constexpr int slots = lanes;
#else
constexpr int slots = 512;  // in memory, as SSE2 has no permutation by index: then one layer nearly always does
#endif

// Which lanes hold a token below `vocabulary`.
inline Ints known(Ints tokens, int64_t vocabulary) {
  return (tokens >= 0) & (tokens < static_cast<int32_t>(vocabulary));
}

inline bool any(Ints condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(condition));
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bit_cast<__m256>(condition));
#elif defined(__x86_64__)
  return _mm_movemask_ps(bit_cast<__m128>(condition));
#else
  return condition[0] | condition[1] | condition[2] | condition[3];
#endif
}

// `count` tokens, -1 beyond, at most `lanes`.
inline Ints load_tokens(const int32_t* from, int64_t count) {
  if (count >= lanes) return load_vector<Ints>(from);
  Ints tokens = ints(-1);
  __builtin_memcpy(&tokens, from, static_cast<size_t>(count) * 4);
  return tokens;
}

// The sum of the weights of a row's tokens; a number that is no token weighs nothing.
inline int32_t mass(const int32_t* row, int64_t count, const int32_t* rarity, int64_t vocabulary) {
  Ints total = {};
  for (int64_t i = 0; i < count; i += lanes) {
    const Ints tokens = load_tokens(row + i, count - i), valid = known(tokens, vocabulary);
    if (!any(valid)) continue;
#if defined(__AVX512F__)
    const __mmask16 mask = _mm512_movepi32_mask(bit_cast<__m512i>(valid));
    total += bit_cast<Ints>(
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, bit_cast<__m512i>(tokens), rarity, 4));
#elif defined(__AVX2__)
    total += bit_cast<Ints>(_mm256_mask_i32gather_epi32(_mm256_setzero_si256(), rarity, bit_cast<__m256i>(tokens),
                                                        bit_cast<__m256i>(valid), 4));
#else
    for (int lane = 0; lane < lanes; ++lane)
      if (valid[lane]) total[0] += rarity[tokens[lane]];
#endif
  }
  return sum(total);
}

class TokenTable {
 public:
  TokenTable(const int32_t* query, int64_t count, const int32_t* rarity, int64_t vocabulary) {
    int64_t fewest = count + 1;
    for (int shift = 0; shift < 16 && fewest > 1; ++shift) {
      const int64_t layers = fullest_slot(query, count, shift);
      if (layers < fewest) fewest = layers, shift_ = shift;
    }
    tokens_ = token_memory_.reserve(fewest * slots);
    weights_ = weight_memory_.reserve(fewest * slots);
    __builtin_memset(tokens_, -1, static_cast<size_t>(fewest) * slots * 4);
    __builtin_memset(weights_, 0, static_cast<size_t>(fewest) * slots * 4);
    for (int64_t i = 0; i < count; ++i)
      if (query[i] >= 0 && query[i] < vocabulary) insert(query[i], rarity[query[i]]);
  }

  // The weights of the row's tokens that the query has, in lanes that sum to them.
  Words shared(const int32_t* row, int64_t count) const {
    Words total = {};
#if defined(__AVX2__)
    for (int64_t i = 0; i < count; i += lanes) {
      const Ints tokens = load_tokens(row + i, count - i);
      __builtin_prefetch(row + i + ahead);
      if (i && !any(tokens >= 0)) continue;  // one long row makes all rows wide
      const Words slot = bit_cast<Words>(tokens) >> shift_;
      for (int64_t layer = 0; layer < layers_; ++layer) {
        const Ints held = load_vector<Ints>(tokens_ + layer * slots);
        const Ints weights = load_vector<Ints>(weights_ + layer * slots);
#if defined(__AVX512F__)
        const __m512i at = bit_cast<__m512i>(slot), sum = bit_cast<__m512i>(total);
        const __mmask16 same =
            _mm512_cmpeq_epi32_mask(_mm512_permutexvar_epi32(at, bit_cast<__m512i>(held)), bit_cast<__m512i>(tokens));
        const __m512i weight = _mm512_permutexvar_epi32(at, bit_cast<__m512i>(weights));
        total = bit_cast<Words>(_mm512_mask_add_epi32(sum, same, sum, weight));
#else
        const __m256i at = bit_cast<__m256i>(slot);
        const __m256i same =
            _mm256_cmpeq_epi32(_mm256_permutevar8x32_epi32(bit_cast<__m256i>(held), at), bit_cast<__m256i>(tokens));
        total += bit_cast<Words>(
            _mm256_and_si256(same, _mm256_permutevar8x32_epi32(bit_cast<__m256i>(weights), at)));
#endif
      }
    }
#else
    int32_t sum = 0;
    for (int64_t layer = 0; layer < layers_; ++layer) {
      const int32_t *const tokens = tokens_ + layer * slots, *const weights = weights_ + layer * slots;
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t slot = static_cast<uint32_t>(row[i]) >> shift_ & (slots - 1);
        sum += weights[slot] & -(tokens[slot] == row[i]);
      }
    }
    total[0] = static_cast<uint32_t>(sum);
#endif
    return total;
  }

 private:
  static int64_t fullest_slot(const int32_t* query, int64_t count, int shift) {
    uint16_t held[slots] = {};
    int64_t most = 1;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t now = query[i] < 0 ? 0 : ++held[query[i] >> shift & (slots - 1)];
      most = now > most ? now : most;
    }
    return most;
  }

  void insert(int32_t token, int32_t weight) {
    for (int64_t at = token >> shift_ & (slots - 1);; at += slots) {
      if (tokens_[at] == token) return;
      if (tokens_[at] >= 0) continue;
      tokens_[at] = token, weights_[at] = weight;
      if (at / slots >= layers_) layers_ = at / slots + 1;
      return;
    }
  }

  static inline thread_local Buffer<int32_t> token_memory_, weight_memory_;
  int shift_ = 0;
  int64_t layers_ = 0;
  int32_t *tokens_, *weights_;
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
