// ties_merge on CPU tensors: where the search for each shard's threshold looks, then the merge.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <vector>

#include "../cpu/kernels.h"
#include "cpu_tensors.h"

namespace corrigenda {
namespace {

constexpr int32_t largest_key = 0x7FFFFFFF;

// 2 MB of counts, which the second cache holds: wide enough for the float32 keys near a threshold, one bin a key.
constexpr int64_t bins = 1 << 19;

// With so many samples 2% of a shard's entries are near its threshold, and taking them costs a hundredth of a pass.
constexpr int64_t samples = 32768;

// Below, sorting beats clearing the histogram.
constexpr int64_t few = 65536;

// Of entries counted by one thread at a time.
constexpr int64_t grain = 1 << 18;

// The bits of an entry without its sign: they order magnitudes, with NaN above all.
int32_t key_of(Type type, const void* entries, int64_t i) {
  if (type != Type::float32) return static_cast<const uint16_t*>(entries)[i] & 0x7FFF;
  return static_cast<const int32_t*>(entries)[i] & largest_key;
}

// The k-th largest of keys, reordering them.
int32_t kth_largest(std::vector<int32_t>& keys, int64_t k) {
  std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<>());
  return keys[k - 1];
}

struct Interval {
  int32_t low, high;
};

// Where the key of rank `keep` is almost surely, from keys at random places: 4.5 standard deviations to either side.
Interval guess(Type type, const void* entries, int64_t count, int64_t keep) {
  std::vector<int32_t> keys(samples);
  uint64_t state = 0;
  for (int32_t& key : keys) {  // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    key = key_of(type, entries, static_cast<int64_t>((z >> 11) * 0x1p-53 * static_cast<double>(count)));
  }
  const double share = static_cast<double>(keep) / static_cast<double>(count), rank = share * samples;
  const double margin = 4.5 * std::sqrt(rank * (1 - share)) + 2;
  const int64_t first = static_cast<int64_t>(rank - margin), last = static_cast<int64_t>(rank + margin) + 1;
  return {last > samples ? 0 : kth_largest(keys, last), first < 1 ? largest_key : kth_largest(keys, first)};
}

// The key of rank `keep` among the entries of a shard, from the largest.
int32_t threshold_key(Type type, const void* entries, int64_t count, int64_t keep) {
  if (keep == count) return 0;
  if (count <= few) {
    std::vector<int32_t> keys(count);
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(type, entries, i);
    return kth_largest(keys, keep);
  }
  Interval interval = guess(type, entries, count, keep);
  std::vector<uint32_t> histogram;
  for (;;) {
    const int64_t width = int64_t{interval.high} - interval.low + 1;
    int shift = 0;
    while ((width - 1) >> shift >= bins) ++shift;
    histogram.assign(((width - 1) >> shift) + 1, 0);
    int64_t above = 0;
    std::mutex merging;
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      std::vector<uint32_t> own(histogram.size());
      MagnitudeCount op = {type, entries, interval.low, interval.high, shift, own.data(), 0};
      kernels().count_magnitudes(op, begin, end);
      const std::lock_guard<std::mutex> lock(merging);
      above += op.above;
      for (size_t bin = 0; bin < own.size(); ++bin) histogram[bin] += own[bin];
    });
    int64_t left = keep - above, bin = static_cast<int64_t>(histogram.size()) - 1;
    for (; left > 0 && bin >= 0 && histogram[bin] < left; --bin) left -= histogram[bin];
    if (left <= 0 || bin < 0) {  // the guess was wrong
      interval = {0, largest_key};
      continue;
    }
    const int64_t low = interval.low + (bin << shift);
    if (shift == 0) return static_cast<int32_t>(low);
    const int64_t high = std::min<int64_t>(interval.high, low + (int64_t{1} << shift) - 1);
    interval = {static_cast<int32_t>(low), static_cast<int32_t>(high)};
  }
}

// The bits of a key's magnitude as a float32; a NaN becomes the infinity that it counts as.
int32_t as_float32(Type type, int32_t key) {
  switch (type) {
    case Type::bfloat16: return std::min(key, 0x7F80) << 16;
    case Type::float16: {
      if (key >= 0x7C00) return 0x7F800000;
      const float value = std::ldexp(static_cast<float>(key < 0x400 ? key : (key & 0x3FF) | 0x400),
                                     key < 0x400 ? -24 : (key >> 10) - 25);
      int32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      return bits;
    }
    default: return std::min(key, 0x7F800000);
  }
}

Tensor ties_merge(Tensor deltas, Tensor weights, std::vector<double> densities) {
  deltas = torch::stable::contiguous(deltas);
  weights = torch::stable::contiguous(weights);
  Tensor merged = torch::stable::new_empty(deltas, deltas.sizes().slice(1));
  TiesMerge op = {};
  op.type = type(deltas), op.deltas = deltas.const_data_ptr(), op.shards = deltas.size(0);
  op.entries = merged.numel(), op.weights = data<float>(weights), op.merged = merged.mutable_data_ptr();
  if (op.entries == 0) return merged;
  std::vector<int32_t> thresholds;
  for (int64_t s = 0; s < op.shards; ++s) {
    const int64_t size = op.type == Type::float32 ? 4 : 2;
    const void* shard = static_cast<const char*>(op.deltas) + s * op.entries * size;
    const int64_t keep = std::max<int64_t>(1, static_cast<int64_t>(densities[s] * static_cast<double>(op.entries)));
    thresholds.push_back(as_float32(op.type, threshold_key(op.type, shard, op.entries, keep)));
  }
  op.thresholds = thresholds.data();
  torch::stable::parallel_for(0, (op.entries + merge_block - 1) / merge_block, 16,
                              [&](int64_t begin, int64_t end) { kernels().ties_merge(op, begin, end); });
  return merged;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CPU, m) { m.impl("ties_merge", TORCH_BOX(&ties_merge)); }

}  // namespace corrigenda
