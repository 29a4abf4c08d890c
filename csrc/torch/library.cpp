// The raw ops, in a namespace of their own so that they never contend with the public ones: same names, same arguments
// (kernels/schemas.py). Implementations: cpu_*.cpp here, cuda_*.cpp in the CUDA library.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(corrigenda_native, m) {
  m.def(
      "topk_mask(Tensor x, Tensor offsets, int k, Tensor? weight, Tensor? background, Tensor? permutation) -> Tensor");
  m.def(
      "mask_overlap(Tensor query, Tensor stored, Tensor? valid, Tensor? query_group, Tensor? stored_group)"
      " -> (Tensor, Tensor)");
  m.def(
      "mask_route(Tensor x, Tensor offsets, int k, Tensor? weight, Tensor? background, Tensor? permutation,"
      " Tensor stored, Tensor minimum, Tensor? valid, Tensor? query_group, Tensor? stored_group)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "token_overlap(Tensor query, Tensor stored, Tensor rarity, float extra_weight, Tensor? valid,"
      " Tensor? query_group, Tensor? stored_group) -> (Tensor, Tensor, Tensor)");
  m.def(
      "nearest_key(Tensor query, Tensor stored, Tensor? radius, bool cosine, Tensor? valid, Tensor? query_group,"
      " Tensor? stored_group) -> (Tensor, Tensor, Tensor)");
  m.def("masked_linear(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route) -> Tensor");
  m.def("masked_linear_(Tensor(a!) y, Tensor x, Tensor memory, Tensor masks, Tensor route) -> ()");
  m.def(
      "masked_linear_backward(Tensor grad, Tensor x, Tensor memory, Tensor masks, Tensor route, bool[] needed)"
      " -> (Tensor, Tensor)");
  m.def(
      "associative_read(Tensor y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,"
      " Tensor route, Tensor background, float beta, Tensor? scales) -> Tensor");
  m.def(
      "associative_read_(Tensor(a!) y, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows,"
      " Tensor route, Tensor background, float beta, Tensor? scales) -> ()");
  m.def(
      "associative_read_backward(Tensor grad, Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages,"
      " Tensor rows, Tensor route, Tensor background, float beta, bool[] needed) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adapter_linear_(Tensor(a!) y, Tensor x, Tensor down, Tensor up, Tensor block_of, Tensor route) -> ()");
  m.def("ties_merge(Tensor deltas, Tensor weights, float[] densities) -> Tensor");
  m.def(
      "masked_sgd_(Tensor(a!) delta, Tensor x, Tensor gradient, Tensor masks, Tensor? base, float learning_rate,"
      " float decay, bool decay_masked, float limit) -> ()");
  m.def(
      "delta_linear(Tensor x, Tensor base, Tensor delta, Tensor offsets, Tensor? weight, bool activated, int longest)"
      " -> (Tensor, Tensor, Tensor)");
  m.def("label_losses(Tensor hidden, Tensor weight, Tensor labels) -> (Tensor, Tensor)");
  // For tests and reports: which instruction set the CPU kernels use, and choosing one by name (false: not here).
  m.def("cpu_instructions() -> str");
  m.def("select_cpu_instructions(str name) -> bool");
}
