// How a search of stored rows is shared among threads.
#pragma once

#include <algorithm>
#include <vector>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {

// Rows go to threads in blocks of this many bytes: a search of less takes about as long as waking a thread.
constexpr int64_t block_bytes = 1 << 18;

// The first `valid` of `rows` stored rows are seen, all if it is absent; it holds one count in host memory.
inline int64_t seen(int64_t rows, const std::optional<Tensor>& valid) {
  return valid ? std::clamp<int64_t>(*data<int32_t>(*valid), 0, rows) : rows;
}

// `scan(part, best)` finds the best of a part per query, `merge(best, later)` takes in what later rows have.
template <class Best, class Scan, class Merge>
std::vector<Best> search(int64_t batch, int64_t rows, int64_t row_bytes, int64_t queries_at_once, const Scan& scan,
                         const Merge& merge) {
  const int64_t most = std::max<int64_t>(rows, 1);
  const int64_t block = std::clamp<int64_t>(block_bytes / std::max<int64_t>(row_bytes, 1), 1, most);
  const int64_t blocks = (rows + block - 1) / block;
  const int64_t chunks = (batch + queries_at_once - 1) / queries_at_once;
  std::vector<Best> best(std::max<int64_t>(blocks, 1) * batch);
  torch::stable::parallel_for(0, blocks * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / chunks * block, query = item % chunks * queries_at_once;
      const Part part{query, std::min(query + queries_at_once, batch), row, std::min(row + block, rows)};
      scan(part, best.data() + item / chunks * batch + query);
    }
  });
  for (int64_t later = 1; later < blocks; ++later)
    for (int64_t b = 0; b < batch; ++b) merge(best[b], best[later * batch + b]);
  best.resize(batch);
  return best;
}

inline std::vector<NearestMask> nearest_masks(const MaskOverlap& op, int64_t batch, int64_t rows) {
  return search<NearestMask>(
      batch, rows, 4 * op.words, 32,
      [&](const Part& part, NearestMask* best) { kernels().mask_overlap(op, part, best); },
      [](NearestMask& best, const NearestMask& later) {
        if (later.overlap > best.overlap) best = later;
      });
}

}  // namespace corrigenda
