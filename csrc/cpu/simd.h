// Vectors as wide as the instruction set has them, and the four element types as float32 lanes.
//
// GCC's vector types, so that one source serves every width: + - * & | << and comparisons (-1 where true) work on them,
// `a * b + c` becomes a fused multiply-add where there is one. Everything here is in the instruction set's namespace.
// Do not call templates of the standard library that may stay out of line: the linker keeps one copy of each for all
// instruction sets, and might keep one that this processor cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own AVX-512 intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef int32_t Ints __attribute__((vector_size(4 * lanes)));
typedef uint32_t Words __attribute__((vector_size(4 * lanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * lanes)));
typedef int8_t Bytes __attribute__((vector_size(lanes)));

#if defined(__AVX512F__)
constexpr Ints lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
constexpr Ints lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr Ints lane_numbers = {0, 1, 2, 3};
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The same bits as another type of the same size.
template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class Vector>
inline Vector load_vector(const void* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats floats(float value) { return value - Floats{}; }  // in every lane; -0.0 and NaN stay
inline Ints ints(int32_t value) { return value - Ints{}; }

// `then` in the lanes where `condition` is -1, `otherwise` where it is 0.
template <class Vector>
inline Vector select(Ints condition, Vector then, Vector otherwise) {
  return condition ? then : otherwise;
}

// `lanes` 16-bit numbers, zero-extended; by intrinsics, as GCC 12 makes three instructions of a conversion.
inline Words widen(const uint16_t* from) {
#if defined(__AVX512F__)
  return bit_cast<Words>(_mm512_cvtepu16_epi32(load_vector<__m256i>(from)));
#elif defined(__AVX2__)
  return bit_cast<Words>(_mm256_cvtepu16_epi32(load_vector<__m128i>(from)));
#elif defined(__x86_64__)
  return bit_cast<Words>(_mm_unpacklo_epi16(_mm_loadu_si64(from), _mm_setzero_si128()));
#else
  return __builtin_convertvector(load_vector<Halves>(from), Words);
#endif
}

// `lanes` elements as float32.
inline Floats load(const float* from) { return load_vector<Floats>(from); }

inline Floats load(const BFloat16* from) {
  return bit_cast<Floats>(widen(&from->bits) << 16);
}

inline Floats load(const Float16* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load_vector<__m256i>(from));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load_vector<__m128i>(from));
#else
  const Words half = widen(&from->bits);
  const Words magnitude = half & 0x7FFF;
  const Words normal = (magnitude << 13) + (112 << 23);
  const Words small = bit_cast<Words>(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
  const Words special = (magnitude << 13) | 0x7F800000;
  const Words finite = select<Words>(magnitude < 0x400, small, normal);
  return bit_cast<Floats>(select<Words>(magnitude >= 0x7C00, special, finite) | (half & 0x8000) << 16);
#endif
}

inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_vector<__m128i>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#elif defined(__x86_64__)
  const __m128i bytes = _mm_loadu_si32(from), pairs = _mm_unpacklo_epi8(bytes, bytes);
  return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
#else
  return __builtin_convertvector(load_vector<Bytes>(from), Floats);
#endif
}

// Rounded once, to the nearest, ties to even; NaN stays NaN.
inline void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }

inline void store(BFloat16* to, Floats value) {
  const Words bits = bit_cast<Words>(value);
  const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Words kept = select<Words>(value == value, rounded, Words{} + 0x7FC0);
  const Halves halves = __builtin_convertvector(kept, Halves);
  __builtin_memcpy(to, &halves, sizeof halves);
}

inline void store(Float16* to, Floats value) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  const __m128i halves = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Words bits = bit_cast<Words>(value);
  const Words magnitude = bits & 0x7FFFFFFF;
  const Words normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 rounds to multiples of 2^-24, the smallest half.
  const Words small = bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - 0x3F000000;
  Words half = select<Words>(magnitude < 0x38800000, small, normal);
  half = select<Words>(magnitude >= 0x47800000, Words{} + 0x7C00, half);
  half = select<Words>(magnitude > 0x7F800000, Words{} + 0x7E00, half);
  const Halves halves = __builtin_convertvector(half | ((bits >> 16) & 0x8000), Halves);
#endif
  __builtin_memcpy(to, &halves, sizeof halves);
}

// The first `count` of `size` elements, zeros beyond: for the end of a row. Nothing beyond them is touched in memory.
template <int64_t size, class T>
struct Beginning {
  T elements[size] = {};
  Beginning(const T* from, int64_t count) {
    __builtin_memcpy(elements, from, static_cast<size_t>(count) * sizeof(T));
  }
};

template <class T>
inline Floats load_some(const T* from, int64_t count) {
  return load(Beginning<lanes, T>(from, count).elements);
}

template <class T>
inline void store_some(T* to, Floats value, int64_t count) {
  T all[lanes];
  store(all, value);
  __builtin_memcpy(to, all, static_cast<size_t>(count) * sizeof(T));
}

// The sum of all lanes.
inline float sum(Floats value) {
  for (int half = lanes / 2; half; half /= 2) value += __builtin_shuffle(value, lane_numbers ^ half);
  return value[0];
}

inline int32_t sum(Ints value) {
  for (int half = lanes / 2; half; half /= 2) value += __builtin_shuffle(value, lane_numbers ^ half);
  return value[0];
}

// The sums of all lanes of four vectors.
typedef int32_t FourInts __attribute__((vector_size(16)));

inline FourInts sums(Words a, Words b, Words c, Words d) {
#if defined(__AVX512F__)
  const auto pair = [](Words x, Words y) {
    const __m512i p = bit_cast<__m512i>(x), q = bit_cast<__m512i>(y);
    return _mm512_add_epi32(_mm512_unpacklo_epi32(p, q), _mm512_unpackhi_epi32(p, q));
  };
  const __m512i ab = pair(a, b), cd = pair(c, d);
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return bit_cast<FourInts>(_mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#elif defined(__AVX2__)
  const __m256i ab = _mm256_hadd_epi32(bit_cast<__m256i>(a), bit_cast<__m256i>(b));
  const __m256i cd = _mm256_hadd_epi32(bit_cast<__m256i>(c), bit_cast<__m256i>(d));
  const __m256i all = _mm256_hadd_epi32(ab, cd);
  return bit_cast<FourInts>(_mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
  const auto low = [](Words x, Words y) { return __builtin_shuffle(x, y, Ints{0, 4, 1, 5}); };
  const auto high = [](Words x, Words y) { return __builtin_shuffle(x, y, Ints{2, 6, 3, 7}); };
  const Words ac = low(a, c) + high(a, c), bd = low(b, d) + high(b, d);
  return bit_cast<FourInts>(low(ac, bd) + high(ac, bd));
#endif
}

// Stored rows are fetched so many int32 ahead of their use: 17.9 MB of masks are searched twice as fast as without.
constexpr int64_t ahead = 2048;

// Call `function` with a value of the element type that `type` names: float, BFloat16, Float16 or int8_t.
template <class Function>
inline void with_element(Type type, Function&& function) {
  switch (type) {
    case Type::float32: return function(float{});
    case Type::bfloat16: return function(BFloat16{});
    case Type::float16: return function(Float16{});
    case Type::int8: return function(int8_t{});
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
