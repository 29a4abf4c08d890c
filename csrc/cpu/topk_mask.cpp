// Pools a sequence, turns magnitudes into keys, and selects the k largest.
#include "buffer.h"
#include "topk_select.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

constexpr int tokens_at_once = 4;  // so many rows of x are read side by side for one pass over the sums

// A magnitude as a number that orders likewise; NaN counts as infinite.
Ints key_of(Floats value) {
  const Ints magnitude = bit_cast<Ints>(value) & 0x7FFFFFFF;
  return magnitude < largest_key ? magnitude : ints(largest_key);
}

// One sequence's weighted mean less the background, as keys.
template <class T>
class Pool {
 public:
  Pool(const TopkMask& op, float* sums) : op_(op), sums_(sums) {}

  // Sum all tokens but the last few; `use` gets a function that yields the keys from i on, the last few added.
  template <class Use>
  void operator()(int64_t start, int64_t end, const Use& use) {
    float mass = 0;
    for (int64_t t = start; t < end; ++t) mass += weight(t);
    if (mass == 0) return use(keys<0>(start, mass, false));
    int64_t token = start;
    for (; end - token > tokens_at_once; token += tokens_at_once) add(token, token > start);
    switch (end - token) {
      case 1: return use(keys<1>(token, mass, token > start));
      case 2: return use(keys<2>(token, mass, token > start));
      case 3: return use(keys<3>(token, mass, token > start));
      case 4: return use(keys<4>(token, mass, token > start));
    }
  }

 private:
  template <int tokens>
  struct Weights {
    Floats of[tokens + 1];
  };

  float weight(int64_t token) const { return op_.weight ? op_.weight[token] : 1.0f; }

  // A function that yields the sums from i on, read by `read`, with the weighted rows of `tokens` tokens added.
  template <int tokens>
  auto sums(int64_t token, bool summed) const {
    Weights<tokens> weights{};
    for (int t = 0; t < tokens; ++t) weights.of[t] = floats(weight(token + t));
    const T* x = static_cast<const T*>(op_.x) + token * op_.width;
    return [weights, x, summed, before = sums_, width = op_.width](int64_t i, const auto& read) {
      Floats sum = summed ? read(before + i) : Floats{};
      for (int t = 0; t < tokens; ++t) sum += weights.of[t] * read(x + t * width + i);
      return sum;
    };
  }

  template <int tokens>
  auto keys(int64_t token, float mass, bool summed) const {
    const bool divide = mass != 0 && mass != 1;
    return [sums = sums<tokens>(token, summed), divide, mass = floats(mass), background = op_.background,
            width = op_.width](int64_t i) {
      const auto key = [&](const auto& read) {
        Floats value = sums(i, read);
        if (divide) value /= mass;
        if (background) value -= read(background + i);
        return key_of(value);
      };
      if (i + lanes <= width) return key([](const auto* from) { return load(from); });
      const Ints last = key([&](const auto* from) { return load_some(from, width - i); });
      return lane_numbers < static_cast<int32_t>(width - i) ? last : ints(-1);
    };
  }

  void add(int64_t token, bool summed) {
    const auto all = sums<tokens_at_once>(token, summed);
    int64_t i = 0;
    for (; i + lanes <= op_.width; i += lanes) store(sums_ + i, all(i, [](const auto* from) { return load(from); }));
    if (const int64_t rest = op_.width - i) {
      store_some(sums_ + i, all(i, [&](const auto* from) { return load_some(from, rest); }), rest);
    }
  }

  const TopkMask& op_;
  float* sums_;
};

// One bit per byte, its highest.
int32_t pack(const uint8_t* bytes) {
#if defined(__AVX2__)
  return _mm256_movemask_epi8(load_vector<__m256i>(bytes));
#elif defined(__x86_64__)
  return _mm_movemask_epi8(load_vector<__m128i>(bytes)) | _mm_movemask_epi8(load_vector<__m128i>(bytes + 16)) << 16;
#else
  uint32_t word = 0;
  for (int i = 0; i < 32; ++i) word |= static_cast<uint32_t>(bytes[i] >> 7) << i;
  return static_cast<int32_t>(word);
#endif
}

// Where each entry's bit goes, as int32; false if the permutation leaves its range.
bool place(const TopkMask& op, int32_t* positions) {
  uint64_t highest = 0;
  for (int64_t i = 0; i < op.width; ++i) {
    const auto position = static_cast<uint64_t>(op.permutation ? op.permutation[i] : i);
    highest = position > highest ? position : highest;
    positions[i] = static_cast<int32_t>(position);
  }
  return highest < static_cast<uint64_t>(op.width);
}

int64_t within(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

template <class T>
bool make_masks(const TopkMask& op, int64_t begin, int64_t end) {
  static thread_local Buffer<int32_t> position_memory;
  static thread_local Buffer<float> sum_memory;
  static thread_local Buffer<uint8_t> byte_memory;
  const int64_t words = (op.width + 31) / 32;
  int32_t* positions = position_memory.reserve(op.width + lanes);
  uint8_t* bytes = byte_memory.reserve(words * 32);
  if (!place(op, positions)) return false;
  Pool<T> pool(op, sum_memory.reserve(op.width));
  Selection select(op.width);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t start = within(op.offsets[b], 0, op.tokens);
    pool(start, within(op.offsets[b + 1], start, op.tokens), [&](const auto& keys) {
      const int32_t* chosen = select(keys, positions, op.k);
      // Through bytes, as setting bits of a word makes each wait for the one before.
      __builtin_memset(bytes, 0, static_cast<size_t>(words) * 32);
      for (int64_t i = 0; i < op.k; ++i) bytes[static_cast<uint32_t>(chosen[i])] = 0x80;
    });
    for (int64_t w = 0; w < words; ++w) op.masks[b * words + w] = pack(bytes + 32 * w);
  }
  return true;
}

}  // namespace

bool topk_mask(const TopkMask& op, int64_t begin, int64_t end) {
  switch (op.type) {
    case Type::float32: return make_masks<float>(op, begin, end);
    case Type::bfloat16: return make_masks<BFloat16>(op, begin, end);
    case Type::float16: return make_masks<Float16>(op, begin, end);
    default: return false;
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
