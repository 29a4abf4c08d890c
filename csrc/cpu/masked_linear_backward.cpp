// The gradients of masked_linear: dx by dot products with the masked rows of memory, dmemory row by row, each written
// once, where no token has the bit as zeros.
#include "masks.h"
#include "rows.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// Columns of dmemory in work at once: with 4 rows, 32 KB of sums, which the first cache holds.
constexpr int64_t block = 2048;

template <class Memory>
void dx_of_block(const MaskedLinearBackward& op, int64_t top, const Memory** rows, float* dots, float* gradients) {
  const int64_t bottom = top + mask_rows < op.width ? top + mask_rows : op.width;
  for_each_run(op.routes, 0, op.routes.count, [&](int64_t run, int64_t size) {
    const int32_t* mask = op.masks + op.routes.entries[run] * op.words;
    int64_t count = 0;
    for_each_bit(mask, top, bottom, [&](int64_t i) {
      rows[count++] = static_cast<const Memory*>(op.memory) + i * op.memory_row;
    });
    in_tiles<4>(size, [&](int64_t t, auto tile) {
      dot<tile.size>(op.upstream + (run + t) * op.stride, op.stride, rows, count, op.outputs, dots);
      for (int k = 0; k < tile.size; ++k) {
        std::memset(gradients, 0, mask_rows * sizeof(float));
        int64_t row = 0;
        for_each_bit(mask, top, bottom, [&](int64_t i) { gradients[i - top] = dots[row++ * tile.size + k]; });
        with_float(op.x_type, [&](auto element) {
          auto* dx = static_cast<decltype(element)*>(op.dx) + op.routes.tokens[run + t + k] * op.width + top;
          round_to(dx, gradients, bottom - top);
        });
      }
    });
  });
}

// The weights of the tokens of a run in `size` rows of dmemory: [tokens, size].
template <int size>
void take_weights(const MaskedLinearBackward& op, int64_t run, int64_t tokens, const int64_t* rows, float* weights) {
  with_float(op.x_type, [&](auto element) {
    const auto* x = static_cast<const decltype(element)*>(op.x);
    for (int64_t t = 0; t < tokens; ++t)
      for (int k = 0; k < size; ++k)
        weights[t * size + k] = load_one(x + op.routes.tokens[run + t] * op.x_row + rows[k] * op.x_column);
  });
}

// Rows 32 * word ... of dmemory, columns [from, to); `sums` has room for 32 of them.
template <class Memory>
void dmemory_of_word(const MaskedLinearBackward& op, int64_t word, int64_t from, int64_t to, float* sums,
                     const float** upstream, float* weights) {
  const int64_t width = to - from, stride = padded(width);
  uint32_t any = 0;
  for_each_run(op.routes, 0, op.routes.count, [&](int64_t run, int64_t) {
    any |= static_cast<uint32_t>(op.masks[op.routes.entries[run] * op.words + word]);
  });
  const int64_t rows = __builtin_popcount(any);
  std::memset(sums, 0, static_cast<size_t>(rows * stride) * sizeof(float));
  const auto sum_of = [&](int64_t bit) {
    return sums + __builtin_popcount(any & ((1u << bit) - 1)) * stride;
  };
  for_each_run(op.routes, 0, op.routes.count, [&](int64_t run, int64_t tokens) {
    int64_t own[32], count = 0;
    const int32_t* mask = op.masks + op.routes.entries[run] * op.words;
    for_each_bit(mask, word * 32, word * 32 + 32, [&](int64_t i) { own[count++] = i; });
    for (int64_t t = 0; t < tokens; ++t) upstream[t] = op.upstream + (run + t) * op.stride + from;
    in_tiles<4>(count, [&](int64_t r, auto tile) {
      float* targets[tile.size];
      for (int k = 0; k < tile.size; ++k) targets[k] = sum_of(own[r + k] % 32);
      take_weights<tile.size>(op, run, tokens, own + r, weights);
      accumulate<tile.size>(targets, upstream, weights, tokens, stride);
    });
  });
  for (int64_t bit = 0; bit < 32 && word * 32 + bit < op.width; ++bit) {
    Memory* row = static_cast<Memory*>(op.dmemory) + (word * 32 + bit) * op.outputs + from;
    if (any >> bit & 1) {
      restore<Memory>(sum_of(bit), stride);
      round_to(row, sum_of(bit), width);
    } else {
      std::memset(static_cast<void*>(row), 0, static_cast<size_t>(width) * sizeof(Memory));
    }
  }
}

}  // namespace

void masked_linear_upstream(const MaskedLinearBackward& op, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* upstream = op.upstream + r * op.stride;
    with_float(op.grad_type, [&](auto element) {
      const auto* grad = static_cast<const decltype(element)*>(op.grad) + op.routes.tokens[r] * op.grad_row;
      widen(grad, op.grad_column, op.outputs, upstream, op.stride);
    });
    with_float(op.memory_type, [&](auto element) { arrange<decltype(element)>(upstream, op.stride); });
  }
}

void masked_linear_dx(const MaskedLinearBackward& op, int64_t begin, int64_t end) {
  with_float(op.memory_type, [&](auto element) {
    Buffer<const decltype(element)*> rows(mask_rows);
    Buffer<float> dots(4 * mask_rows), gradients(mask_rows);
    for (int64_t item = begin; item < end; ++item)
      dx_of_block(op, item * mask_rows, rows.data(), dots.data(), gradients.data());
  });
}

void masked_linear_dmemory(const MaskedLinearBackward& op, int64_t begin, int64_t end) {
  with_float(op.memory_type, [&](auto element) {
    using Memory = decltype(element);
    Buffer<float> sums(32 * block), weights(4 * op.routes.count);
    Buffer<const float*> upstream(op.routes.count);
    for (int64_t word = begin; word < end; ++word)
      for (int64_t from = 0; from < op.outputs; from += block) {
        const int64_t to = from + block < op.outputs ? from + block : op.outputs;
        dmemory_of_word<Memory>(op, word, from, to, sums.data(), upstream.data(), weights.data());
      }
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
