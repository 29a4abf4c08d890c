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

Parts scratch_parts(std::int64_t tokens, std::int64_t batch, std::int64_t width) {
  const std::size_t masks = ceil_div(overlap_scratch_bytes(batch), 16) * 16;
  const std::size_t pooled = masks + ceil_div(batch * ceil_div(width, 32) * 4, 16) * 16;
  return {masks, pooled, pooled + fingerprint_scratch_bytes(tokens, batch, width)};
}

}  // namespace

extern "C" std::size_t corrigenda_mask_route_scratch_bytes(std::int64_t tokens, std::int64_t batch,
                                                           std::int64_t width) {
  return scratch_parts(tokens, batch, width).end;
}

extern "C" cudaError_t corrigenda_mask_route(const void* x, int dtype, const std::int32_t* offsets,
                                             std::int64_t tokens, std::int64_t batch, std::int64_t width,
                                             std::int64_t k, const float* weight, const float* background,
                                             const std::int64_t* permutation, const std::int32_t* stored,
                                             std::int64_t rows, const std::int32_t* minimum,
                                             const std::int32_t* valid, const std::int32_t* query_group,
                                             const std::int32_t* stored_group, std::int32_t* nearest,
                                             std::int32_t* overlap, std::int32_t* route, void* scratch,
                                             cudaStream_t stream) {
  const Parts parts = scratch_parts(tokens, batch, width);
  auto* bytes = static_cast<unsigned char*>(scratch);
  auto* best = reinterpret_cast<unsigned long long*>(bytes);
  auto* finished = reinterpret_cast<unsigned*>(best + batch);
  auto* masks = reinterpret_cast<std::uint32_t*>(bytes + parts.masks);
  auto* pooled = reinterpret_cast<float*>(bytes + parts.pooled);
  const cudaError_t status =
      launch_fingerprint({x, dtype, offsets, tokens, batch, width, k, weight, background, permutation, pooled, masks,
                          best, finished},
                         stream);
  if (status != cudaSuccess) return status;
  return launch_overlap({masks, reinterpret_cast<const std::uint32_t*>(stored), batch, rows, ceil_div(width, 32),
                         valid, query_group, stored_group, best, finished, nearest, overlap, minimum, route, 0},
                        true, stream);
}
