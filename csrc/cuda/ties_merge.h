// ties_merge, for its binding.
#pragma once

#include "interface.h"

struct TiesMergeArguments {
  const void* deltas;  // [shards, entries]
  int deltas_dtype;
  const float* weights;      // [shards]
  const std::int64_t* keep;  // [shards], on the host: how many entries of each shard stay
  std::int64_t shards, entries;
  // Shards of at least so many entries are sampled first: CORRIGENDA_TIES_SAMPLED_FROM but in tests.
  std::int64_t sampled_from;
  void* merged;  // [entries], as deltas, written
  void* scratch;
};

extern "C" {
std::size_t corrigenda_ties_merge_scratch_bytes(const TiesMergeArguments& arguments);
cudaError_t corrigenda_ties_merge(const TiesMergeArguments& arguments, cudaStream_t stream);
}

// Below 4 million entries, a pass over all of them costs about as much as the launch of one more kernel.
constexpr std::int64_t CORRIGENDA_TIES_SAMPLED_FROM = 1 << 22;
