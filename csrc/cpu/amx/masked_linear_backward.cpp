// The gradients of masked_linear. dx: rows of memory by the tokens' gradients; a token takes what its mask has.
// dmemory: the tokens' features under their masks, transposed, by their gradients. A zero beside an infinite gradient
// spoils sums; AVX-512 makes those words again.
#include "groups.h"

namespace corrigenda::amx {
namespace {

// Columns of memory or of dmemory in work at once, so that the tokens' gradients there take at most 512 KB, a quarter
// of the second cache. Rows of 8 KB stream best whole: dx of 8 tokens takes 9.5 ms so, 16 with 1024 columns.
constexpr int64_t most_columns = 4096;

// Mask words whose 32 rows of dmemory each are in work at once, for which the gradients are read again from wherever
// they lie: those of 256 tokens take 2 MB, all of the second cache.
constexpr int64_t words_at_once = 4;

inline int64_t columns_at_once(int64_t tokens) {
  const int64_t fitting = 262144 / (pieces(tokens, panel) * panel) / panel * panel;
  return fitting > most_columns ? most_columns : fitting > panel ? fitting : panel;
}

inline bool fits_tiles(const MaskedLinearBackward& op) {
  return amx::fits_tiles(static_cast<const MaskedMemory&>(op)) && op.grad_type == Type::bfloat16 &&
         (op.grad_column == 1 || op.outputs == 1);
}

// The gradients of routed tokens, then the first again up to whole tiles, and some to be fetched ahead.
const BFloat16** take_gradients(const MaskedLinearBackward& op) {
  static thread_local Buffer<const BFloat16*> memory;
  const int64_t count = pieces(op.routes.count, tile_depth) * tile_depth + rows_ahead;
  const BFloat16** rows = memory.reserve(count);
  for (int64_t t = 0; t < count; ++t)
    rows[t] = static_cast<const BFloat16*>(op.grad) + op.routes.tokens[t < op.routes.count ? t : 0] * op.grad_row;
  return rows;
}

// 16 rows, columns [from, from + width) of them as left tiles; columns beyond are zero. The 16 after them are fetched.
void take_tiles(const BFloat16* const* rows, int64_t from, int64_t width, BFloat16* to) {
  for (int64_t r = 0; r < tile_rows; r += 4)
    for (int64_t j = 0; j < width; j += tile_depth)
      for (int64_t i = r; i < r + 4; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(rows[i + tile_rows] + from + j), _MM_HINT_T1);
        _mm512_store_si512(to + j / tile_depth * tile_size + i * tile_depth,
                           _mm512_maskz_loadu_epi16(first(width - j), rows[i] + from + j));
      }
}

// The gradients as panels whose columns are tokens, in order: [tokens / 32, depth].
void take_token_panels(const MaskedLinearBackward& op, const BFloat16* const* rows, int64_t depth, BFloat16* tiles,
                       BFloat16* panels) {
  for (int64_t t = 0; t < op.routes.count; t += tile_rows) {
    take_tiles(rows + t, 0, op.outputs, tiles);
    BFloat16* to = panels + (t / panel * depth * 2 + t % panel / tile_rows) * tile_size;
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t r = 0; r < tile_rows; ++r)
        _mm512_store_si512(to + 2 * k * tile_size + r * tile_depth, transposed(tiles + k * tile_size, r));
  }
}

// dx of one token in the rows [top, bottom) of memory, of its products with the rows of the union.
void write_dx(const MaskedLinearBackward& op, const int32_t* any, int64_t token, int64_t top, int64_t bottom,
              const float* products) {
  const int32_t* mask = op.masks + op.routes.entries[token] * op.words;
  auto* dx = static_cast<BFloat16*>(op.dx) + op.routes.tokens[token] * op.width;
  for (int64_t i = top; i < bottom; i += 32) {
    const uint32_t all = static_cast<uint32_t>(any[i / 32]), own = static_cast<uint32_t>(mask[i / 32]);
    const __m512 low = _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(all), products);
    products += __builtin_popcount(all & 0xFFFF);
    const __m512 high = _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(all >> 16), products);
    products += __builtin_popcount(all >> 16);
    _mm512_mask_storeu_epi16(dx + i, first(bottom - i), _mm512_maskz_mov_epi16(own, rounded({low, high})));
  }
}

