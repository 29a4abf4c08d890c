// Two streaming passes: one that counts magnitudes, whose few entries near the threshold alone reach a histogram, and
// one that merges all shards at once.
#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// Bit i is set where lane i is -1.
inline uint32_t lane_bits(Ints condition) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(condition));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(condition)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(bit_cast<__m128>(condition)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= static_cast<uint32_t>(condition[i] & 1) << i;
  return bits;
#endif
}

class Counter {
 public:
  explicit Counter(MagnitudeCount& op) : op_(op), low_(ints(op.low)), high_(ints(op.high)) {}
  ~Counter() {
    for (int i = 0; i < lanes; ++i) op_.above += static_cast<uint32_t>(above_[i]);
  }

  void add(Ints keys) {
    const Ints above = keys > high_;
    above_ -= above;
    for (uint32_t bits = lane_bits((keys >= low_) & ~above); bits; bits &= bits - 1)
      ++op_.histogram[(keys[__builtin_ctz(bits)] - op_.low) >> op_.shift];
  }

  void add(int32_t key) {
    if (key > op_.high)
      ++op_.above;
    else if (key >= op_.low)
      ++op_.histogram[(key - op_.low) >> op_.shift];
  }

 private:
  MagnitudeCount& op_;
  const Ints low_, high_;
  Ints above_ = {};  // of a part of at most 2^31 vectors
};

void count(MagnitudeCount& op, const float* entries, int64_t begin, int64_t end) {
  Counter counter(op);
  for (; begin + lanes <= end; begin += lanes) counter.add(load_vector<Ints>(entries + begin) & 0x7FFFFFFF);
  for (; begin < end; ++begin) counter.add(bit_cast<int32_t>(entries[begin]) & 0x7FFFFFFF);
}

// Two keys lie in each 32 bits; their order does not matter.
void count(MagnitudeCount& op, const uint16_t* entries, int64_t begin, int64_t end) {
  Counter counter(op);
  for (; begin + 2 * lanes <= end; begin += 2 * lanes) {
    const Ints words = load_vector<Ints>(entries + begin);
    counter.add(words & 0x7FFF);
    counter.add((words >> 16) & 0x7FFF);
  }
  for (; begin < end; ++begin) counter.add(static_cast<int32_t>(entries[begin] & 0x7FFF));
}

// The entries [j, j + lanes) of all shards, merged; `load_shard(s)` loads those of shard s.
template <class Load>
inline Floats merge(const TiesMerge& op, Load&& load_shard) {
  Floats sum = {}, plus = {}, plus_mass = {}, minus = {}, minus_mass = {};
  for (int64_t s = 0; s < op.shards; ++s) {
    const Floats delta = load_shard(s), weight = floats(op.weights[s]);
    // As integers, so that NaN counts as infinitely large.
    const Ints kept = (bit_cast<Ints>(delta) & 0x7FFFFFFF) >= ints(op.thresholds[s]);
    const Floats part = select<Floats>(kept, weight * delta, Floats{});
    const Ints positive = part > 0, negative = ~positive & (part != 0);  // NaN goes with minus, as NaN >= 0 is false
    sum += part;
    plus += select<Floats>(positive, part, Floats{});
    plus_mass += select<Floats>(positive, weight, Floats{});
    minus += select<Floats>(negative, part, Floats{});
    minus_mass += select<Floats>(negative, weight, Floats{});
  }
  const Ints elected = sum >= 0;
  const Floats total = select<Floats>(elected, plus, minus), mass = select<Floats>(elected, plus_mass, minus_mass);
  return select<Floats>(mass == 0, Floats{}, total / mass);
}

}  // namespace

void count_magnitudes(MagnitudeCount& op, int64_t begin, int64_t end) {
  if (op.type == Type::float32)
    count(op, static_cast<const float*>(op.entries), begin, end);
  else
    count(op, static_cast<const uint16_t*>(op.entries), begin, end);
}

void ties_merge(const TiesMerge& op, int64_t begin, int64_t end) {
  const int64_t to = end * merge_block < op.entries ? end * merge_block : op.entries;
  with_element(op.type, [&](auto element) {
    using Delta = decltype(element);
    if constexpr (sizeof(Delta) > 1) {
      const auto* deltas = static_cast<const Delta*>(op.deltas);
      auto* merged = static_cast<Delta*>(op.merged);
      int64_t j = begin * merge_block;
      for (; j + lanes <= to; j += lanes)
        store(merged + j, merge(op, [&](int64_t s) { return load(deltas + s * op.entries + j); }));
      if (j < to)
        store_some(merged + j, merge(op, [&](int64_t s) { return load_some(deltas + s * op.entries + j, to - j); }),
                   to - j);
    }
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
