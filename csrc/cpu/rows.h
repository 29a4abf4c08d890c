// Sums of scattered rows, and dot products with them: what masked_linear and associative_read spend their time on.
//
// Float32 operands beside the rows are kept in the rows' own lane order. Two vectors of bfloat16 come out of one load by
// a shift and a mask, even entries then odd ones, which halves the work of widening them in order; such a buffer is
// reordered once (`arrange`, `restore`) and used with many rows. It is padded with zeros to whole steps.
#pragma once

#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

constexpr int64_t step = 2 * lanes;  // entries that one load_pair takes

inline int64_t padded(int64_t count) { return (count + step - 1) / step * step; }

struct Pair {
  Floats a, b;
};

template <class T>
inline Pair load_pair(const T* from) {
  return {load(from), load(from + lanes)};
}

template <>
inline Pair load_pair(const BFloat16* from) {
  const Words words = load_vector<Words>(from);
  return {bit_cast<Floats>(words << 16), bit_cast<Floats>(words & 0xFFFF0000)};
}

// The first `count` < step entries, zeros beyond.
template <class T>
inline Pair load_pair_some(const T* from, int64_t count) {
  T all[step] = {};
  __builtin_memcpy(all, from, static_cast<size_t>(count) * sizeof(T));
  return load_pair(all);
}

// In place, entries in order -> the lane order of rows of T, and back; `count` is a multiple of `step`.
template <class T>
inline void arrange(float*, int64_t) {}
template <class T>
inline void restore(float*, int64_t) {}

template <>
inline void arrange<BFloat16>(float* values, int64_t count) {
  for (int64_t j = 0; j < count; j += step) {
    float even[lanes], odd[lanes];
    for (int i = 0; i < lanes; ++i) even[i] = values[j + 2 * i], odd[i] = values[j + 2 * i + 1];
    __builtin_memcpy(values + j, even, sizeof even);
    __builtin_memcpy(values + j + lanes, odd, sizeof odd);
  }
}

template <>
inline void restore<BFloat16>(float* values, int64_t count) {
  for (int64_t j = 0; j < count; j += step) {
    float ordered[step];
    for (int i = 0; i < lanes; ++i) ordered[2 * i] = values[j + i], ordered[2 * i + 1] = values[j + lanes + i];
    __builtin_memcpy(values + j, ordered, sizeof ordered);
  }
}

// One element of a row of any type and stride, as float32.
template <class T>
inline float load_one(const T* from) {
  return load_some(from, 1)[0];
}
template <>
inline float load_one(const float* from) {
  return *from;
}
template <>
inline float load_one(const BFloat16* from) {
  return bit_cast<float>(static_cast<uint32_t>(from->bits) << 16);
}

// A row of any type and stride in order, as float32, zeros up to `end`.
template <class T>
inline void widen(const T* from, int64_t stride, int64_t count, float* to, int64_t end) {
  int64_t j = 0;
  if (stride == 1)
    for (; j + lanes <= count; j += lanes) store(to + j, load(from + j));
  for (; j < count; ++j) to[j] = load_one(from + j * stride);
  for (; j < end; ++j) to[j] = 0;
}

// to[j] = to[j] + values[j], rounded once.
template <class T>
inline void add_rounded(T* to, int64_t stride, const float* values, int64_t count) {
  int64_t j = 0;
  if (stride == 1)
    for (; j + lanes <= count; j += lanes) store(to + j, load(to + j) + load(values + j));
  for (; j < count; ++j) store_some(to + j * stride, load_some(to + j * stride, 1) + values[j], 1);
}

// to[j] = values[j], rounded.
template <class T>
inline void round_to(T* to, const float* values, int64_t count) {
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) store(to + j, load(values + j));
  if (j < count) store_some(to + j, load_some(values + j, count - j), count - j);
}

