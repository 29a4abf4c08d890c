// What associative_read and its gradients share: an edit's rows, a token's direction, the softmax over its scores.
#pragma once

#include <cmath>
#include <type_traits>

#include "buffer.h"
#include "rows.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

constexpr int64_t page_rows = 8;

// Row r of an edit, as a row of the flattened banks.
inline int64_t slot_of(const ReadBank& bank, int64_t edit, int64_t r) {
  return bank.pages[edit * bank.max_pages + r / page_rows] * page_rows + r % page_rows;
}

template <class T>
inline const T* row_of(const void* rows, int64_t slot, int64_t width) {
  return static_cast<const T*>(rows) + slot * width;
}

// The background in the lane order of the keys.
template <class Key>
inline void take_background(const ReadBank& bank, float* background) {
  widen(bank.background, 1, bank.width, background, padded(bank.width));
  arrange<Key>(background, padded(bank.width));
}

// centred = x - background in the lane order of the keys; returns its length, at least 1e-6.
template <class Key>
[[gnu::noinline]] float centre(const ReadBank& bank, int64_t token, const float* background, float* centred) {
  Floats sums[2] = {};
  const auto subtract = [&](int64_t j, Pair x) {
    const Floats a = x.a - load(background + j), b = x.b - load(background + j + lanes);
    store(centred + j, a), store(centred + j + lanes, b);
    sums[0] = a * a + sums[0], sums[1] = b * b + sums[1];
  };
  with_float(bank.x_type, [&](auto element) {
    using Feature = decltype(element);
    const auto* x = static_cast<const Feature*>(bank.x) + token * bank.x_row;
    // A load of a pair leaves the entries in the lane order of the keys if both are bfloat16 or neither is.
    if (bank.x_column == 1 && std::is_same_v<Feature, BFloat16> == std::is_same_v<Key, BFloat16>) {
      int64_t j = 0;
      for (; j + step <= bank.width; j += step) subtract(j, load_pair(x + j));
      if (j < bank.width) subtract(j, load_pair_some(x + j, bank.width - j));
    } else {
      widen(x, bank.x_column, bank.width, centred, padded(bank.width));
      arrange<Key>(centred, padded(bank.width));
      for (int64_t j = 0; j < bank.width; j += step) subtract(j, {load(centred + j), load(centred + j + lanes)});
    }
  });
  const float length = std::sqrt(sum(sums[0] + sums[1]));
  return length < 1e-6f ? 1e-6f : length;
}

// In place, for one of `targets` tokens: its dot products -> its shares of the rows.
template <int targets>
void softmax(float* dots, int64_t rows, float factor) {
  float largest = dots[0] * factor, total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    dots[r * targets] *= factor;
    if (dots[r * targets] > largest) largest = dots[r * targets];
  }
  for (int64_t r = 0; r < rows; ++r) total += dots[r * targets] = std::exp(dots[r * targets] - largest);
  for (int64_t r = 0; r < rows; ++r) dots[r * targets] /= total;
}

// The most rows that an edit of these tiles has.
inline int64_t most_rows(const ReadBank& bank, const ReadTile* tiles, int64_t begin, int64_t end) {
  int64_t most = 0;
  for (int64_t i = begin; i < end; ++i)
    if (bank.rows[tiles[i].edit] > most) most = bank.rows[tiles[i].edit];
  return most;
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
