#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

void mask_overlap(const MaskOverlap& op, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    int32_t best = -1, index = -1;
    for (int64_t n = 0; n < op.visible.valid; ++n) {
      if (op.visible.query_group && op.visible.query_group[b] != op.visible.stored_group[n]) continue;
      int32_t overlap = 0;
      for (int64_t w = 0; w < op.words; ++w)
        overlap += __builtin_popcount(op.query[b * op.words + w] & op.stored[n * op.words + w]);
      if (overlap > best) best = overlap, index = static_cast<int32_t>(n);
    }
    op.index[b] = index;
    op.overlap[b] = best < 0 ? 0 : best;
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
