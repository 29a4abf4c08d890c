// masked_linear and its gradients on CPU tensors.
#include "cpu_masked_linear.h"

#include "../cpu/kernels.h"
#include "cpu_routes.h"

namespace corrigenda {
namespace {

// The kernels take any stride between rows, and adjacent columns.
Tensor adjacent_columns(const Tensor& matrix) {
  return matrix.stride(1) == 1 || matrix.size(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

// `memory` has adjacent columns, `masks` is contiguous.
MaskedMemory masked_memory(const Tensor& x, const Tensor& memory, const Tensor& masks, const SortedRoutes& routes) {
  MaskedMemory op = {};
  op.x_type = type(x), op.memory_type = type(memory);
  op.x = x.const_data_ptr(), op.x_row = x.stride(0), op.x_column = x.stride(1), op.width = x.size(1);
  op.memory = memory.const_data_ptr(), op.memory_row = memory.stride(0), op.outputs = memory.size(1);
  op.masks = data<int32_t>(masks), op.words = masks.size(1);
  op.routes = routes.view();
  return op;
}

// Columns of a work item: 8 KB of sums a token, which the first cache holds, or less where threads would idle.
int64_t block_of(int64_t outputs) {
  const int64_t share = (outputs + torch::stable::get_num_threads() - 1) / torch::stable::get_num_threads();
  return std::clamp<int64_t>((share + 63) / 64 * 64, 256, 2048);
}

}  // namespace

void masked_linear_(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route) {
  const SortedRoutes routes(route, masks.size(0));
  if (routes.tokens.empty() || y.size(1) == 0) return;
  memory = adjacent_columns(memory);
  masks = torch::stable::contiguous(masks);
  MaskedLinear op = {masked_memory(x, memory, masks, routes)};
  op.y_type = type(y);
  op.y = y.mutable_data_ptr(), op.y_row = y.stride(0), op.y_column = y.stride(1);
  op.block = block_of(op.outputs);
  const int64_t items = (op.outputs + op.block - 1) / op.block;
  torch::stable::parallel_for(0, items, 1,
                              [&](int64_t begin, int64_t end) { kernels().masked_linear(op, begin, end); });
}

namespace {

std::tuple<Tensor, Tensor> masked_linear_backward(Tensor grad, Tensor x, Tensor memory, Tensor masks, Tensor route,
                                                  std::vector<bool> needed) {
  const SortedRoutes routes(route, masks.size(0));
  memory = adjacent_columns(memory);
  masks = torch::stable::contiguous(masks);
  MaskedLinearBackward op = {masked_memory(x, memory, masks, routes)};
  op.grad_type = type(grad);
  op.grad = grad.const_data_ptr(), op.grad_row = grad.stride(0), op.grad_column = grad.stride(1);
  op.stride = (op.outputs + row_multiple - 1) / row_multiple * row_multiple;
  Tensor upstream = torch::stable::new_empty(grad, {op.routes.count, op.stride}, ScalarType::Float);
  op.upstream = upstream.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, op.routes.count, 8,
                              [&](int64_t begin, int64_t end) { kernels().masked_linear_upstream(op, begin, end); });
  Tensor dx, dmemory;
  if (needed[0]) {
    dx = torch::stable::new_zeros(x, x.sizes());
    op.dx = dx.mutable_data_ptr();
    torch::stable::parallel_for(0, (op.width + mask_rows - 1) / mask_rows, 1,
                                [&](int64_t begin, int64_t end) { kernels().masked_linear_dx(op, begin, end); });
  } else {
    dx = torch::stable::new_empty(x, {0, 0});
  }
  if (needed[1]) {
    dmemory = torch::stable::new_empty(memory, memory.sizes());
    op.dmemory = dmemory.mutable_data_ptr();
    torch::stable::parallel_for(0, op.words, 4,
                                [&](int64_t begin, int64_t end) { kernels().masked_linear_dmemory(op, begin, end); });
  } else {
    dmemory = torch::stable::new_empty(memory, {0, 0});
  }
  return {dx, dmemory};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&OnCopy<&masked_linear_>::run));
  m.impl("masked_linear_", TORCH_BOX(&masked_linear_));
  m.impl("masked_linear_backward", TORCH_BOX(&masked_linear_backward));
}

}  // namespace corrigenda
