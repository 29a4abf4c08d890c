// Which tokens are multiplied together, and the rows of memory that they share.
#pragma once

#include "../masks.h"
#include "tiles.h"

namespace corrigenda::amx {

// Tokens that pass over memory together. 512 KB of their entries are in work, and as much of sums.
constexpr int64_t most_tokens = 256;

// So many tokens of one mask go alone, over its rows only. Of k = 4,096 in 14,336 rows three masks of 48 tokens take
// 12.4 ms alone and 14.7 together, three of 32 as long either way; eight of 16 take 30 and 20.
constexpr int64_t alone = 32;

// Tiles take bfloat16 with adjacent columns; the rest is left to AVX-512.
inline bool fits_tiles(const MaskedMemory& op) {
  return op.x_type == Type::bfloat16 && op.memory_type == Type::bfloat16 && (op.x_column == 1 || op.width == 1);
}

// Call `function(begin, size)` for groups of routes, in order.
template <class Function>
inline void for_each_group(const Routes& routes, Function&& function) {
  int64_t begin = 0;
  const auto flush = [&](int64_t end) {
    for (; begin < end; begin += most_tokens) function(begin, end - begin < most_tokens ? end - begin : most_tokens);
    begin = end;
  };
  for_each_run(routes, 0, routes.count, [&](int64_t run, int64_t size) {
    if (size >= alone) flush(run), flush(run + size);
  });
  flush(routes.count);
}

inline Routes part(const Routes& routes, int64_t begin, int64_t size) {
  return {routes.tokens + begin, routes.entries + begin, size};
}

// The union of the masks that some routes name.
inline void take_union(const MaskedMemory& op, const Routes& routes, int32_t* any) {
  std::memset(any, 0, static_cast<size_t>(op.words) * sizeof(int32_t));
  for_each_run(routes, 0, routes.count, [&](int64_t run, int64_t) {
    const int32_t* mask = op.masks + routes.entries[run] * op.words;
    for (int64_t w = 0; w < op.words; ++w) any[w] |= mask[w];
  });
}

inline int64_t bits_of(const int32_t* mask, int64_t words) {
  int64_t bits = 0;
  for (int64_t w = 0; w < words; ++w) bits += __builtin_popcount(static_cast<uint32_t>(mask[w]));
  return bits;
}

// AVX-512 passes once over a mask's rows for 4 tokens; passing over the union with tiles takes twice as long.
inline bool tiles_pay(const MaskedMemory& op, const Routes& routes, const int32_t* any) {
  int64_t passes = 0;
  for_each_run(routes, 0, routes.count, [&](int64_t run, int64_t size) {
    passes += pieces(size, 4) * bits_of(op.masks + routes.entries[run] * op.words, op.words);
  });
  return passes && passes >= 2 * bits_of(any, op.words);
}

// Rows of memory of the bits of [from, to), then the first again up to whole `size` rows, and some to be fetched ahead.
// Returns how many there are of the bits.
inline int64_t take_rows(const MaskedMemory& op, const int32_t* any, int64_t from, int64_t to, int64_t size,
                         const BFloat16** rows) {
  int64_t count = 0;
  for_each_bit(any, from, to, [&](int64_t i) {
    rows[count++] = static_cast<const BFloat16*>(op.memory) + i * op.memory_row;
  });
  if (count)
    for (int64_t r = count; r < pieces(count, size) * size + rows_ahead; ++r) rows[r] = rows[0];
  return count;
}

}  // namespace corrigenda::amx
