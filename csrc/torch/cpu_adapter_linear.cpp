// adapter_linear on CPU tensors.
#include <algorithm>
#include <vector>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

// The routed tokens, those of one adapter side by side, in tiles.
struct AdapterReads {
  std::vector<int32_t> tokens;
  std::vector<AdapterTile> tiles;

  AdapterReads(const Tensor& route, const Tensor& block_of, int64_t blocks) {
    const int32_t *edit = data<int32_t>(route), *block = data<int32_t>(block_of);
    for (int32_t t = 0; t < route.size(0); ++t) {
      if (edit[t] < 0) continue;
      STD_TORCH_CHECK(edit[t] < block_of.size(0), "route must name one of ", block_of.size(0),
                      " edits or be -1, not ", edit[t]);
      STD_TORCH_CHECK(0 <= block[edit[t]] && block[edit[t]] < blocks, "block_of must name one of ", blocks,
                      " blocks, not ", block[edit[t]]);
      tokens.push_back(t);
    }
    std::stable_sort(tokens.begin(), tokens.end(),
                     [&](int32_t a, int32_t b) { return block[edit[a]] < block[edit[b]]; });
    for (int32_t i = 0; i < static_cast<int32_t>(tokens.size()); ++i) {
      const int32_t b = block[edit[tokens[i]]];
      if (tiles.empty() || tiles.back().block != b || tiles.back().size == 4) tiles.push_back({b, i, 0});
      ++tiles.back().size;
    }
  }
};

void adapter_linear_(Tensor y, Tensor x, Tensor down, Tensor up, Tensor block_of, Tensor route) {
  down = torch::stable::contiguous(down);
  up = torch::stable::contiguous(up);
  block_of = torch::stable::contiguous(block_of);
  route = torch::stable::contiguous(route);
  const AdapterReads reads(route, block_of, down.size(0));
  AdapterLinear op = {};
  op.x_type = type(x), op.factor_type = type(down), op.y_type = type(y);
  op.x = x.const_data_ptr(), op.x_row = x.stride(0), op.x_column = x.stride(1), op.width = x.size(1);
  op.down = down.const_data_ptr(), op.up = up.const_data_ptr();
  op.rank = down.size(1), op.outputs = up.size(2);
  op.tokens = reads.tokens.data(), op.tiles = reads.tiles.data();
  op.y = y.mutable_data_ptr(), op.y_row = y.stride(0), op.y_column = y.stride(1);
  // A thread is worth waking for a million products (cpu_associative_read.cpp).
  const int64_t products = std::max<int64_t>(1, 4 * op.rank * (op.width + op.outputs));
  torch::stable::parallel_for(0, static_cast<int64_t>(reads.tiles.size()),
                              std::max<int64_t>(1, (1 << 20) / products),
                              [&](int64_t begin, int64_t end) { kernels().adapter_linear(op, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("adapter_linear_", TORCH_BOX(&adapter_linear_)); }

}  // namespace corrigenda
