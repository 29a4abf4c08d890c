// associative_read and its gradients on CUDA tensors.
#include "../cuda/associative_read.h"

#include "cuda_tensors.h"

namespace corrigenda {
namespace {

// What the op and its gradients take alike, contiguous, and kept while the kernels are started.
struct ReadInputs {
  Tensor x, first, keys, values, pages, rows, route, background;
  float beta;

  ReadInputs(const Tensor& x, const Tensor& first, const Tensor& keys, const Tensor& values, const Tensor& pages,
             const Tensor& rows, const Tensor& route, const Tensor& background, double beta)
      : x(torch::stable::contiguous(x)),
        first(torch::stable::contiguous(first)),
        keys(torch::stable::contiguous(keys)),
        values(torch::stable::contiguous(values)),
        pages(torch::stable::contiguous(pages)),
        rows(torch::stable::contiguous(rows)),
        route(torch::stable::contiguous(route)),
        background(torch::stable::contiguous(background)),
        beta(static_cast<float>(beta)) {}

  void fill(ReadingArguments& op) const {
    op.x = x.const_data_ptr(), op.x_dtype = dtype_code(x);
    op.first = data<bool>(first);
    op.keys = keys.const_data_ptr(), op.keys_dtype = dtype_code(keys);
    op.values = values.const_data_ptr(), op.values_dtype = dtype_code(values);
    op.pages = data<int32_t>(pages);
    op.rows = data<int32_t>(rows);
    op.route = data<int32_t>(route);
    op.background = data<float>(background);
    op.beta = beta;
    op.tokens = x.size(0), op.width = x.size(1), op.outputs = values.size(2), op.max_pages = pages.size(1);
  }

  void run(const Tensor& y, const std::optional<Tensor>& scales, Tensor& out) const {
    const std::optional<Tensor> dense = contiguous(scales);
    AssociativeReadArguments op{};
    fill(op);
    op.y = y.const_data_ptr(), op.y_dtype = dtype_code(y);
    op.scales = data<float>(dense);
    op.out = out.mutable_data_ptr();
    start("associative_read", op, corrigenda_associative_read_scratch_bytes, corrigenda_associative_read, y);
  }
};

// Not the in-place form on a copy: one launch writes the copy and what is added to it.
Tensor associative_read(Tensor y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,
                        Tensor route, Tensor background, double beta, std::optional<Tensor> scales) {
  y = torch::stable::contiguous(y);
  Tensor out = output_like(y);
  ReadInputs(x, first, keys, values, pages, rows, route, background, beta).run(y, scales, out);
  return out;
}

void associative_read_(Tensor y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,
                       Tensor route, Tensor background, double beta, std::optional<Tensor> scales) {
  const ReadInputs inputs(x, first, keys, values, pages, rows, route, background, beta);
  in_place(y, [&](const Tensor& before, Tensor& out) { inputs.run(before, scales, out); });
}

std::tuple<Tensor, Tensor, Tensor> associative_read_backward(Tensor grad, Tensor x, Tensor first, Tensor keys,
                                                             Tensor values, Tensor pages, Tensor rows, Tensor route,
                                                             Tensor background, double beta,
                                                             std::vector<bool> needed) {
  grad = torch::stable::contiguous(grad);
  const ReadInputs inputs(x, first, keys, values, pages, rows, route, background, beta);
  const Gradient dx(x, needed[0]), dkeys(keys, needed[1]), dvalues(values, needed[2]);
  AssociativeReadBackwardArguments op{};
  inputs.fill(op);
  op.grad = grad.const_data_ptr(), op.grad_dtype = dtype_code(grad);
  op.edits = rows.size(0), op.banks = keys.size(0);
  op.dx = dx.data, op.dkeys = dkeys.data, op.dvalues = dvalues.data;
  start("associative_read_backward", op, corrigenda_associative_read_backward_scratch_bytes,
        corrigenda_associative_read_backward, grad);
  return {dx.tensor, dkeys.tensor, dvalues.tensor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) {
  m.impl("associative_read", TORCH_BOX(&associative_read));
  m.impl("associative_read_", TORCH_BOX(&associative_read_));
  m.impl("associative_read_backward", TORCH_BOX(&associative_read_backward));
}

}  // namespace corrigenda
