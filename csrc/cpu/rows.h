// Sums of scattered rows, and dot products with them: what masked_linear and associative_read spend their time on.
//
// Float32 operands beside the rows are kept in the rows' own lane order. Two vectors of bfloat16 come of one load by
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
  return load_pair(Beginning<step, T>(from, count).elements);
}

// In place, entries in order -> the lane order of rows of T, and back; `count` is a multiple of `step`.
template <class T>
inline void arrange(float*, int64_t) {}
template <class T>
inline void restore(float*, int64_t) {}

template <>
[[gnu::noinline]] inline void arrange<BFloat16>(float* values, int64_t count) {
  for (int64_t j = 0; j < count; j += step) {
    float even[lanes], odd[lanes];
    for (int i = 0; i < lanes; ++i) even[i] = values[j + 2 * i], odd[i] = values[j + 2 * i + 1];
    __builtin_memcpy(values + j, even, sizeof even);
    __builtin_memcpy(values + j + lanes, odd, sizeof odd);
  }
}

template <>
[[gnu::noinline]] inline void restore<BFloat16>(float* values, int64_t count) {
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
[[gnu::noinline]] void widen(const T* from, int64_t stride, int64_t count, float* to, int64_t end) {
  int64_t j = 0;
  if (stride == 1)
    for (; j + lanes <= count; j += lanes) store(to + j, load(from + j));
  for (; j < count; ++j) to[j] = load_one(from + j * stride);
  for (; j < end; ++j) to[j] = 0;
}

// to[j] = to[j] + values[j], rounded once.
template <class T>
[[gnu::noinline]] void add_rounded(T* to, int64_t stride, const float* values, int64_t count) {
  int64_t j = 0;
  if (stride == 1)
    for (; j + lanes <= count; j += lanes) store(to + j, load(to + j) + load(values + j));
  for (; j < count; ++j) store_some(to + j * stride, load_some(to + j * stride, 1) + values[j], 1);
}

// to[j] = values[j], rounded.
template <class T>
[[gnu::noinline]] void round_to(T* to, const float* values, int64_t count) {
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) store(to + j, load(values + j));
  if (j < count) store_some(to + j, load_some(values + j, count - j), count - j);
}

template <int value>
struct Constant {
  static constexpr int size = value;
};

// Call `function(begin, Constant<size>)` for tiles of [0, count): all of `largest`, a power of two, then smaller ones.
template <int largest, class Function>
inline void in_tiles(int64_t count, Function&& function) {
  int64_t begin = 0;
  for (; begin + largest <= count; begin += largest) function(begin, Constant<largest>{});
  if constexpr (largest >= 16)
    if (begin + 8 <= count) function(begin, Constant<8>{}), begin += 8;
  if constexpr (largest >= 8)
    if (begin + 4 <= count) function(begin, Constant<4>{}), begin += 4;
  if constexpr (largest >= 4)
    if (begin + 2 <= count) function(begin, Constant<2>{}), begin += 2;
  if (begin < count) function(begin, Constant<1>{});
}

// Rows that a tile takes beside so many float32 operands, for sums and broadcasts to stay in registers.
template <int operands>
constexpr int rows_beside = operands == 1 ? 8 : 4;

// Call `function` with a value of the float type that `type` names.
template <class Function>
inline void with_float(Type type, Function&& function) {
  switch (type) {
    case Type::bfloat16: return function(BFloat16{});
    case Type::float16: return function(Float16{});
    default: return function(float{});
  }
}

// The functions below stay out of line: inlined into every combination of types they take minutes to compile.

// sums[t][j] += sum over r of weights[r][t] rows[r][j], for `targets` sums, `count` rows, a multiple of `step` entries.
template <int targets, int count, class T>
[[gnu::noinline]] void accumulate_tile(float* const* sums, const T* const* rows, const float* weights, int64_t width) {
  Floats weight[count][targets];
  for (int r = 0; r < count; ++r)
    for (int t = 0; t < targets; ++t) weight[r][t] = floats(weights[r * targets + t]);
  for (int64_t j = 0; j < width; j += step) {
    Floats a[targets], b[targets];
    for (int t = 0; t < targets; ++t) a[t] = load(sums[t] + j), b[t] = load(sums[t] + j + lanes);
    for (int r = 0; r < count; ++r) {
      const Pair row = load_pair(rows[r] + j);
      for (int t = 0; t < targets; ++t) a[t] = weight[r][t] * row.a + a[t], b[t] = weight[r][t] * row.b + b[t];
    }
    for (int t = 0; t < targets; ++t) store(sums[t] + j, a[t]), store(sums[t] + j + lanes, b[t]);
  }
}

