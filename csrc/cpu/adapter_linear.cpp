// A tile of tokens passes over its adapter's rows of `down` once, then over those of `up` once.
#include "buffer.h"
#include "rows.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// inner = x down^T of the tile's tokens: [rank, size].
template <class Factor, int size>
void take_inner(const AdapterLinear& op, const AdapterTile& tile, const void** rows, float* features, float* inner) {
  const auto* down = static_cast<const Factor*>(op.down) + tile.block * op.rank * op.width;
  const Factor** factors = reinterpret_cast<const Factor**>(rows);
  const int64_t stride = padded(op.width);
  for (int k = 0; k < size; ++k) {
    float* feature = features + k * stride;
    with_float(op.x_type, [&](auto element) {
      const auto* x = static_cast<const decltype(element)*>(op.x) + op.tokens[tile.begin + k] * op.x_row;
      widen(x, op.x_column, op.width, feature, stride);
    });
    arrange<Factor>(feature, stride);
  }
  for (int64_t r = 0; r < op.rank; ++r) factors[r] = down + r * op.width;
  dot<size>(features, stride, factors, op.rank, op.width, inner);
}

// y += inner^T up.
template <class Factor, int size>
void add_outer(const AdapterLinear& op, const AdapterTile& tile, const void** rows, const float* inner, float* sums) {
  const auto* up = static_cast<const Factor*>(op.up) + tile.block * op.rank * op.outputs;
  const Factor** factors = reinterpret_cast<const Factor**>(rows);
  for (int64_t r = 0; r < op.rank; ++r) factors[r] = up + r * op.outputs;
  add_weighted<size>(op, op.tokens + tile.begin, factors, inner, op.rank, op.outputs, sums);
}

}  // namespace

void adapter_linear(const AdapterLinear& op, int64_t begin, int64_t end) {
  static thread_local Buffer<const void*> rows_memory;
  const void** rows = rows_memory.reserve(op.rank);
  static thread_local Buffer<float> features_memory, inner_memory, sums_memory;
  float* features = features_memory.reserve(4 * padded(op.width));
  float* inner = inner_memory.reserve(4 * op.rank);
  float* sums = sums_memory.reserve(4 * sum_block);
  for (int64_t item = begin; item < end; ++item) {
    in_tiles<4>(op.tiles[item].size, [&](int64_t t, auto size) {
      const AdapterTile part = {op.tiles[item].block, static_cast<int32_t>(op.tiles[item].begin + t), size.size};
      with_float(op.factor_type, [&](auto factor) {
        take_inner<decltype(factor), size.size>(op, part, rows, features, inner);
        add_outer<decltype(factor), size.size>(op, part, rows, inner, sums);
      });
    });
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
