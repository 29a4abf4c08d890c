// nearest_key, for its binding.
#pragma once

#include "interface.h"

struct NearestKeyArguments {
  const void* query;  // [batch, width]
  int query_dtype;    // of stored too
  const void* stored;  // [rows, width]
  const float* radius;  // [rows], or null
  bool cosine;
  std::int64_t batch, rows, width;
  const std::int32_t* valid;         // [1], or null
  const std::int32_t* query_group;   // [batch], or null
  const std::int32_t* stored_group;  // [rows], or null
  std::int32_t* index;               // [batch], written
  float* distance;                   // [batch], written
  std::int32_t* route;               // [batch], written
  void* scratch;
};

extern "C" {
std::size_t corrigenda_nearest_key_scratch_bytes(const NearestKeyArguments& arguments);
cudaError_t corrigenda_nearest_key(const NearestKeyArguments& arguments, cudaStream_t stream);
}
