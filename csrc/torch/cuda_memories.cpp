// masked_linear, associative_read, ties_merge, masked_sgd and delta_linear on CUDA tensors.
#include <algorithm>
#include <vector>

#include "../cuda/associative_read.h"
#include "../cuda/delta_linear.h"
#include "../cuda/masked_linear.h"
#include "../cuda/masked_sgd.h"
#include "../cuda/ties_merge.h"
#include "cuda_tensors.h"

namespace corrigenda {
namespace {

using Optional = std::optional<Tensor>;

Tensor contiguous_of(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

Tensor output_like(const Tensor& like) { return torch::stable::new_empty(like, like.sizes()); }

// A gradient to be written in full, or one of no size where it is not wanted.
Tensor gradient_of(const Tensor& like, bool needed) {
  return needed ? output_like(like) : torch::stable::new_empty(like, std::vector<int64_t>(like.dim(), 0));
}

void* pointer(Tensor& gradient, bool needed) { return needed ? gradient.mutable_data_ptr() : nullptr; }

// Run `op(y, out)` with out = y, also where y is a view whose rows or columns lie apart.
template <typename Op>
void in_place(Tensor& y, Op op) {
  Tensor dense = contiguous_of(y);
  op(dense, dense);
  if (!y.is_contiguous()) torch::stable::copy_(y, dense);
}

struct MaskedInputs {
  Tensor x, memory, masks, route;

  MaskedInputs(const Tensor& x, const Tensor& memory, const Tensor& masks, const Tensor& route)
      : x(contiguous_of(x)), memory(contiguous_of(memory)), masks(contiguous_of(masks)), route(contiguous_of(route)) {}

  void run(const Tensor& y, Tensor& out) const {
    const OnDeviceOf device(y);
    const int64_t tokens = x.size(0), width = x.size(1), outputs = y.size(1);
    const Tensor partial = scratch(y, corrigenda_masked_linear_scratch_bytes(tokens, width, outputs));
    check_launch(corrigenda_masked_linear(y.const_data_ptr(), dtype_code(y), x.const_data_ptr(), dtype_code(x),
                                          memory.const_data_ptr(), dtype_code(memory), data<int32_t>(masks),
                                          data<int32_t>(route), tokens, width, outputs, out.mutable_data_ptr(),
                                          partial.mutable_data_ptr(), device.stream()),
                 "masked_linear");
  }
};

Tensor masked_linear(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route) {
  y = contiguous_of(y);
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
  const OnDeviceOf device(grad);
  grad = contiguous_of(grad);
  const MaskedInputs in(x, memory, masks, route);
  Tensor dx = gradient_of(in.x, needed[0]), dmemory = gradient_of(in.memory, needed[1]);
  check_launch(corrigenda_masked_linear_backward(grad.const_data_ptr(), dtype_code(grad), in.x.const_data_ptr(),
                                                 dtype_code(x), in.memory.const_data_ptr(), dtype_code(memory),
                                                 data<int32_t>(in.masks), data<int32_t>(in.route), x.size(0),
                                                 x.size(1), grad.size(1), pointer(dx, needed[0]),
                                                 pointer(dmemory, needed[1]), device.stream()),
               "masked_linear_backward");
  return {dx, dmemory};
}

struct ReadInputs {
  Tensor x, first, keys, values, pages, rows, route, background;
  float beta;
  Optional scales;

  ReadInputs(const Tensor& x, const Tensor& first, const Tensor& keys, const Tensor& values, const Tensor& pages,
             const Tensor& rows, const Tensor& route, const Tensor& background, double beta, const Optional& scales)
      : x(contiguous_of(x)),
        first(contiguous_of(first)),
        keys(contiguous_of(keys)),
        values(contiguous_of(values)),
        pages(contiguous_of(pages)),
        rows(contiguous_of(rows)),
        route(contiguous_of(route)),
        background(contiguous_of(background)),
        beta(static_cast<float>(beta)),
        scales(contiguous(scales)) {}

  void run(const Tensor& y, Tensor& out) const {
    const OnDeviceOf device(y);
    const int64_t tokens = x.size(0), width = x.size(1), max_pages = pages.size(1);
    const Tensor scores = scratch(y, corrigenda_associative_read_scratch_bytes(tokens, width, max_pages));
    check_launch(corrigenda_associative_read(
                     y.const_data_ptr(), dtype_code(y), x.const_data_ptr(), dtype_code(x), data<bool>(first),
                     keys.const_data_ptr(), dtype_code(keys), values.const_data_ptr(), dtype_code(values),
                     data<int32_t>(pages), data<int32_t>(rows), data<int32_t>(route), data<float>(background), beta,
                     data<float>(scales), tokens, width, y.size(1), max_pages, out.mutable_data_ptr(),
                     scores.mutable_data_ptr(), device.stream()),
                 "associative_read");
  }
};

Tensor associative_read(Tensor y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,
                        Tensor route, Tensor background, double beta, Optional scales) {
  y = contiguous_of(y);
  Tensor out = output_like(y);
  ReadInputs(x, first, keys, values, pages, rows, route, background, beta, scales).run(y, out);
  return out;
}

void associative_read_(Tensor y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,
                       Tensor route, Tensor background, double beta, Optional scales) {
  const ReadInputs inputs(x, first, keys, values, pages, rows, route, background, beta, scales);
  in_place(y, [&](const Tensor& before, Tensor& out) { inputs.run(before, out); });
}

std::tuple<Tensor, Tensor, Tensor> associative_read_backward(Tensor grad, Tensor x, Tensor first, Tensor keys,
                                                             Tensor values, Tensor pages, Tensor rows, Tensor route,
                                                             Tensor background, double beta,
                                                             std::vector<bool> needed) {
  const OnDeviceOf device(grad);
  grad = contiguous_of(grad);
  const ReadInputs in(x, first, keys, values, pages, rows, route, background, beta, std::nullopt);
  Tensor dx = gradient_of(in.x, needed[0]), dkeys = gradient_of(in.keys, needed[1]);
  Tensor dvalues = gradient_of(in.values, needed[2]);
  const int64_t tokens = x.size(0), max_pages = pages.size(1);
  const Tensor shares = scratch(grad, corrigenda_associative_read_backward_scratch_bytes(tokens, max_pages));
  check_launch(
      corrigenda_associative_read_backward(
          grad.const_data_ptr(), dtype_code(grad), in.x.const_data_ptr(), dtype_code(x), data<bool>(in.first),
          in.keys.const_data_ptr(), dtype_code(keys), in.values.const_data_ptr(), dtype_code(values),
          data<int32_t>(in.pages), data<int32_t>(in.rows), data<int32_t>(in.route), data<float>(in.background),
          in.beta, tokens, x.size(1), grad.size(1), rows.size(0), max_pages, keys.size(0), pointer(dx, needed[0]),
          pointer(dkeys, needed[1]), pointer(dvalues, needed[2]), shares.mutable_data_ptr(), device.stream()),
      "associative_read_backward");
  return {dx, dkeys, dvalues};
}

Tensor ties_merge(Tensor deltas, Tensor weights, std::vector<double> densities) {
  const OnDeviceOf device(deltas);
  deltas = contiguous_of(deltas);
  weights = contiguous_of(weights);
  std::vector<int64_t> shape;
  int64_t entries = 1;
  for (int64_t i = 1; i < deltas.dim(); i++) {
    shape.push_back(deltas.size(i));
    entries *= deltas.size(i);
  }
  std::vector<int64_t> keep;
  for (double density : densities) keep.push_back(std::max<int64_t>(static_cast<int64_t>(density * entries), 1));
  Tensor merged = torch::stable::new_empty(deltas, shape);
  const int64_t shards = deltas.size(0);
  const Tensor search = scratch(deltas, corrigenda_ties_merge_scratch_bytes(shards));
  check_launch(corrigenda_ties_merge(deltas.const_data_ptr(), data<float>(weights), keep.data(), shards, entries,
                                     dtype_code(deltas), CORRIGENDA_TIES_SAMPLED_FROM, merged.mutable_data_ptr(),
                                     search.mutable_data_ptr(), device.stream()),
               "ties_merge");
  return merged;
}

void masked_sgd_(Tensor delta, Tensor x, Tensor gradient, Tensor masks, Optional base, double learning_rate,
                 double decay, bool decay_masked, double limit) {
  const OnDeviceOf device(delta);
  x = contiguous_of(x);
  gradient = contiguous_of(gradient);
  masks = contiguous_of(masks);
  base = contiguous(base);
  const int64_t tokens = x.size(0), width = delta.size(0), outputs = delta.size(1);
  const Tensor parted = scratch(
      delta, corrigenda_masked_sgd_scratch_bytes(tokens, width, outputs, dtype_code(x), dtype_code(gradient)));
  in_place(delta, [&](const Tensor&, Tensor& out) {
    check_launch(corrigenda_masked_sgd(out.mutable_data_ptr<float>(), x.const_data_ptr(), dtype_code(x),
                                       gradient.const_data_ptr(), dtype_code(gradient), data<int32_t>(masks),
                                       base ? base->const_data_ptr() : nullptr, base ? dtype_code(*base) : FLOAT32,
                                       static_cast<float>(learning_rate), static_cast<float>(decay), decay_masked,
                                       static_cast<float>(limit), tokens, width, outputs, parted.mutable_data_ptr(),
                                       device.stream()),
                 "masked_sgd");
  });
}

std::tuple<Tensor, Tensor, Tensor> delta_linear(Tensor x, Tensor base, Tensor delta, Tensor offsets, Optional weight,
                                                bool activated, int64_t longest) {
  const OnDeviceOf device(x);
  x = contiguous_of(x);
  base = contiguous_of(base);
  delta = contiguous_of(delta);
  offsets = contiguous_of(offsets);
  weight = contiguous(weight);
  const int64_t tokens = x.size(0), width = x.size(1), outputs = delta.size(1), sequences = offsets.size(0) - 1;
  Tensor side = torch::stable::new_empty(x, {tokens, outputs}, ScalarType::Float);
  Tensor distance = torch::stable::new_empty(x, {tokens}, ScalarType::Float);
  Tensor score = torch::stable::new_empty(x, {sequences}, ScalarType::Float);
  const Tensor memory = scratch(x, corrigenda_delta_linear_scratch_bytes(tokens, width, outputs));
  check_launch(corrigenda_delta_linear(x.const_data_ptr(), dtype_code(x), base.const_data_ptr(), dtype_code(base),
                                       delta.const_data_ptr(), dtype_code(delta), data<int32_t>(offsets),
                                       data<float>(weight), activated, longest, tokens, width, outputs, sequences,
                                       side.mutable_data_ptr<float>(), distance.mutable_data_ptr<float>(),
                                       score.mutable_data_ptr<float>(), memory.mutable_data_ptr(), device.stream()),
               "delta_linear");
  return {side, distance, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CUDA, m) {
  m.impl("masked_linear", TORCH_BOX(&masked_linear));
  m.impl("masked_linear_", TORCH_BOX(&masked_linear_));
  m.impl("masked_linear_backward", TORCH_BOX(&masked_linear_backward));
  m.impl("associative_read", TORCH_BOX(&associative_read));
  m.impl("associative_read_", TORCH_BOX(&associative_read_));
  m.impl("associative_read_backward", TORCH_BOX(&associative_read_backward));
  m.impl("ties_merge", TORCH_BOX(&ties_merge));
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_));
  m.impl("delta_linear", TORCH_BOX(&delta_linear));
}

}  // namespace corrigenda
