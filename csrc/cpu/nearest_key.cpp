// Distances of queries to stored keys, a tile of keys at a time, which all queries visit while it is in the cache.
#include <cmath>

#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

constexpr int64_t tile_bytes = 1 << 15;

// What one pair of rows is summed up to: of differences, or for the cosine of products.
struct Sums {
  float differences = 0, product = 0, stored = 0;
};

template <bool cosine, class T>
Sums sums_of(const T* query, const T* stored, int64_t width) {
  Floats first[2] = {}, second[2] = {};
  const auto add = [&](Floats q, Floats k, int half) {
    if constexpr (cosine) {
      first[half] += q * k;
      second[half] += k * k;
    } else {
      const Floats apart = q - k;
      first[half] += apart * apart;
    }
  };
  int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) {
    add(load(query + i), load(stored + i), 0);
    add(load(query + i + lanes), load(stored + i + lanes), 1);
  }
  for (; i + lanes <= width; i += lanes) add(load(query + i), load(stored + i), 0);
  if (i < width) add(load_some(query + i, width - i), load_some(stored + i, width - i), 1);
  Sums found;
  (cosine ? found.product : found.differences) = sum(first[0] + first[1]);
  if constexpr (cosine) found.stored = sum(second[0] + second[1]);
  return found;
}

template <class T>
float length(const T* row, int64_t width) {
  Floats total = {};
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) total += load(row + i) * load(row + i);
  if (i < width) total += load_some(row + i, width - i) * load_some(row + i, width - i);
  return __builtin_sqrtf(sum(total));
}

template <bool cosine, class T>
void visit(const NearestKey& op, const Part& part, NearestStored* best) {
  const T* queries = static_cast<const T*>(op.query);
  const T* keys = static_cast<const T*>(op.stored);
  const int64_t fits = tile_bytes / (op.width * static_cast<int64_t>(sizeof(T)) + 1);
  const int64_t tile = fits < 1 ? 1 : fits;
  for (int64_t first = part.first_row; first < part.last_row; first += tile) {
    const int64_t last = first + tile < part.last_row ? first + tile : part.last_row;
    for (int64_t query = part.first_query; query < part.last_query; ++query) {
      NearestStored& nearest = best[query - part.first_query];
      const T* asked = queries + query * op.width;
      const float own = cosine ? length(asked, op.width) : 0;
      for (int64_t row = first; row < last; ++row) {
        if (op.groups.query && op.groups.query[query] != op.groups.stored[row]) continue;
        const Sums found = sums_of<cosine>(asked, keys + row * op.width, op.width);
        float distance = found.differences;
        if constexpr (cosine) {
          const float norms = __builtin_sqrtf(found.stored) * own;
          distance = 1 - (norms > 0 ? found.product / norms : 0);
          if (distance < 0) distance = 0;
        }
        if (distance < nearest.distance) nearest = {static_cast<int32_t>(row), distance};
      }
    }
  }
}

}  // namespace

void nearest_key(const NearestKey& op, const Part& part, NearestStored* best) {
  with_element(op.type, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) > 1) {  // keys are no int8
      if (op.cosine) {
        visit<true, T>(op, part, best);
      } else {
        visit<false, T>(op, part, best);
      }
    }
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
