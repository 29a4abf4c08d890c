// y += a product of the tokens' features, zero outside their masks, and the rows of memory under any of the masks.
//
// A zero times an infinite or undefined entry of memory would reach tokens that do not read it. Such sums are the only
// ones that are not finite: they are made again by AVX-512, which reads no row that the mask leaves out.
#include "groups.h"

namespace corrigenda::amx {
namespace {

// Columns in work at once. Long rows stream better: 8 tokens of 8 masks take 8.7 ms with 1024, 10.3 with 512. But 256
// tokens' sums of 1024 columns leave the second cache: 31.7 ms, and 29.1 with 512.
constexpr int64_t most_columns = 1024;
inline int64_t columns_at_once(int64_t tokens) { return tokens <= 128 ? most_columns : 512; }

// The features of the tokens under their masks, of the union's rows only, as left tiles: [tokens / 16, depth].
void take_features(const MaskedLinear& op, const int32_t* any, int64_t depth, BFloat16* line, BFloat16* features) {
  for (int64_t t = 0; t < pieces(op.routes.count, tile_rows) * tile_rows; ++t) {
    BFloat16* end = line;
    if (t < op.routes.count) {
      const int32_t* mask = op.masks + op.routes.entries[t] * op.words;
      const BFloat16* x = static_cast<const BFloat16*>(op.x) + op.routes.tokens[t] * op.x_row;
      for (int64_t w = 0; w < op.words; ++w) {
        const __m512i entries = _mm512_maskz_loadu_epi16(static_cast<uint32_t>(mask[w]), x + 32 * w);
        _mm512_storeu_si512(end, _mm512_maskz_compress_epi16(static_cast<uint32_t>(any[w]), entries));
        end += __builtin_popcount(static_cast<uint32_t>(any[w]));
      }
    }
    std::memset(static_cast<void*>(end), 0, static_cast<size_t>(line + depth * tile_depth - end) * sizeof(BFloat16));
    BFloat16* to = features + (t / tile_rows * depth * tile_rows + t % tile_rows) * tile_depth;
    for (int64_t k = 0; k < depth; ++k)
      _mm512_store_si512(to + k * tile_size, _mm512_loadu_si512(line + k * tile_depth));
  }
}

// y += sums in columns [from, from + width) of one token.
void add_token(const MaskedLinear& op, int64_t token, int64_t from, int64_t width, const float* sums) {
  float ordered[most_columns];
  Ints odd = {};
  for (int64_t j = 0; j < width; j += panel) {
    const Pair pair = in_order(sums + j / panel * 2 * sums_size);
    odd |= not_finite(pair.a) | not_finite(pair.b);
    store(ordered + j, pair.a), store(ordered + j + lanes, pair.b);
  }
  MaskedLinear exact = op;
  exact.memory = static_cast<const BFloat16*>(op.memory) + from;
  exact.outputs = exact.block = width;
  exact.routes = part(op.routes, token, 1);
  with_float(op.y_type, [&](auto element) {
    auto* y = static_cast<decltype(element)*>(op.y) + from * op.y_column;
    exact.y = y;
    if (sum(odd)) avx512::table.masked_linear(exact, 0, 1);
    else add_rounded(y + op.routes.tokens[token] * op.y_row, op.y_column, ordered, width);
  });
}

// Columns [from, to) of y, of one group's tokens.
void add_group(const MaskedLinear& op, const int32_t* any, int64_t from, int64_t to) {
  static thread_local Buffer<const BFloat16*> rows_memory;
  static thread_local Buffer<BFloat16> line_memory, features_memory, panels_memory;
  static thread_local Buffer<float> sums_memory;
  const int64_t tokens = pieces(op.routes.count, tile_rows), columns = columns_at_once(op.routes.count);
  const BFloat16** rows = rows_memory.reserve(op.words * 32 + rows_ahead);
  const int64_t depth = pieces(take_rows(op, any, 0, op.width, tile_depth, rows), tile_depth);
  BFloat16* features = features_memory.reserve(tokens * depth * tile_size);
  take_features(op, any, depth, line_memory.reserve((op.words + 1) * 32), features);
  BFloat16* panels = panels_memory.reserve(depth_at_once * tile_depth * columns);
  float* sums = sums_memory.reserve(tokens * tile_rows * columns);
  Registers registers;
  for (int64_t left = from; left < to; left += columns) {
    const int64_t width = left + columns < to ? columns : to - left, count = pieces(width, panel);
    const int64_t below = count * 2 * sums_size;
    for (int64_t k = 0; k < depth; k += depth_at_once) {
      const int64_t deep = k + depth_at_once < depth ? depth_at_once : depth - k;
      take_panels(rows + k * tile_depth, deep, left, width, panels);
      for (int64_t p = 0; p < count; ++p)
        multiply_rows(tokens, features + k * tile_size, depth * tile_size, panels + p * 2 * deep * tile_size, deep,
                      k == 0, sums + p * 2 * sums_size, below);
    }
    for (int64_t t = 0; t < op.routes.count; ++t)
      add_token(op, t, left, width, sums + t / tile_rows * below + t % tile_rows * tile_rows);
  }
}

}  // namespace

void masked_linear(const MaskedLinear& op, int64_t begin, int64_t end) {
  if (!fits_tiles(op)) return avx512::table.masked_linear(op, begin, end);
  static thread_local Buffer<int32_t> any_memory;
  int32_t* any = any_memory.reserve(op.words);
  for_each_group(op.routes, [&](int64_t first, int64_t size) {
    MaskedLinear group = op;
    group.routes = part(op.routes, first, size);
    take_union(op, group.routes, any);
    if (tiles_pay(op, group.routes, any))
      add_group(group, any, begin * op.block, end * op.block < op.outputs ? end * op.block : op.outputs);
    else
      avx512::table.masked_linear(group, begin, end);
  });
}

}  // namespace corrigenda::amx
