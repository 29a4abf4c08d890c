// Routed tokens in the order in which the kernels take them.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu_tensors.h"

namespace corrigenda {

struct SortedRoutes {
  std::vector<int32_t> tokens, entries;

  // `route` holds entries below `bound`, or -1.
  SortedRoutes(const Tensor& route, int64_t bound) {
    const int32_t* entry = data<int32_t>(route);
    const int64_t stride = route.stride(0);
    for (int64_t t = 0; t < route.size(0); ++t) {
      STD_TORCH_CHECK(entry[t * stride] < bound, "route must name one of ", bound, " entries or be -1, not ",
                      entry[t * stride]);
      if (entry[t * stride] >= 0) tokens.push_back(static_cast<int32_t>(t));
    }
    std::stable_sort(tokens.begin(), tokens.end(),
                     [&](int32_t a, int32_t b) { return entry[a * stride] < entry[b * stride]; });
    for (int32_t t : tokens) entries.push_back(entry[t * stride]);
  }

  Routes view() const { return {tokens.data(), entries.data(), static_cast<int64_t>(tokens.size())}; }
};

}  // namespace corrigenda
