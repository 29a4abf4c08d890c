// A second device whose memory is the CPU's. Every operation runs on the CPU, over the same memory; but where CUDA
// refuses a tensor of the CPU beside its own, so does this device.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace {

constexpr auto kOther = c10::DeviceType::PrivateUse1;
const c10::Device other{kOther, 0};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* kept = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
    return {kept->get(), kept, [](void* pointer) { delete static_cast<c10::DataPtr*>(pointer); }, other};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} allocator;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kOther> {
  c10::Device exchangeDevice(c10::Device) const override { return other; }
  c10::Device getDevice() const override { return other; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, other); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, other); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

// The memory of a storage as one on the other side: the same pointer, whose owner lives on with it.
c10::Storage seen_from(const c10::Storage& owner, c10::Device side) {
  auto release = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), owner.nbytes(),
      c10::DataPtr(owner.mutable_data(), new c10::Storage(owner), release, side), c10::GetAllocator(side.type()), true);
}

// A tensor of the shape of `like`. A view has the keys of what it is a view of: in inference mode they may differ.
at::Tensor over(const c10::Storage& storage, const at::Tensor& like, const at::Tensor& viewed = {}) {
  const auto key = storage.device().is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  auto made = viewed.defined()
                  ? at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(storage),
                                                             viewed.key_set(), like.dtype())
                  : at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key),
                                                             like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

// One call of an operation: its arguments go to the CPU, its results come back.
struct Call {
  std::unordered_map<c10::StorageImpl*, c10::Storage> on_cpu;  // by the storage on the device
  std::vector<std::pair<at::Tensor, at::Tensor>> moved;        // (on the device, on the CPU)

  at::Tensor lowered(const at::Tensor& tensor) {
    for (auto& [given, made] : moved)
      if (given.is_same(tensor)) return made;
    auto* key = tensor.storage().unsafeGetStorageImpl();
    auto found = on_cpu.find(key);
    if (found == on_cpu.end()) found = on_cpu.emplace(key, seen_from(tensor.storage(), c10::kCPU)).first;
    return moved.emplace_back(tensor, over(found->second, tensor)).second;
  }

  at::Tensor raised(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (auto& [given, made] : moved)
      if (made.is_same(tensor)) return given;
    for (auto& [given, made] : moved)
      if (made.storage().is_alias_of(tensor.storage())) return over(given.storage(), tensor, given);
    return over(seen_from(tensor.storage(), other), tensor);
  }

  // What is written may have another shape or memory now.
  void take_back() {
    for (auto& [given, made] : moved) {
      auto* impl = given.unsafeGetTensorImpl();
      if (made.storage().data() != given.storage().data())
        impl->set_storage_keep_dtype(seen_from(made.storage(), other));
      if (made.sizes() != given.sizes() || made.strides() != given.strides())
        impl->set_sizes_and_strides(made.sizes(), made.strides(), made.storage_offset());
    }
  }
};

// Whether CUDA takes this tensor of the CPU beside its own: a number in elementwise operations, and indices.
bool taken(const c10::OperatorHandle& op, const c10::Argument& argument, const at::Tensor& tensor) {
  static const std::unordered_set<std::string> elementwise{"aten::floor_divide", "aten::fill_", "aten::masked_fill_",
                                                           "aten::masked_fill", "aten::_index_put_impl_"};
  if (argument.alias_info() && argument.alias_info()->isWrite()) return false;
  if (argument.name() == "indices") return true;
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) return true;
  return tensor.dim() == 0 && (op.hasTag(at::Tag::pointwise) || elementwise.count(op.schema().name()));
}

void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Call call;
  const auto& schema = op.schema();
  for (size_t i = 0, begin = stack->size() - schema.arguments().size(); begin + i < stack->size(); ++i) {
    auto lower = [&](const at::Tensor& tensor) {
      if (tensor.defined() && tensor.device() == other) return call.lowered(tensor);
      TORCH_CHECK(!tensor.defined() || taken(op, schema.arguments()[i], tensor),
                  "Expected all tensors to be on the same device, but found at least two devices, ", other,
                  " and cpu! (when checking argument ", schema.arguments()[i].name(), " of ", schema.name(), ")");
      return tensor;
    };
    auto& value = (*stack)[begin + i];
    if (value.isTensor()) {
      value = lower(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(lower(tensor));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList())
        list.push_back(tensor ? std::optional<at::Tensor>(lower(*tensor)) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    } else {
      TORCH_CHECK(!value.isGenerator(), "Expected a generator of the device ", other, ", but found one of the cpu");
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.take_back();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.raised(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(call.raised(tensor));
      value = list;
    }
  }
}

at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  const auto type = c10::scalarTypeToTypeMeta(c10::dtype_or_default(dtype));
  int64_t entries = 1;
  for (size_t i = 0; i < sizes.size(); ++i) entries += (sizes[i] - 1) * strides[i];
  if (c10::multiply_integers(sizes) == 0) entries = 0;
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                                             entries * type.itemsize(), &allocator, true));
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                       c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type);
  made.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return made;
}

at::Tensor empty(c10::IntArrayRef sizes, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat>) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return empty_strided(sizes, strides, dtype, {}, {}, {});
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  Call call;
  auto lower = [&](const at::Tensor& tensor) { return tensor.device() == other ? call.lowered(tensor) : tensor; };
  lower(to).copy_(lower(from));
  return to;
}

// Which way attention takes: a product, softmax, a product. The fused ones are kernels of other devices.
int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_fused_sdp_choice", &plain_attention);
}

const bool registered = [] {
  c10::SetAllocator(kOther, &allocator);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace
