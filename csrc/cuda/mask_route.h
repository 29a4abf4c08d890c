// mask_route, for its binding.
#pragma once

#include "topk_mask.h"

struct MaskRouteArguments : FeatureArguments {
  const std::uint32_t* stored;  // [rows, words]
  std::int64_t rows;
  const std::int32_t* minimum;       // [1]
  const std::int32_t* valid;         // [1], or null
  const std::int32_t* query_group;   // [batch], or null
  const std::int32_t* stored_group;  // [rows], or null
  std::int32_t* nearest;             // [batch], written
  std::int32_t* overlap;             // [batch], written
  std::int32_t* route;               // [batch], written
  void* scratch;
};

extern "C" {
std::size_t corrigenda_mask_route_scratch_bytes(const MaskRouteArguments& arguments);
cudaError_t corrigenda_mask_route(const MaskRouteArguments& arguments, cudaStream_t stream);
}
