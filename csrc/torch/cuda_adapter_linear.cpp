// adapter_linear on CUDA tensors.
#include "../cuda/adapter_linear.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

void adapter_linear_(Tensor y, Tensor x, Tensor down, Tensor up, Tensor block_of, Tensor route) {
  x = torch::stable::contiguous(x);
  down = torch::stable::contiguous(down);
  up = torch::stable::contiguous(up);
  block_of = torch::stable::contiguous(block_of);
  route = torch::stable::contiguous(route);
  in_place(y, [&](const Tensor&, Tensor& out) {
    AdapterLinearArguments op{};
    op.y = out.mutable_data_ptr(), op.y_dtype = dtype_code(out);
    op.x = x.const_data_ptr(), op.x_dtype = dtype_code(x);
    op.down = down.const_data_ptr(), op.down_dtype = dtype_code(down);
    op.up = up.const_data_ptr();
    op.block_of = data<int32_t>(block_of), op.route = data<int32_t>(route);
    op.tokens = x.size(0), op.width = x.size(1), op.rank = down.size(1), op.outputs = up.size(2);
    start("adapter_linear_", op, corrigenda_adapter_linear, out);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) { m.impl("adapter_linear_", TORCH_BOX(&adapter_linear_)); }

}  // namespace corrigenda
