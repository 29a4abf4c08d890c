// The gradients of associative_read: first tile by tile what every row needs of its tokens, and dx; then page by page
// dkeys and dvalues, each row written once, a row that no token reads as zeros.
#include "reads.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// Columns of a page in work at once: with 4 rows, 32 KB of sums, which the first cache holds.
constexpr int64_t block = 2048;

// dx = (du - u (u . du)) / length, the middle term zero where the length is clamped.
template <class Key>
void finish_dx(const AssociativeReadBackward& op, int64_t token, const float* direction, float length, float* du) {
  const int64_t width = padded(op.bank.width);
  Floats along = {};
  for (int64_t j = 0; j < width; j += lanes) along = load(direction + j) * load(du + j) + along;
  const Floats radial = floats(length > 1e-6f ? sum(along) : 0.0f);
  const Floats scale = floats(1 / length);
  for (int64_t j = 0; j < width; j += lanes) store(du + j, (load(du + j) - load(direction + j) * radial) * scale);
  restore<Key>(du, width);
  with_float(op.bank.x_type, [&](auto element) {
    round_to(static_cast<decltype(element)*>(op.dx) + token * op.bank.width, du, op.bank.width);
  });
}

// Upstream gradients of a tile's tokens in the lane order of the values.
template <class Value>
void take_upstream(const AssociativeReadBackward& op, const ReadTile& tile) {
  for (int32_t t = tile.begin; t < tile.begin + tile.size; ++t) {
    float* upstream = op.upstream + t * op.output_stride;
    with_float(op.grad_type, [&](auto element) {
      const auto* grad = static_cast<const decltype(element)*>(op.grad) + op.bank.tokens[t] * op.grad_row;
      widen(grad, op.grad_column, op.bank.outputs, upstream, op.output_stride);
    });
    arrange<Value>(upstream, op.output_stride);
  }
}

// Gradients of the shares of rows 1 .. : [rows - 1, size].
template <class Value, int size>
void take_dshares(const AssociativeReadBackward& op, const ReadTile& tile, const void** rows, float* dshares) {
  const ReadBank& bank = op.bank;
  const int64_t count = bank.rows[tile.edit] - 1;
  const Value** values = reinterpret_cast<const Value**>(rows);
  for (int64_t r = 0; r < count; ++r)
    values[r] = row_of<Value>(bank.values, slot_of(bank, tile.edit, r + 1), bank.outputs);
  dot<size>(op.upstream + tile.begin * op.output_stride, op.output_stride, values, count, bank.outputs, dshares);
}

// Directions, shares, gradients of scores, and dx of a tile's tokens. `dots` has room for [rows - 1, size].
template <class Key, int size>
void score_tile(const AssociativeReadBackward& op, const ReadTile& tile, const float* background, const void** rows,
                const float* dshares, float* dots, float* du) {
  const ReadBank& bank = op.bank;
  const int64_t count = bank.rows[tile.edit] - 1, stride = op.width_stride, width = padded(bank.width);
  float* directions = op.directions + tile.begin * stride;
  float lengths[size];
  for (int k = 0; k < size; ++k) {
    lengths[k] = centre<Key>(bank, bank.tokens[tile.begin + k], background, directions + k * stride);
    const Floats scale = floats(1 / lengths[k]);
    for (int64_t j = k * stride; j < k * stride + width; j += lanes)
      store(directions + j, load(directions + j) * scale);
  }

  const Key** keys = reinterpret_cast<const Key**>(rows);
  for (int64_t r = 0; r < count; ++r) keys[r] = row_of<Key>(bank.keys, slot_of(bank, tile.edit, r + 1), bank.width);
  dot<size>(directions, stride, keys, count, bank.width, dots);
  for (int k = 0; k < size; ++k) {
    softmax<size>(dots + k, count, bank.beta);
    float mean = 0;
    for (int64_t r = k; r < count * size; r += size) mean += dots[r] * dshares[r];
    for (int64_t r = 0; r < count; ++r) {
      const float share = dots[r * size + k];
      const float dscore = bank.beta * share * (dshares[r * size + k] - mean);
      op.shares[(tile.begin + k) * op.most_rows + r + 1] = share;
      op.dscores[(tile.begin + k) * op.most_rows + r + 1] = dscore;
      dots[r * size + k] = dscore;
    }
  }
  if (!op.dx) return;
  float* targets[size];
  for (int k = 0; k < size; ++k) targets[k] = du + k * stride;
  std::memset(du, 0, static_cast<size_t>(size * stride) * sizeof(float));
  accumulate<size>(targets, keys, dots, count, bank.width);
  for (int k = 0; k < size; ++k)
    finish_dx<Key>(op, bank.tokens[tile.begin + k], directions + k * stride, lengths[k], targets[k]);
}