// sums[t][j] += sum over r of weights[r][t] rows[r][j], for `targets` sums and `count` rows.
template <int targets, int count, class T>
inline void accumulate_tile(float* const* sums, const T* const* rows, const float* weights, int64_t width) {
  Floats weight[count][targets];
  for (int r = 0; r < count; ++r)
    for (int t = 0; t < targets; ++t) weight[r][t] = floats(weights[r * targets + t]);
  const auto add = [&](int64_t j, auto&& load_row) {
    Floats a[targets], b[targets];
    for (int t = 0; t < targets; ++t) a[t] = load(sums[t] + j), b[t] = load(sums[t] + j + lanes);
    for (int r = 0; r < count; ++r) {
      const Pair row = load_row(rows[r] + j);
      for (int t = 0; t < targets; ++t) a[t] = weight[r][t] * row.a + a[t], b[t] = weight[r][t] * row.b + b[t];
    }
    for (int t = 0; t < targets; ++t) store(sums[t] + j, a[t]), store(sums[t] + j + lanes, b[t]);
  };
  int64_t j = 0;
  for (; j + step <= width; j += step) add(j, [](const T* from) { return load_pair(from); });
  if (j < width) add(j, [&](const T* from) { return load_pair_some(from, width - j); });
}

template <int targets, class T>
inline void accumulate(float* const* sums, const T* const* rows, const float* weights, int64_t count, int64_t width) {
  constexpr int tile = targets == 1 ? 8 : 4;
  int64_t r = 0;
  for (; r + tile <= count; r += tile)
    accumulate_tile<targets, tile>(sums, rows + r, weights + r * targets, width);
  if (tile == 8 && r + 4 <= count) {
    accumulate_tile<targets, 4>(sums, rows + r, weights + r * targets, width);
    r += 4;
  }
  if (r + 2 <= count) {
    accumulate_tile<targets, 2>(sums, rows + r, weights + r * targets, width);
    r += 2;
  }
  if (r < count) accumulate_tile<targets, 1>(sums, rows + r, weights + r * targets, width);
}

// dots[r][t] = rows[r] . vectors[t], for `targets` vectors `stride` apart and `count` rows.
template <int targets, int count, class T>
inline void dot_tile(const float* vectors, int64_t stride, const T* const* rows, int64_t width, float* dots) {
  Floats sums[count][targets] = {};
  const auto add = [&](int64_t j, auto&& load_row) {
    Pair row[count];
    for (int r = 0; r < count; ++r) row[r] = load_row(rows[r] + j);
    for (int t = 0; t < targets; ++t) {
      const Floats a = load(vectors + t * stride + j), b = load(vectors + t * stride + j + lanes);
      for (int r = 0; r < count; ++r) sums[r][t] = row[r].b * b + (row[r].a * a + sums[r][t]);
    }
  };
  int64_t j = 0;
  for (; j + step <= width; j += step) add(j, [](const T* from) { return load_pair(from); });
  if (j < width) add(j, [&](const T* from) { return load_pair_some(from, width - j); });
  for (int r = 0; r < count; ++r)
    for (int t = 0; t < targets; ++t) dots[r * targets + t] = sum(sums[r][t]);
}

template <int targets, class T>
inline void dot(const float* vectors, int64_t stride, const T* const* rows, int64_t count, int64_t width,
                float* dots) {
  int64_t r = 0;
  if constexpr (targets == 1)
    for (; r + 8 <= count; r += 8) dot_tile<targets, 8>(vectors, stride, rows + r, width, dots + r * targets);
  for (; r + 4 <= count; r += 4) dot_tile<targets, 4>(vectors, stride, rows + r, width, dots + r * targets);
  if (r + 2 <= count) {
    dot_tile<targets, 2>(vectors, stride, rows + r, width, dots + r * targets);
    r += 2;
  }
  if (r < count) dot_tile<targets, 1>(vectors, stride, rows + r, width, dots + r * targets);
}

// Call `function` with a value of the float type that `type` names.
template <class Function>
inline void with_float(Type type, Function&& function) {
  switch (type) {
    case Type::bfloat16: return function(BFloat16{});
    case Type::float16: return function(Float16{});
    default: return function(float{});
  }
}

// Call `function(begin, size)` for runs of 4, then 2, then 1 items of [0, count); `size` is a compile-time constant.
template <int value>
struct Constant {
  static constexpr int size = value;
};

template <class Function>
inline void in_tiles(int64_t count, Function&& function) {
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) function(t, Constant<4>{});
  if (t + 2 <= count) function(t, Constant<2>{}), t += 2;
  if (t < count) function(t, Constant<1>{});
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