// dx of one group's tokens in the rows [top, bottom) of memory; `panels` are their gradients.
void dx_of_block(const MaskedLinearBackward& op, const int32_t* any, int64_t top, int64_t bottom,
                 const BFloat16* panels, BFloat16* tiles, float* sums, float* products) {
  const BFloat16* rows[mask_rows + panel + rows_ahead];
  const int64_t count = take_rows(op, any, top, bottom, panel, rows), high = pieces(count, tile_rows);
  const int64_t token_panels = pieces(op.routes.count, panel), depth = pieces(op.outputs, tile_depth);
  const int64_t below = token_panels * 2 * sums_size;
  const int64_t columns = columns_at_once(op.routes.count);
  for (int64_t from = 0; from < op.outputs; from += columns) {
    const int64_t width = from + columns < op.outputs ? columns : op.outputs - from;
    const int64_t deep = pieces(width, tile_depth);
    for (int64_t r = 0; r < high; r += 2) {
      const int64_t two = r + 1 < high ? 2 : 1;
      for (int64_t i = 0; i < two; ++i)
        take_tiles(rows + (r + i) * tile_rows, from, width, tiles + i * deep * tile_size);
      for (int64_t k = 0; k < deep; k += depth_at_once)
        for (int64_t p = 0; p < token_panels; ++p)
          multiply_rows(two, tiles + k * tile_size, deep * tile_size,
                        panels + (p * depth + from / tile_depth + k) * 2 * tile_size,
                        k + depth_at_once < deep ? depth_at_once : deep - k, from + k == 0,
                        sums + r * below + p * 2 * sums_size, below);
    }
  }
  for (int64_t t = 0; t < op.routes.count; t += tile_rows) {
    const int64_t size = t + tile_rows < op.routes.count ? tile_rows : op.routes.count - t;
    for (int64_t r = 0; r < high; ++r)
      for (int64_t k = 0; k < size; ++k)
        _mm512_store_si512(products + k * mask_rows + r * tile_rows,
                           transposed(sums + r * below + t / tile_rows * sums_size, k));
    for (int64_t k = 0; k < size; ++k) write_dx(op, any, t + k, top, bottom, products + k * mask_rows);
  }
}

// The features of routed tokens under their masks in one word of rows, as two rows of left tiles `depth` deep.
void take_transposed(const MaskedLinearBackward& op, int64_t word, int64_t depth, BFloat16* tiles) {
  alignas(64) BFloat16 right[2 * tile_size];
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t t = 0; t < tile_depth; t += 2) {
      __m512i pair[2] = {};
      for (int64_t i = 0; i < 2; ++i)
        if (const int64_t token = k * tile_depth + t + i; token < op.routes.count)
          pair[i] = _mm512_maskz_loadu_epi16(
              static_cast<uint32_t>(op.masks[op.routes.entries[token] * op.words + word]),
              static_cast<const BFloat16*>(op.x) + op.routes.tokens[token] * op.x_row + word * 32);
      _mm512_store_si512(right + t / 2 * panel, _mm512_unpacklo_epi16(pair[0], pair[1]));
      _mm512_store_si512(right + tile_size + t / 2 * panel, _mm512_unpackhi_epi16(pair[0], pair[1]));
    }
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t r = 0; r < tile_rows; ++r)
        _mm512_store_si512(tiles + (i * depth + k) * tile_size + r * tile_depth, transposed(right + i * tile_size, r));
  }
}

// Rows of dmemory of one word, columns [from, from + width). False if one is not finite.
bool write_dmemory(const MaskedLinearBackward& op, int64_t word, int64_t from, int64_t width, const float* sums) {
  const int64_t below = pieces(width, panel) * 2 * sums_size;
  const __m512i infinite = _mm512_set1_epi16(0x7F80);
  __mmask32 odd = 0;
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t r = 0; r < tile_rows; ++r) {
      const int64_t row = word * 32 + row_in_order(r) + 4 * i;
      if (row >= op.width) continue;
      auto* to = static_cast<BFloat16*>(op.dmemory) + row * op.outputs + from;
      for (int64_t j = 0; j < width; j += panel) {
        const __m512i line = rounded(in_order(sums + i * below + j / panel * 2 * sums_size + r * tile_rows));
        odd |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(line, infinite), infinite);
        _mm512_mask_storeu_epi16(to + j, first(width - j), line);
      }
    }
  return !odd;
}

}  // namespace

