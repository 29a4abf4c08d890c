// ties_merge, for its binding.
#pragma once

#include "interface.h"

extern "C" {
std::size_t corrigenda_ties_merge_scratch_bytes(std::int64_t shards);

// deltas [shards, entries] and merged [entries] of one type; `keep`, on the host: how many entries of each shard stay.
// Shards of at least `sampled_from` entries are sampled first: CORRIGENDA_TIES_SAMPLED_FROM but in tests.
cudaError_t corrigenda_ties_merge(const void* deltas, const float* weights, const std::int64_t* keep,
                                  std::int64_t shards, std::int64_t entries, int dtype, std::int64_t sampled_from,
                                  void* merged, void* scratch, cudaStream_t stream);
}

// Below 4 million entries, a pass over all of them costs about as much as the launch of one more kernel.
constexpr std::int64_t CORRIGENDA_TIES_SAMPLED_FROM = 1 << 22;
