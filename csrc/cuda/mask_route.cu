// mask_route: the kernels of topk_mask and mask_overlap in a row, two launches for short sequences.
//
// One launch would have every block select for itself what it then counts: of 14336 features with background and
// permutation that is 200 KB a block, 26 MB over 132 processors, more than the 18 MB of 10000 stored masks. Instead the
// second grid starts while the first runs, so that between them there is no launch to wait for; and the first clears
// the second's scratch.
#include "mask_route.h"

#include "mask_overlap.h"
#include "primitives.cuh"
#include "topk_mask.h"

namespace {

// Where the parts of the scratch begin: the best rows, the query masks, the pooled features, at 16 bytes each.
struct Parts {
  std::size_t masks, pooled, end;
};

Parts scratch_parts(const FeatureArguments& features) {
  const std::size_t masks = ceil_div(overlap_scratch_bytes(features.batch), 16) * 16;
  const std::size_t pooled = masks + ceil_div(features.batch * ceil_div(features.width, 32) * 4, 16) * 16;
  return {masks, pooled, pooled + fingerprint_scratch_bytes(features)};
}

}  // namespace

extern "C" std::size_t corrigenda_mask_route_scratch_bytes(const MaskRouteArguments& arguments) {
  return scratch_parts(arguments).end;
}

extern "C" cudaError_t corrigenda_mask_route(const MaskRouteArguments& arguments, cudaStream_t stream) {
  const Parts parts = scratch_parts(arguments);
  auto* bytes = static_cast<unsigned char*>(arguments.scratch);
  auto* best = reinterpret_cast<unsigned long long*>(bytes);
  auto* finished = reinterpret_cast<unsigned*>(best + arguments.batch);
  auto* masks = reinterpret_cast<std::uint32_t*>(bytes + parts.masks);
  auto* pooled = reinterpret_cast<float*>(bytes + parts.pooled);
  const cudaError_t status = launch_fingerprint({arguments, pooled, masks, best, finished}, stream);
  if (status != cudaSuccess) return status;
  OverlapSearch search{};
  search.query = masks;
  search.stored = arguments.stored;
  search.batch = arguments.batch;
  search.rows = arguments.rows;
  search.words = ceil_div(arguments.width, 32);
  search.valid = arguments.valid;
  search.query_group = arguments.query_group;
  search.stored_group = arguments.stored_group;
  search.index = arguments.nearest;
  search.overlap = arguments.overlap;
  search.best = best;
  search.finished = finished;
  search.minimum = arguments.minimum;
  search.route = arguments.route;
  return launch_overlap(search, true, stream);
}