// Gradients of one page of a bank of T. `contributions(owner, add)` calls `add(row, from, to, weights)` for the rows of
// the page that the owner's tokens [from, to) read, with the first token's weight; the next is op.most_rows further.
template <class T, class Contributions>
void gradient_of_page(const AssociativeReadBackward& op, int64_t page, int64_t width, const float* vectors,
                      int64_t vector_stride, void* gradient, float* sums, const float** inputs, float* weights,
                      Contributions&& contributions) {
  for (int64_t left = 0; left < width; left += block) {
    const int64_t right = left + block < width ? left + block : width, stride = padded(right - left);
    bool read[page_rows] = {};
    for (int64_t owner = op.page_begin[page]; owner < op.page_begin[page + 1]; ++owner) {
      contributions(op.runs[op.owners[owner]], op.places[owner] * page_rows,
                    [&](int64_t row, int64_t rows, int64_t from, int64_t to, const float* table) {
        for (int64_t t = from; t < to; ++t) inputs[t - from] = vectors + t * vector_stride + left;
        in_tiles<4>(rows, [&](int64_t r, auto tile) {
          float* targets[tile.size];
          for (int k = 0; k < tile.size; ++k) {
            targets[k] = sums + (row + r + k) * block;
            if (!read[row + r + k]) std::memset(targets[k], 0, static_cast<size_t>(stride) * sizeof(float));
            read[row + r + k] = true;
          }
          for (int64_t t = from; t < to; ++t)
            for (int k = 0; k < tile.size; ++k)
              weights[(t - from) * tile.size + k] = table ? table[t * op.most_rows + r + k] : 1.0f;
          accumulate<tile.size>(targets, inputs, weights, to - from, stride);
        });
      });
    }
    for (int64_t row = 0; row < page_rows; ++row) {
      T* out = static_cast<T*>(gradient) + (page * page_rows + row) * width + left;
      if (read[row]) {
        restore<T>(sums + row * block, stride);
        round_to(out, sums + row * block, right - left);
      } else {
        std::memset(static_cast<void*>(out), 0, static_cast<size_t>(right - left) * sizeof(T));
      }
    }
  }
}

int64_t most_tokens(const AssociativeReadBackward& op, int64_t begin, int64_t end) {
  int64_t most = 0;
  for (int64_t owner = op.page_begin[begin]; owner < op.page_begin[end]; ++owner) {
    const ReadRun& run = op.runs[op.owners[owner]];
    if (run.end - run.begin > most) most = run.end - run.begin;
  }
  return most;
}

// Gradients of pages [begin, end) of a bank whose elements are of `type`.
template <class Contributions>
void gradients_of_pages(const AssociativeReadBackward& op, int64_t begin, int64_t end, Type type, int64_t width,
                        const float* vectors, int64_t vector_stride, void* gradient, Contributions&& contributions) {
  const int64_t most = most_tokens(op, begin, end);
  static thread_local Buffer<float> sums_memory, weights_memory;
  float* sums = sums_memory.reserve(page_rows * block);
  float* weights = weights_memory.reserve(4 * most);
  static thread_local Buffer<const float*> inputs_memory;
  const float** inputs = inputs_memory.reserve(most);
  with_float(type, [&](auto element) {
    for (int64_t page = begin; page < end; ++page)
      gradient_of_page<decltype(element)>(op, page, width, vectors, vector_stride, gradient, sums, inputs, weights,
                                          contributions);
  });
}

// What a run's later tokens add to the page that begins at row `place` of their edit: to rows 1 .. of the edit.
template <class Add>
void add_later(const AssociativeReadBackward& op, const ReadRun& run, int64_t place, const float* table, Add&& add) {
  const int64_t rows = op.bank.rows[run.edit], first = place == 0;
  const int64_t last = rows - place < page_rows ? rows - place : page_rows;
  if (run.later < run.end) add(first, last - first, run.later, run.end, table + place + first);
}

}  // namespace

void associative_read_scores(const AssociativeReadBackward& op, int64_t begin, int64_t end) {
  const ReadBank& bank = op.bank;
  const int64_t most = most_rows(bank, op.tiles, begin, end);
  static thread_local Buffer<const void*> rows_memory;
  const void** rows = rows_memory.reserve(most);
  static thread_local Buffer<float> background_memory, dots_memory, dshares_memory, du_memory;
  float* background = background_memory.reserve(padded(bank.width));
  float* dots = dots_memory.reserve(4 * most);
  float* dshares = dshares_memory.reserve(4 * most);
  float* du = du_memory.reserve(4 * op.width_stride);
  with_float(bank.key_type, [&](auto key) { take_background<decltype(key)>(bank, background); });
  for (int64_t item = begin; item < end; ++item) {
    const ReadTile& tile = op.tiles[item];
    with_float(bank.value_type, [&](auto value) { take_upstream<decltype(value)>(op, tile); });
    if (tile.opening) continue;
    in_tiles<4>(tile.size, [&](int64_t t, auto size) {
      const ReadTile part = {tile.edit, static_cast<int32_t>(tile.begin + t), size.size, false};
      with_float(bank.value_type, [&](auto value) {
        take_dshares<decltype(value), size.size>(op, part, rows, dshares);
      });
      with_float(bank.key_type, [&](auto key) {
        score_tile<decltype(key), size.size>(op, part, background, rows, dshares, dots, du);
      });
    });
  }
}

void associative_read_dkeys(const AssociativeReadBackward& op, int64_t begin, int64_t end) {
  const ReadBank& bank = op.bank;
  gradients_of_pages(op, begin, end, bank.key_type, bank.width, op.directions, op.width_stride, op.dkeys,
                     [&](const ReadRun& run, int64_t place, auto&& add) {
    add_later(op, run, place, op.dscores, add);
  });
}

void associative_read_dvalues(const AssociativeReadBackward& op, int64_t begin, int64_t end) {
  const ReadBank& bank = op.bank;
  gradients_of_pages(op, begin, end, bank.value_type, bank.outputs, op.upstream, op.output_stride, op.dvalues,
                     [&](const ReadRun& run, int64_t place, auto&& add) {
    if (place == 0 && run.begin < run.later) add(0, 1, run.begin, run.later, nullptr);
    add_later(op, run, place, op.shares, add);
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