void masked_linear_dx(const MaskedLinearBackward& op, int64_t begin, int64_t end) {
  if (!fits_tiles(op)) return avx512::table.masked_linear_dx(op, begin, end);
  static thread_local Buffer<int32_t> any_memory;
  static thread_local Buffer<BFloat16> panels_memory, tiles_memory;
  static thread_local Buffer<float> sums_memory, products_memory;
  int32_t* any = any_memory.reserve(op.words);
  for_each_group(op.routes, [&](int64_t first, int64_t size) {
    MaskedLinearBackward group = op;
    group.routes = part(op.routes, first, size);
    group.upstream = op.upstream + first * op.stride;
    take_union(op, group.routes, any);
    if (!tiles_pay(op, group.routes, any)) return avx512::table.masked_linear_dx(group, begin, end);
    const int64_t depth = pieces(op.outputs, tile_depth), token_panels = pieces(size, panel);
    BFloat16* panels = panels_memory.reserve(token_panels * depth * 2 * tile_size);
    BFloat16* tiles = tiles_memory.reserve(2 * depth * tile_size);
    float* sums = sums_memory.reserve(mask_rows / tile_rows * token_panels * 2 * sums_size);
    float* products = products_memory.reserve(tile_rows * mask_rows);
    take_token_panels(group, take_gradients(group), depth, tiles, panels);
    Registers registers;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t top = item * mask_rows, bottom = top + mask_rows < op.width ? top + mask_rows : op.width;
      dx_of_block(group, any, top, bottom, panels, tiles, sums, products);
    }
  });
}

void masked_linear_dmemory(const MaskedLinearBackward& op, int64_t begin, int64_t end) {
  static thread_local Buffer<int32_t> any_memory;
  int32_t* any = any_memory.reserve(op.words);
  if (fits_tiles(op)) take_union(op, op.routes, any);
  if (!fits_tiles(op) || !tiles_pay(op, op.routes, any)) return avx512::table.masked_linear_dmemory(op, begin, end);
  static thread_local Buffer<BFloat16> panels_memory, tiles_memory;
  static thread_local Buffer<float> sums_memory;
  const int64_t depth = pieces(op.routes.count, tile_depth), columns = columns_at_once(op.routes.count);
  BFloat16* panels = panels_memory.reserve(depth * pieces(op.outputs, panel) * 2 * tile_size);
  BFloat16* tiles = tiles_memory.reserve(words_at_once * depth * 2 * tile_size);
  float* sums = sums_memory.reserve(2 * tile_rows * columns);
  take_panels(take_gradients(op), depth, 0, op.outputs, panels);
  Registers registers;
  for (; begin < end; begin += words_at_once) {
    const int64_t words = begin + words_at_once < end ? words_at_once : end - begin;
    for (int64_t w = 0; w < words; ++w) take_transposed(op, begin + w, depth, tiles + w * depth * 2 * tile_size);
    bool odd[words_at_once] = {};
    for (int64_t from = 0; from < op.outputs; from += columns) {
      const int64_t width = from + columns < op.outputs ? columns : op.outputs - from, count = pieces(width, panel);
      for (int64_t w = 0; w < words; ++w) {
        for (int64_t p = 0; p < count; ++p)
          multiply<true>(tiles + w * depth * 2 * tile_size, depth * tile_size,
                         panels + (from / panel + p) * depth * 2 * tile_size, depth, true, sums + p * 2 * sums_size,
                         count * 2 * sums_size);
        if (!write_dmemory(op, begin + w, from, width, sums)) odd[w] = true;
      }
    }
    for (int64_t w = 0; w < words; ++w)
      if (odd[w]) avx512::table.masked_linear_dmemory(op, begin + w, begin + w + 1);
  }
}

}  // namespace corrigenda::amx
