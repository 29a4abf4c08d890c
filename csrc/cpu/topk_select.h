// The positions of the k largest of some keys, exactly, ties to the first.
//
// A sample brackets the k-th largest; one pass over the keys then keeps the positions of those above the bracket and
// sets aside the few inside, and only among those is the threshold searched. On 14336 keys that takes a third of the
// time of a bisection over all of them.
#pragma once

#include "buffer.h"
#include "compress.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

constexpr int32_t largest_key = 0x7F800000;  // infinity's bits

// How many keys are at least `least`; `size` is a multiple of `lanes`.
inline int64_t count_from(const int32_t* keys, int64_t size, int32_t least) {
  Ints count = {};
  const Ints below = ints(least - 1);
  for (int64_t i = 0; i < size; i += lanes) count -= load_vector<Ints>(keys + i) > below;
  return sum(count);
}

// The largest key that at least `rank` keys reach, or one that between rank - slack and rank + slack do.
inline int32_t threshold(const int32_t* keys, int64_t size, int64_t rank, int64_t slack, int32_t least, int32_t most) {
  while (least < most) {
    const int32_t middle = least + (most - least + 1) / 2;
    const int64_t count = count_from(keys, size, middle);
    if (count - rank <= slack && rank - count <= slack) return middle;
    if (count < rank)
      most = middle - 1;
    else
      least = middle;
  }
  return least;
}

class Selection {
 public:
  explicit Selection(int64_t width)
      : width_(width), chosen_(width + lanes), inside_(width + 2 * lanes), inside_keys_(width + 2 * lanes) {}

  // `keys` are at least 0, padded with -1 to a multiple of `lanes`; `positions` are padded likewise.
  // Returns k of the positions, in no order.
  const uint32_t* operator()(const int32_t* keys, const int32_t* positions, int64_t k) {
    int32_t least = 0, most = largest_key;
    if (width_ >= 4 * sample_size) bracket(keys, k, least, most);
    split(keys, positions, least, most);
    if (above_ > k || above_ + within_ < k) {  // an unlucky sample
      least = 0, most = largest_key;
      split(keys, positions, least, most);
    }
    if (const int64_t missing = k - above_) {
      const int32_t limit = threshold(inside_keys_.data(), padded(within_), missing, 0, least, most);
      int64_t ties = missing - count_from(inside_keys_.data(), padded(within_), limit + 1);
      for (int64_t i = 0; i < within_; ++i) {
        const bool tie = inside_keys_[i] == limit && ties > 0;
        chosen_[above_] = inside_[i];
        above_ += tie || inside_keys_[i] > limit;
        ties -= tie;
      }
    }
    return reinterpret_cast<const uint32_t*>(chosen_.data());
  }

 private:
  static constexpr int64_t sample_size = 512;

  static int64_t padded(int64_t size) { return (size + lanes - 1) / lanes * lanes; }

  // Bounds that the k-th largest key exceeds with a chance of one in some thousands.
  void bracket(const int32_t* keys, int64_t k, int32_t& least, int32_t& most) {
    int32_t* sample = inside_keys_.data();
    const int64_t step = width_ / sample_size * lanes;
    for (int64_t i = 0; i < sample_size / lanes; ++i) __builtin_memcpy(sample + i * lanes, keys + i * step, 4 * lanes);
    const double share = static_cast<double>(k) / static_cast<double>(width_);
    const auto rank = static_cast<int64_t>(share * sample_size);
    const auto deviation = static_cast<int64_t>(__builtin_sqrt(share * (1 - share) * sample_size)) + 1;
    const int64_t margin = 4 * deviation, slack = deviation / 2;
    if (rank + margin < sample_size) least = threshold(sample, sample_size, rank + margin, slack, least, most);
    if (rank - margin > 0) most = threshold(sample, sample_size, rank - margin, slack, least, most);
  }

  // Keep the positions of the keys above `most`; set aside those from `least` to `most`.
  void split(const int32_t* keys, const int32_t* positions, int32_t least, int32_t most) {
    above_ = within_ = 0;
    const Ints below = ints(least - 1), top = ints(most);
    for (int64_t i = 0; i < width_; i += lanes) {
      const Ints key = load_vector<Ints>(keys + i), position = load_vector<Ints>(positions + i);
      const uint32_t high = greater(key, top), middle = greater(key, below) & ~high;
      above_ += keep(chosen_.data() + above_, position, high);
      keep(inside_.data() + within_, position, middle);
      within_ += keep(inside_keys_.data() + within_, key, middle);
    }
    const Ints none = ints(-1);
    __builtin_memcpy(inside_keys_.data() + within_, &none, sizeof none);
  }

  int64_t width_, above_ = 0, within_ = 0;
  Buffer<int32_t> chosen_, inside_, inside_keys_;
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
