// What the bindings of the CUDA kernels share.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

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

// Memory for one call, from torch's allocator, on the device of `like`.
inline Tensor scratch(const Tensor& like, std::size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

inline void check_launch(cudaError_t status, const char* op) {
  STD_TORCH_CHECK(status == cudaSuccess, op, " did not start on the GPU: ", cudaGetErrorString(status));
}

}  // namespace corrigenda
