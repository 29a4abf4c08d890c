// Floats of three formats and int8, read and written as float32: what the kernels of the memories share.
#pragma once

#include "device.h"
#include "memories.h"

namespace corrigenda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(signed char value) { return static_cast<float>(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

// COUNT neighbours as one memory access.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T element[COUNT];
};

template <class T, int COUNT>
__device__ __forceinline__ Pack<T, COUNT> load_pack(const T* source) {
  return *reinterpret_cast<const Pack<T, COUNT>*>(source);
}

// An array whose format only the run knows: where a kernel touches it too seldom to be compiled for each format.
struct Elements {
  const void* data;
  int type;  // a Type

  __device__ __forceinline__ float operator[](int64_t i) const {
    switch (static_cast<Type>(type)) {
      case Type::bfloat16: return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
      case Type::float16: return to_float(static_cast<const __half*>(data)[i]);
      case Type::int8: return to_float(static_cast<const signed char*>(data)[i]);
      default: return static_cast<const float*>(data)[i];
    }
  }
};

struct MutableElements {
  void* data;
  int type;

  __device__ __forceinline__ void set(int64_t i, float value) const {
    switch (static_cast<Type>(type)) {
      case Type::bfloat16: static_cast<__nv_bfloat16*>(data)[i] = from_float<__nv_bfloat16>(value); break;
      case Type::float16: static_cast<__half*>(data)[i] = from_float<__half>(value); break;
      default: static_cast<float*>(data)[i] = value;
    }
  }

  // Bit for bit, also of a NaN: `source` has this array's format.
  __device__ __forceinline__ void copy(int64_t i, const void* source) const {
    if (static_cast<Type>(type) == Type::float32) {
      static_cast<uint32_t*>(data)[i] = static_cast<const uint32_t*>(source)[i];
    } else {
      static_cast<uint16_t*>(data)[i] = static_cast<const uint16_t*>(source)[i];
    }
  }
};

}  // namespace corrigenda
