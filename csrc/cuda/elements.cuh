// Arrays whose format only the run knows: where a kernel touches them too seldom to be compiled for each format.
#pragma once

#include <type_traits>

#include "primitives.cuh"

struct Elements {
  const void* data;
  int dtype;

  __device__ __forceinline__ float operator[](std::int64_t i) const {
    switch (dtype) {
      case BFLOAT16: return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
      case FLOAT16: return to_float(static_cast<const __half*>(data)[i]);
      case INT8: return to_float(static_cast<const std::int8_t*>(data)[i]);
      default: return static_cast<const float*>(data)[i];
    }
  }
};

struct MutableElements {
  void* data;
  int dtype;

  __device__ __forceinline__ void set(std::int64_t i, float value) const {
    switch (dtype) {
      case BFLOAT16: static_cast<__nv_bfloat16*>(data)[i] = from_float<__nv_bfloat16>(value); break;
      case FLOAT16: static_cast<__half*>(data)[i] = from_float<__half>(value); break;
      default: static_cast<float*>(data)[i] = value;
    }
  }

  // Bit for bit, also of a NaN; `source` is of the same format.
  __device__ __forceinline__ void copy(std::int64_t i, const void* source) const {
    if (dtype == FLOAT32) {
      static_cast<std::uint32_t*>(data)[i] = static_cast<const std::uint32_t*>(source)[i];
    } else {
      static_cast<std::uint16_t*>(data)[i] = static_cast<const std::uint16_t*>(source)[i];
    }
  }
};

template <typename T>
constexpr int DTYPE_OF = FLOAT32;
template <>
inline constexpr int DTYPE_OF<__nv_bfloat16> = BFLOAT16;
template <>
inline constexpr int DTYPE_OF<__half> = FLOAT16;
template <>
inline constexpr int DTYPE_OF<std::int8_t> = INT8;

template <typename T, int COUNT>
__device__ __forceinline__ Vector<T, COUNT> load_vector(const T* source) {
  return *reinterpret_cast<const Vector<T, COUNT>*>(source);
}

// Element i as a T. Kernels for 16-bit formats are launched for arrays of that format alone.
template <typename T>
__device__ __forceinline__ T element_as(const Elements& array, std::int64_t i) {
  if constexpr (sizeof(T) == 2) {
    return static_cast<const T*>(array.data)[i];
  } else {
    return array[i];
  }
}

// COUNT neighbours of an array of any format, as float32; in one load where `packed` says that they are aligned so.
template <int COUNT>
__device__ __forceinline__ void load_floats(const Elements& array, std::int64_t place, bool packed,
                                            float (&out)[COUNT]) {
  if (!packed) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) out[i] = array[place + i];
  } else if (array.dtype == FLOAT32) {
    const float* source = static_cast<const float*>(array.data) + place;
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const Vector<float, 4> part = load_vector<float, 4>(source + i);
#pragma unroll
      for (int j = 0; j < 4; j++) out[i + j] = part.values[j];
    }
  } else if (array.dtype == BFLOAT16) {
    const auto part = load_vector<__nv_bfloat16, COUNT>(static_cast<const __nv_bfloat16*>(array.data) + place);
#pragma unroll
    for (int i = 0; i < COUNT; i++) out[i] = to_float(part.values[i]);
  } else {
    const auto part = load_vector<__half, COUNT>(static_cast<const __half*>(array.data) + place);
#pragma unroll
    for (int i = 0; i < COUNT; i++) out[i] = to_float(part.values[i]);
  }
}

template <int COUNT>
__device__ __forceinline__ void store_floats(const MutableElements& array, std::int64_t place,
                                             const float (&value)[COUNT]) {
  const auto store = [&](auto* target) {
    using T = std::remove_reference_t<decltype(*target)>;
    constexpr int PACK = COUNT < VECTOR_WIDTH<T> ? COUNT : VECTOR_WIDTH<T>;
#pragma unroll
    for (int i = 0; i < COUNT; i += PACK) {
      Vector<T, PACK> part;
#pragma unroll
      for (int j = 0; j < PACK; j++) part.values[j] = from_float<T>(value[i + j]);
      *reinterpret_cast<Vector<T, PACK>*>(target + place + i) = part;
    }
  };
  switch (array.dtype) {
    case BFLOAT16: store(static_cast<__nv_bfloat16*>(array.data)); break;
    case FLOAT16: store(static_cast<__half*>(array.data)); break;
    default: store(static_cast<float*>(array.data));
  }
}
