// The launchers of masked_linear.cu, associative_read.cu and ties_merge.cu. Arguments are what kernels/ops.py documents,
// contiguous, on the device of the stream; types are codes of `Type`; scratch comes from the caller.
#pragma once

#include <cstdint>

namespace corrigenda {

enum class Type : int { float32, bfloat16, float16, int8 };  // as in csrc/cpu/kernels.h

}  // namespace corrigenda

extern "C" {

// Scratch of ties_merge: so many bytes per shard, zero at first.
constexpr int64_t CORRIGENDA_TIES_SEARCH_BYTES = 40;
constexpr int64_t CORRIGENDA_TIES_HISTOGRAM_BYTES = 8192 * 4;

// Shards of at least so many entries are sampled before they are counted: below, a pass over all of them costs about as
// much as its launch.
constexpr int64_t CORRIGENDA_TIES_SAMPLED_FROM = 1 << 22;

// `keep`, on the host, says how many entries of each shard to keep.
cudaError_t corrigenda_ties_merge(const void* deltas, const float* weights, const int64_t* keep, int shards,
                                  int64_t entries, int type, void* search, void* histogram, int64_t sampled_from,
                                  void* merged, cudaStream_t stream);

}  // extern "C"
