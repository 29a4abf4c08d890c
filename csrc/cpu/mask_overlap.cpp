// Counts common bits of packed masks, four stored rows at a time: their sums fill one vector.
#include "popcount.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// Stored rows that all queries visit before the next ones: 28 KB at 14336 bits, so that they stay in the first cache.
constexpr int64_t tile = 16;

void visit(const MaskOverlap& op, int64_t query, int64_t first, int64_t last, NearestMask& best) {
  const int32_t* mask = op.query + query * op.words;
  const auto consider = [&](int64_t row, int32_t overlap) {
    if (overlap > best.overlap && (!op.groups.query || op.groups.query[query] == op.groups.stored[row])) {
      best = {static_cast<int32_t>(row), overlap};
    }
  };
  int64_t row = first;
  for (; row + 4 <= last; row += 4) {
    Words shared[4];
    shared_bits(mask, op.stored + row * op.words, op.words, shared);
    const FourInts overlap = sums(shared[0], shared[1], shared[2], shared[3]);
    for (int i = 0; i < 4; ++i) consider(row + i, overlap[i]);
  }
  for (; row < last; ++row) {
    Words shared[1];
    shared_bits(mask, op.stored + row * op.words, op.words, shared);
    consider(row, sums(shared[0], Words{}, Words{}, Words{})[0]);
  }
}

}  // namespace

void mask_overlap(const MaskOverlap& op, const Part& part, NearestMask* best) {
  for (int64_t first = part.first_row; first < part.last_row; first += tile) {
    const int64_t last = first + tile < part.last_row ? first + tile : part.last_row;
    for (int64_t query = part.first_query; query < part.last_query; ++query) {
      visit(op, query, first, last, best[query - part.first_query]);
    }
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
