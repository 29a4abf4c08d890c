// The positions of the k largest of some keys, exactly, ties to the first.
//
// A sample brackets the k-th largest; one pass over the keys then keeps the positions of those above the bracket and
// sets aside the few inside, and only among those is the threshold searched. So keys are read once, and never stored.
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
  explicit Selection(int64_t width) : width_(width) {
    chosen_ = chosen_memory_.reserve(width + lanes);
    inside_ = inside_memory_.reserve(width + 2 * lanes);
    inside_keys_ = inside_keys_memory_.reserve(width + 2 * lanes);
    ties_ = ties_memory_.reserve(width + lanes);
  }

  // `key_at(i)` gives the keys from i on, i a multiple of `lanes`: at least 0, and -1 beyond the end.
  // Returns k of the positions, in no order.
  template <class KeyAt>
  const int32_t* operator()(const KeyAt& key_at, const int32_t* positions, int64_t k) {
    int32_t least = 0, most = largest_key;
    if (width_ >= 4 * sample_size) bracket(key_at, k, least, most);
    split(key_at, positions, least, most);
    if (above_ > k || above_ + within_ < k) {  // an unlucky sample
      least = 0, most = largest_key;
      split(key_at, positions, least, most);
    }
    if (above_ < k) choose_within(k, least, most);
    return chosen_;
  }

 private:
  static constexpr int64_t sample_size = 512;

  // Bounds that the k-th largest key exceeds with a chance of one in some thousands.
  template <class KeyAt>
  void bracket(const KeyAt& key_at, int64_t k, int32_t& least, int32_t& most) {
    const int64_t step = width_ / sample_size * lanes;
    for (int64_t i = 0; i < sample_size / lanes; ++i) put(inside_keys_ + i * lanes, key_at(i * step));
    const double share = static_cast<double>(k) / static_cast<double>(width_);
    const auto rank = static_cast<int64_t>(share * sample_size);
    const auto deviation = static_cast<int64_t>(__builtin_sqrt(share * (1 - share) * sample_size)) + 1;
    const int64_t margin = 4 * deviation, slack = deviation / 2;
    if (rank + margin < sample_size) least = threshold(inside_keys_, sample_size, rank + margin, slack, least, most);
    if (rank - margin > 0) most = threshold(inside_keys_, sample_size, rank - margin, slack, least, most);
  }

  // Keep the positions of the keys above `most`; set aside those from `least` to `most`.
  template <class KeyAt>
  void split(const KeyAt& key_at, const int32_t* positions, int32_t least, int32_t most) {
    int64_t above = 0, within = 0;
    int32_t *const chosen = chosen_, *const inside = inside_, *const inside_keys = inside_keys_;
    const Ints below = ints(least - 1), top = ints(most);
    for (int64_t i = 0; i < width_; i += lanes) {
      const Ints key = key_at(i), position = load_vector<Ints>(positions + i);
      const uint32_t high = greater(key, top), middle = greater(key, below) & ~high;
      above += keep(chosen + above, position, high);
      keep(inside + within, position, middle);
      within += keep(inside_keys + within, key, middle);
    }
    put(inside_keys + within, ints(-1));
    above_ = above, within_ = within;
  }

  // Of what was set aside, keep as many as k still lacks.
  void choose_within(int64_t k, int32_t least, int32_t most) {
    const int64_t padded = (within_ + lanes - 1) / lanes * lanes;
    const int32_t limit = threshold(inside_keys_, padded, k - above_, 0, least, most);
    const Ints top = ints(limit), below = ints(limit - 1);
    int64_t ties = 0;
    for (int64_t i = 0; i < padded; i += lanes) {
      const Ints key = load_vector<Ints>(inside_keys_ + i), position = load_vector<Ints>(inside_ + i);
      const uint32_t high = greater(key, top);
      above_ += keep(chosen_ + above_, position, high);
      ties += keep(ties_ + ties, position, greater(key, below) & ~high);
    }
    for (int64_t tie = 0; above_ < k; ++tie) chosen_[above_++] = ties_[tie];
  }

  static void put(int32_t* to, Ints values) { __builtin_memcpy(to, &values, sizeof values); }

  static inline thread_local Buffer<int32_t> chosen_memory_, inside_memory_, inside_keys_memory_, ties_memory_;
  int64_t width_, above_ = 0, within_ = 0;
  int32_t *chosen_, *inside_, *inside_keys_, *ties_;
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
