// Work items are blocks of columns: a block of sums stays in the first cache while rows of memory stream past it.
#include "masks.h"
#include "rows.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// Tokens whose sums are in work at once: 256 KB with blocks of 2048 columns, which the second cache holds.
constexpr int64_t batch = 32;

// Rows of memory that all those tokens take before the next rows: 1 MB of bfloat16, so tokens of different entries find
// in cache what they share.
constexpr int64_t shared_rows = 256;

// With one run of tokens nothing is shared; longer lists leave fewer short ends.
constexpr int64_t listed_rows = 1024;

template <class Memory>
void add_columns(const MaskedLinear& op, int64_t from, int64_t to, float* sums, const Memory** rows, float* weights) {
  const auto* memory = static_cast<const Memory*>(op.memory);
  const int64_t width = to - from, stride = padded(width);
  for (int64_t first = 0; first < op.routes.count; first += batch) {
    const int64_t last = first + batch < op.routes.count ? first + batch : op.routes.count;
    std::memset(sums, 0, static_cast<size_t>((last - first) * stride) * sizeof(float));
    const bool one_run = op.routes.entries[first] == op.routes.entries[last - 1] && last - first <= 4;
    const int64_t chunk = one_run ? listed_rows : shared_rows;
    for (int64_t top = 0; top < op.width; top += chunk) {
      const int64_t bottom = top + chunk < op.width ? top + chunk : op.width;
      for_each_run(op.routes, first, last, [&](int64_t run, int64_t size) {
        const int32_t* mask = op.masks + op.routes.entries[run] * op.words;
        in_tiles<4>(size, [&](int64_t t, auto tile) {
          float* targets[tile.size];
          for (int k = 0; k < tile.size; ++k) targets[k] = sums + (run + t + k - first) * stride;
          int64_t count = 0;
          with_float(op.x_type, [&](auto element) {
            const auto* x = static_cast<const decltype(element)*>(op.x);
            for_each_bit(mask, top, bottom, [&](int64_t i) {
              rows[count] = memory + i * op.memory_row + from;
              for (int k = 0; k < tile.size; ++k)
                weights[count * tile.size + k] =
                    load_one(x + op.routes.tokens[run + t + k] * op.x_row + i * op.x_column);
              ++count;
            });
          });
          accumulate<tile.size>(targets, rows, weights, count, width);
        });
      });
    }
    for (int64_t t = first; t < last; ++t) {
      float* sum = sums + (t - first) * stride;
      restore<Memory>(sum, stride);
      with_float(op.y_type, [&](auto element) {
        auto* y = static_cast<decltype(element)*>(op.y) + op.routes.tokens[t] * op.y_row + from * op.y_column;
        add_rounded(y, op.y_column, sum, width);
      });
    }
  }
}

}  // namespace

void masked_linear(const MaskedLinear& op, int64_t begin, int64_t end) {
  with_float(op.memory_type, [&](auto element) {
    using Memory = decltype(element);
    Buffer<float> sums((op.routes.count < batch ? op.routes.count : batch) * padded(op.block));
    Buffer<const Memory*> rows(listed_rows);
    Buffer<float> weights(4 * listed_rows);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t from = item * op.block, to = from + op.block < op.outputs ? from + op.block : op.outputs;
      add_columns(op, from, to, sums.data(), rows.data(), weights.data());
    }
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
