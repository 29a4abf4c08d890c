// A tile of tokens passes over its edit's keys once, then over its values once.
#include "reads.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// The shares of the tile's tokens in rows 1 .. of the edit: [rows - 1, size].
template <class Key, int size>
void take_shares(const AssociativeRead& op, const ReadTile& tile, const float* background, float* centred,
                 const void** rows, float* shares) {
  const ReadBank& bank = op.bank;
  const int64_t count = bank.rows[tile.edit] - 1, stride = padded(bank.width);
  const Key** keys = reinterpret_cast<const Key**>(rows);
  float lengths[size];
  for (int k = 0; k < size; ++k)
    lengths[k] = centre<Key>(bank, bank.tokens[tile.begin + k], background, centred + k * stride);
  for (int64_t r = 0; r < count; ++r) keys[r] = row_of<Key>(bank.keys, slot_of(bank, tile.edit, r + 1), bank.width);
  dot<size>(centred, stride, keys, count, bank.width, shares);
  for (int k = 0; k < size; ++k) softmax<size>(shares + k, count, bank.beta / lengths[k]);
}

// y += the values of rows `from` .. of the edit, weighted: [rows - from, size].
template <class Value, int size>
void add_values(const AssociativeRead& op, const ReadTile& tile, int64_t from, int64_t count, const void** rows,
                float* weights, float* sums) {
  const ReadBank& bank = op.bank;
  const Value** values = reinterpret_cast<const Value**>(rows);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t slot = slot_of(bank, tile.edit, from + r);
    values[r] = row_of<Value>(bank.values, slot, bank.outputs);
    if (bank.scales)
      for (int k = 0; k < size; ++k) weights[r * size + k] *= bank.scales[slot];
  }
  add_weighted<size>(op, bank.tokens + tile.begin, values, weights, count, bank.outputs, sums);
}

}  // namespace

void associative_read(const AssociativeRead& op, int64_t begin, int64_t end) {
  const ReadBank& bank = op.bank;
  const int64_t most = most_rows(bank, op.tiles, begin, end), stride = padded(bank.width);
  static thread_local Buffer<const void*> rows_memory;
  const void** rows = rows_memory.reserve(most);
  static thread_local Buffer<float> background_memory, centred_memory, weights_memory, sums_memory;
  float* background = background_memory.reserve(stride);
  float* centred = centred_memory.reserve(4 * stride);
  float* weights = weights_memory.reserve(4 * most);
  float* sums = sums_memory.reserve(4 * sum_block);
  with_float(bank.key_type, [&](auto key) { take_background<decltype(key)>(bank, background); });
  for (int64_t item = begin; item < end; ++item) {
    const ReadTile& tile = op.tiles[item];
    in_tiles<4>(tile.size, [&](int64_t t, auto size) {
      const ReadTile part = {tile.edit, static_cast<int32_t>(tile.begin + t), size.size, tile.opening};
      if (tile.opening)
        for (int k = 0; k < size.size; ++k) weights[k] = 1;
      else
        with_float(bank.key_type, [&](auto key) {
          take_shares<decltype(key), size.size>(op, part, background, centred, rows, weights);
        });
      const int64_t count = tile.opening ? 1 : bank.rows[tile.edit] - 1;
      with_element(bank.value_type, [&](auto value) {
        add_values<decltype(value), size.size>(op, part, !tile.opening, count, rows, weights, sums);
      });
    });
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
