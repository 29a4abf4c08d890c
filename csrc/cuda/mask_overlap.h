// mask_overlap, for its binding and for mask_route.
#pragma once

#include "interface.h"

struct MaskOverlapArguments {
  const std::uint32_t* query;   // [batch, words]
  const std::uint32_t* stored;  // [rows, words]
  std::int64_t batch, rows, words;
  const std::int32_t* valid;         // [1], or null
  const std::int32_t* query_group;   // [batch], or null
  const std::int32_t* stored_group;  // [rows], or null
  std::int32_t* index;               // [batch], written
  std::int32_t* overlap;             // [batch], written
  void* scratch;
};

// What the kernels take; of mask_route too.
struct OverlapSearch : MaskOverlapArguments {
  unsigned long long* best;     // [batch] scratch, zero when the grid before has ended
  unsigned* finished;           // [batch] scratch, likewise
  const std::int32_t* minimum;  // [1]; with it `route` is written, which is null without
  std::int32_t* route;          // [batch]
  std::int64_t prefetched;      // rows to fetch into L2 while the grid before still runs
};

// Bytes of `best` and `finished`, in this order.
inline std::size_t overlap_scratch_bytes(std::int64_t batch) { return static_cast<std::size_t>(batch) * 12; }

// `early`: the grid before it on the stream lets it start early (let_next_grid_start), and nothing else follows it.
cudaError_t launch_overlap(const OverlapSearch& arguments, bool early, cudaStream_t stream);

extern "C" {
std::size_t corrigenda_mask_overlap_scratch_bytes(const MaskOverlapArguments& arguments);
cudaError_t corrigenda_mask_overlap(const MaskOverlapArguments& arguments, cudaStream_t stream);
}