// The same for any numbers of rows and entries.
template <int targets, class T>
[[gnu::noinline]] void accumulate(float* const* sums, const T* const* rows, const float* weights, int64_t count,
                                  int64_t width) {
  const int64_t whole = width / step * step;
  if (whole)
    in_tiles<rows_beside<targets>>(count, [&](int64_t r, auto tile) {
      accumulate_tile<targets, tile.size>(sums, rows + r, weights + r * targets, whole);
    });
  if (whole < width)
    for (int64_t r = 0; r < count; ++r) {
      const Pair row = load_pair_some(rows[r] + whole, width - whole);
      for (int t = 0; t < targets; ++t) {
        const Floats weight = floats(weights[r * targets + t]);
        store(sums[t] + whole, weight * row.a + load(sums[t] + whole));
        store(sums[t] + whole + lanes, weight * row.b + load(sums[t] + whole + lanes));
      }
    }
}

// Columns of sums in work at once: with 4 tokens, 32 KB of sums, which the first cache holds.
constexpr int64_t sum_block = 2048;

// y += the rows' weighted sums, for `targets` tokens: weights [count, targets], room for sums [targets, sum_block].
// `rows` point behind their last entries afterwards. Op says where y is: y, y_type, y_row, y_column.
template <int targets, class T, class Op>
void add_weighted(const Op& op, const int32_t* tokens, const T** rows, const float* weights, int64_t count,
                  int64_t width, float* sums) {
  float* blocks[targets];
  for (int t = 0; t < targets; ++t) blocks[t] = sums + t * sum_block;
  for (int64_t left = 0; left < width; left += sum_block) {
    const int64_t columns = left + sum_block < width ? sum_block : width - left;
    std::memset(sums, 0, targets * sum_block * sizeof(float));
    accumulate<targets>(blocks, rows, weights, count, columns);
    for (int64_t r = 0; r < count; ++r) rows[r] += sum_block;
    for (int t = 0; t < targets; ++t) {
      restore<T>(blocks[t], padded(columns));
      with_float(op.y_type, [&](auto element) {
        auto* y = static_cast<decltype(element)*>(op.y) + tokens[t] * op.y_row + left * op.y_column;
        add_rounded(y, op.y_column, blocks[t], columns);
      });
    }
  }
}

// dots[r][t] = rows[r] . vectors[t], for `targets` vectors `stride` apart, `count` rows, a multiple of `step` entries.
template <int targets, int count, class T>
[[gnu::noinline]] void dot_tile(const float* vectors, int64_t stride, const T* const* rows, int64_t width,
                                float* dots) {
  Floats sums[count][targets] = {};
  for (int64_t j = 0; j < width; j += step) {
    Pair row[count];
    for (int r = 0; r < count; ++r) row[r] = load_pair(rows[r] + j);
    for (int t = 0; t < targets; ++t) {
      const Floats a = load(vectors + t * stride + j), b = load(vectors + t * stride + j + lanes);
      for (int r = 0; r < count; ++r) sums[r][t] = row[r].b * b + (row[r].a * a + sums[r][t]);
    }
  }
  for (int r = 0; r < count; ++r)
    for (int t = 0; t < targets; ++t) dots[r * targets + t] = sum(sums[r][t]);
}

// The same for any numbers of rows and entries.
template <int targets, class T>
[[gnu::noinline]] void dot(const float* vectors, int64_t stride, const T* const* rows, int64_t count, int64_t width,
                           float* dots) {
  const int64_t whole = width / step * step;
  in_tiles<rows_beside<targets>>(count, [&](int64_t r, auto tile) {
    dot_tile<targets, tile.size>(vectors, stride, rows + r, whole, dots + r * targets);
  });
  if (whole < width)
    for (int64_t r = 0; r < count; ++r) {
      const Pair row = load_pair_some(rows[r] + whole, width - whole);
      for (int t = 0; t < targets; ++t) {
        const float* vector = vectors + t * stride + whole;
        dots[r * targets + t] += sum(row.a * load(vector) + row.b * load(vector + lanes));
      }
    }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
