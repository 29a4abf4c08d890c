#include "buffer.h"
#include "topk_select.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

constexpr int tokens_at_once = 4;  // so many rows of x are read side by side for one pass over the sums

// A magnitude as a number that orders likewise; NaN counts as infinite.
Ints key_of(Floats value) {
  const Ints magnitude = bit_cast<Ints>(value) & 0x7FFFFFFF;
  return magnitude > largest_key ? ints(largest_key) : magnitude;
}

// One sequence's weighted mean less the background, as keys.
template <class T>
class Pool {
 public:
  Pool(const TopkMask& op, int32_t* keys) : op_(op), keys_(keys) {}

  void operator()(int64_t start, int64_t end) {
    mass_ = 0;
    for (int64_t t = start; t < end; ++t) mass_ += op_.weight ? op_.weight[t] : 1.0f;
    first_ = true;
    if (mass_ == 0) return add<0>(start, true);
    int64_t token = start;
    for (; end - token > tokens_at_once; token += tokens_at_once) add<tokens_at_once>(token, false);
    switch (end - token) {
      case 1: return add<1>(token, true);
      case 2: return add<2>(token, true);
      case 3: return add<3>(token, true);
      case 4: return add<4>(token, true);
    }
  }

 private:
  // Add `tokens` rows of x to the sums; if they are the last, turn those into keys.
  template <int tokens>
  void add(int64_t token, bool last) {
    const T* x = static_cast<const T*>(op_.x) + token * op_.width;
    Floats weight[tokens + 1];
    for (int t = 0; t < tokens; ++t) weight[t] = floats(op_.weight ? op_.weight[token + t] : 1.0f);
    const bool divide = mass_ != 0 && mass_ != 1;
    const Floats mass = floats(mass_);
    const auto step = [&](int64_t i, auto&& read) {
      Floats sum = first_ ? Floats{} : load(reinterpret_cast<const float*>(keys_ + i));
      for (int t = 0; t < tokens; ++t) sum += weight[t] * read(x + t * op_.width + i);
      if (!last) return bit_cast<Ints>(sum);
      if (divide) sum /= mass;
      if (op_.background) sum -= read(op_.background + i);
      return key_of(sum);
    };
    int64_t i = 0;
    for (; i + lanes <= op_.width; i += lanes) {
      const Ints values = step(i, [](const auto* from) { return load(from); });
      __builtin_memcpy(keys_ + i, &values, sizeof values);
    }
    if (const int64_t rest = op_.width - i) {
      Ints values = step(i, [&](const auto* from) { return load_some(from, rest); });
      if (last) values = lane_numbers < static_cast<int32_t>(rest) ? values : ints(-1);
      __builtin_memcpy(keys_ + i, &values, sizeof values);
    }
    first_ = false;
  }

  const TopkMask& op_;
  int32_t* keys_;
  float mass_ = 0;
  bool first_ = true;
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
  const int64_t words = (op.width + 31) / 32;
  Buffer<int32_t> positions(op.width + lanes), keys(op.width + lanes);
  Buffer<uint8_t> bytes(words * 32);
  if (!place(op, positions.data())) return false;
  Pool<T> pool(op, keys.data());
  Selection select(op.width);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t start = within(op.offsets[b], 0, op.tokens);
    pool(start, within(op.offsets[b + 1], start, op.tokens));
    const uint32_t* chosen = select(keys.data(), positions.data(), op.k);
    // Through bytes, as setting bits of a word makes each wait for the one before.
    __builtin_memset(bytes.data(), 0, static_cast<size_t>(words) * 32);
    for (int64_t i = 0; i < op.k; ++i) bytes[chosen[i]] = 0x80;
    for (int64_t w = 0; w < words; ++w) op.masks[b * words + w] = pack(bytes.data() + 32 * w);
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
