// masked_linear and its gradients on CUDA tensors.
#include "../cuda/masked_linear.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

// What the op and its gradients take alike, contiguous, and kept while the kernels are started.
struct MaskedInputs {
  Tensor x, memory, masks, route;

  MaskedInputs(const Tensor& x, const Tensor& memory, const Tensor& masks, const Tensor& route)
      : x(torch::stable::contiguous(x)),
        memory(torch::stable::contiguous(memory)),
        masks(torch::stable::contiguous(masks)),
        route(torch::stable::contiguous(route)) {}

  template <class Arguments>
  void fill(Arguments& op) const {
    op.x = x.const_data_ptr(), op.x_dtype = dtype_code(x);
    op.memory = memory.const_data_ptr(), op.memory_dtype = dtype_code(memory);
    op.masks = data<uint32_t>(masks);
    op.route = data<int32_t>(route);
    op.tokens = x.size(0), op.width = x.size(1), op.outputs = memory.size(1);
  }

  void run(const Tensor& y, Tensor& out) const {
    MaskedLinearArguments op{};
    fill(op);
    op.y = y.const_data_ptr(), op.y_dtype = dtype_code(y);
    op.out = out.mutable_data_ptr();
    start("masked_linear", op, corrigenda_masked_linear_scratch_bytes, corrigenda_masked_linear, y);
  }
};

// Not the in-place form on a copy: one launch writes the copy and what is added to it.
Tensor masked_linear(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route) {
  y = torch::stable::contiguous(y);
  Tensor out = output_like(y);
  MaskedInputs(x, memory, masks, route).run(y, out);
  return out;
}

void masked_linear_(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route) {
  const MaskedInputs inputs(x, memory, masks, route);
  in_place(y, [&](const Tensor& before, Tensor& out) { inputs.run(before, out); });
}

std::tuple<Tensor, Tensor> masked_linear_backward(Tensor grad, Tensor x, Tensor memory, Tensor masks, Tensor route,
                                                  std::vector<bool> needed) {
  grad = torch::stable::contiguous(grad);
  const MaskedInputs inputs(x, memory, masks, route);
  const Gradient dx(x, needed[0]), dmemory(memory, needed[1]);
  MaskedLinearBackwardArguments op{};
  inputs.fill(op);
  op.grad = grad.const_data_ptr(), op.grad_dtype = dtype_code(grad);
  op.dx = dx.data, op.dmemory = dmemory.data;
  start("masked_linear_backward", op, corrigenda_masked_linear_backward, grad);
  return {dx.tensor, dmemory.tensor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) {
  m.impl("masked_linear", TORCH_BOX(&masked_linear));
  m.impl("masked_linear_", TORCH_BOX(&masked_linear_));
  m.impl("masked_linear_backward", TORCH_BOX(&masked_linear_backward));
}

}  // namespace corrigenda
