// What the bindings of the CUDA kernels share.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "../cuda/interface.h"
#include "tensors.h"

// Weak: a torch without CUDA has no such symbol, and the library loads there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace corrigenda {

// Launches go to the device of a tensor, on torch's current stream there, for as long as this lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "the CUDA kernels need a torch that is built with CUDA");
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                    "torch gave no CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline int dtype_code(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return FLOAT32;
    case ScalarType::BFloat16: return BFLOAT16;
    case ScalarType::Half: return FLOAT16;
    case ScalarType::Char: return INT8;
    default: STD_TORCH_CHECK(false, "the CUDA kernels take float32, bfloat16, float16 and int8 tensors"); std::abort();
  }
}

// Start an op on the device of `like`.
template <class Arguments>
void start(const char* op, const Arguments& arguments, cudaError_t (*launcher)(const Arguments&, cudaStream_t),
           const Tensor& like) {
  const OnDeviceOf device(like);
  const cudaError_t status = launcher(arguments, device.stream());
  STD_TORCH_CHECK(status == cudaSuccess, op, " did not start on the GPU: ", cudaGetErrorString(status));
}

// The same, of `arguments` that still lack their scratch; it comes from torch's allocator.
template <class Arguments>
void start(const char* op, Arguments& arguments, std::size_t (*scratch_bytes)(const Arguments&),
           cudaError_t (*launcher)(const Arguments&, cudaStream_t), const Tensor& like) {
  const auto bytes = static_cast<int64_t>(scratch_bytes(arguments));
  Tensor scratch = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
  arguments.scratch = scratch.mutable_data_ptr();
  start(op, arguments, launcher, like);
}

// As `data`, of a tensor that is written.
template <class T>
T* mutable_data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Tensors on the device of `like`, to be written in full.
inline Tensor output_of(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline Tensor output_like(const Tensor& like) { return torch::stable::new_empty(like, like.sizes()); }

// A gradient by `like`, or one of no size where it is not wanted, and where the kernels write it.
struct Gradient {
  Tensor tensor;
  void* data;

  Gradient(const Tensor& like, bool needed)
      : tensor(needed ? output_like(like) : torch::stable::new_empty(like, std::vector<int64_t>(like.dim(), 0))),
        data(needed ? tensor.mutable_data_ptr() : nullptr) {}
};

// Run `op(y, out)` with out = y, also where y is a view whose rows or columns lie apart.
template <class Op>
void in_place(Tensor& y, const Op& op) {
  Tensor dense = torch::stable::contiguous(y);
  op(dense, dense);
  if (!y.is_contiguous()) torch::stable::copy_(y, dense);
}

}  // namespace corrigenda
