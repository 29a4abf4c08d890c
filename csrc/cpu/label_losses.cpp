// Cross-entropy of labels at a model's head, and its gradient, while each block of the head's weight is in the cache.
//
// Labels are lanes: a logit is a sum over features of a broadcast entry of the weight times a vector of hidden entries,
// and the mean of the weight's rows one over the vocabulary of a broadcast entry times a vector of shares. So a dozen
// labels fill the processor, where a matrix product that tiles them as rows would not. Sums are relative to the largest
// logit so far (FlashAttention, arXiv 2205.14135, section 3.1).
#include "buffer.h"
#include "exponential.h"
#include "rows.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

constexpr float lowest = -__FLT_MAX__;  // not -inf: beside an infinite logit the difference would be NaN

// Shares below e^-60 are nothing beside the largest, which is 1, and their products with the weight would soon be
// denormal: with logits 100 apart a call took 4 times as long.
inline Floats share_of(Floats difference) {
  return select<Floats>(difference < -60.0f, Floats{}, exponential(difference));
}

// Rows that a tile takes beside so many vectors of labels, for the sums to stay in registers.
#if defined(__AVX512F__)
constexpr int tile_rows(int vectors) { return vectors == 1 ? 16 : 8; }
#else
constexpr int tile_rows(int vectors) { return vectors == 1 ? 8 : 4; }
#endif

constexpr int most_vectors = 3;

// Up to three vectors of labels that are summed together.
struct Group {
  int64_t first;  // of the labels, in whole vectors
  int vectors;
};

// Call `function(group, Constant<vectors>)` for all labels; four vectors are taken by twos.
template <class Function>
inline void for_groups(int64_t count, Function&& function) {
  const int64_t all = (count + lanes - 1) / lanes;
  for (int64_t done = 0; done < all;) {
    const int64_t left = all - done;
    const int vectors = left == 2 || left == 4 ? 2 : left == 1 ? 1 : 3;
    const Group group = {done * lanes, vectors};
    if (vectors == 1) function(group, Constant<1>{});
    if (vectors == 2) function(group, Constant<2>{});
    if (vectors == 3) function(group, Constant<3>{});
    done += vectors;
  }
}

// What a part of the vocabulary has found; of each group the means lie together, [width, vectors * lanes]. The mass is
// `mass` and what its additions have `lost` to rounding: beside a share of 1 they lose the least of the others, and
// those are the loss of a label that is all but certain.
struct Sums {
  float *mean, *largest, *mass, *lost, *logit;

  Sums(const LabelLosses& op, int64_t part) {
    mean = op.sums + part * (op.width + 4) * op.stride;
    largest = mean + op.width * op.stride, mass = largest + op.stride;
    lost = mass + op.stride, logit = lost + op.stride;
  }
};

// What to fetch into the second cache meanwhile, a line at a time.
struct Ahead {
  const char* from;
  int64_t step;
  void fetch(int64_t line) const { __builtin_prefetch(from + line * step, 0, 2); }
};

// Features that a logit is summed over before the sum goes to memory: those of 48 labels, 36 KB, stay in the first
// cache, and short sums round less.
constexpr int64_t features_at_once = 192;

// logits[r][t] (+)= rows[r] . hidden[t] for the first `count` rows of a tile, and `width` features.
template <int vectors>
[[gnu::noinline]] void logits_of_tile(const float* weight, int64_t row, int64_t count, int64_t width,
                                      const float* hidden, float* logits, bool add, const Ahead& ahead) {
  constexpr int rows = tile_rows(vectors), unroll = rows < 8 ? 8 : 4, fetched = rows * unroll / 32;
  const float* from[rows];
  for (int r = 0; r < rows; ++r) from[r] = weight + (r < count ? r : count - 1) * row;
  Floats sums[rows][vectors] = {};
  int64_t k = 0;
  for (; k + unroll <= width; k += unroll) {
    for (int line = 0; line < fetched; ++line) ahead.fetch(k / unroll * fetched + line);
#pragma GCC unroll 8
    for (int u = 0; u < unroll; ++u) {
      Floats features[vectors];
      for (int t = 0; t < vectors; ++t) features[t] = load(hidden + ((k + u) * vectors + t) * lanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Floats entry = floats(from[r][k + u]);
        for (int t = 0; t < vectors; ++t) sums[r][t] = entry * features[t] + sums[r][t];
      }
    }
  }
  for (; k < width; ++k)
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < vectors; ++t)
        sums[r][t] = floats(from[r][k]) * load(hidden + (k * vectors + t) * lanes) + sums[r][t];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
    for (int t = 0; r < count && t < vectors; ++t) {
      float* to = logits + (r * vectors + t) * lanes;
      store(to, add ? load(to) + sums[r][t] : sums[r][t]);
    }
}

// mean[c][t] = mean[c][t] shrunk[t] + sum over v of weight[v][c] share[v][t], for some columns.
template <int columns, int vectors>
[[gnu::noinline]] void mean_of_tile(const float* weight, int64_t row, int64_t count, const float* share,
                                    const float* shrunk, float* mean, const Ahead& ahead) {
  Floats sums[columns][vectors] = {};
  for (int64_t v = 0; v < count; ++v) {
    if (v % (32 / columns) == 0) ahead.fetch(v / (32 / columns));
    Floats shares[vectors];
    for (int t = 0; t < vectors; ++t) shares[t] = load(share + (v * vectors + t) * lanes);
#pragma GCC unroll 16
    for (int c = 0; c < columns; ++c) {
      const Floats entry = floats(weight[v * row + c]);
      for (int t = 0; t < vectors; ++t) sums[c][t] = entry * shares[t] + sums[c][t];
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < columns; ++c)
    for (int t = 0; t < vectors; ++t) {
      float* to = mean + (c * vectors + t) * lanes;
      store(to, load(to) * load(shrunk + t * lanes) + sums[c][t]);
    }
}

// Logits -> shares, e^(logit - the largest so far), in place; keeps the largest and the mass, and what they shrink by.
template <int vectors>
void shares_of_block(float* logits, int64_t count, const Sums& sums, int64_t first, float* shrunk) {
  for (int t = 0; t < vectors; ++t, logits += lanes, first += lanes, shrunk += lanes) {
    const Floats before = load(sums.largest + first);
    Floats after = before;
    for (int64_t v = 0; v < count; ++v) {
      const Floats logit = load(logits + v * vectors * lanes);
      after = select<Floats>(logit > after, logit, after);
    }
    const Floats factor = share_of(before - after);
    Floats mass = load(sums.mass + first) * factor, lost = load(sums.lost + first) * factor;
    for (int64_t v = 0; v < count; ++v) {
      float* place = logits + v * vectors * lanes;
      const Floats share = share_of(load(place) - after);  // NaN stays, and reaches the mass
      store(place, share);
      const Floats sum = mass + share, added = sum - mass;
      lost += (mass - (sum - added)) + (share - added);
      mass = sum;
    }
    store(shrunk, factor);
    store(sums.mass + first, mass), store(sums.lost + first, lost);
    store(sums.largest + first, after);
  }
}

// The hidden states of each group, transposed: [width, vectors * lanes], zeros where there is no label.
template <class T>
void transpose(const LabelLosses& op, float* to) {
  for_groups(op.count, [&](const Group& group, auto) {
    const int64_t columns = group.vectors * lanes;
    float* all = to + group.first * op.width;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t label = group.first + i;
      const T* from = static_cast<const T*>(op.hidden) + label * op.width;
      for (int64_t k = 0; k < op.width; ++k) all[k * columns + i] = label < op.count ? load_one(from + k) : 0;
    }
  });
}

template <int vectors>
void add_block(const LabelLosses& op, const float* weight, int64_t row, int64_t first, int64_t count,
               const Group& group, const float* hidden, float* logits, const Sums& sums, Ahead ahead) {
  constexpr int tile = tile_rows(vectors);
  for (int64_t k = 0; k == 0 || k < op.width; k += features_at_once) {
    const int64_t features = op.width - k < features_at_once ? op.width - k : features_at_once;
    for (int64_t v = 0; v < count; v += tile) {
      logits_of_tile<vectors>(weight + v * row + k, row, count - v, features, hidden + k * vectors * lanes,
                              logits + v * vectors * lanes, k > 0, ahead);
      ahead.from += features * tile / 32 * ahead.step;
    }
  }
  const int64_t end = group.first + vectors * lanes, last = end < op.count ? end : op.count;
  for (int64_t label = group.first; label < last; ++label)
    if (const int64_t v = op.labels[label] - first; 0 <= v && v < count)
      sums.logit[label] = logits[v * vectors * lanes + label - group.first];
  float shrunk[vectors * lanes];
  shares_of_block<vectors>(logits, count, sums, group.first, shrunk);
  float* mean = sums.mean + group.first * op.width;
  in_tiles<tile>(op.width, [&](int64_t k, auto columns) {
    mean_of_tile<columns.size, vectors>(weight + k, row, count, logits, shrunk, mean + k * vectors * lanes, ahead);
    ahead.from += count * columns.size / 32 * ahead.step;
  });
}

template <class T>
void add_part(const LabelLosses& op, int64_t part, const float* hidden) {
  thread_local Buffer<float> widened, scores;
  float* logits = scores.reserve(op.block * most_vectors * lanes);
  const Sums sums(op, part);
  for (int64_t i = 0; i < op.width * op.stride; ++i) sums.mean[i] = 0;
  for (int64_t i = 0; i < op.stride; ++i) {
    sums.largest[i] = lowest;
    sums.mass[i] = sums.lost[i] = sums.logit[i] = 0;
  }
  const int64_t blocks = (op.vocabulary + op.block - 1) / op.block;
  for (int64_t b = blocks * part / op.parts; b < blocks * (part + 1) / op.parts; ++b) {
    const int64_t first = b * op.block;
    const int64_t count = op.vocabulary - first < op.block ? op.vocabulary - first : op.block;
    const T* from = static_cast<const T*>(op.weight) + first * op.weight_row;
    const float* weight;
    int64_t row;
    if constexpr (sizeof(T) == sizeof(float)) {
      weight = from, row = op.weight_row;
    } else {
      float* to = widened.reserve(op.block * op.width);
      for (int64_t v = 0; v < count; ++v) widen(from + v * op.weight_row, 1, op.width, to + v * op.width, op.width);
      weight = to, row = op.width;
    }
    for_groups(op.count, [&](const Group& group, auto vectors) {
      const Ahead ahead = {reinterpret_cast<const char*>(from + op.block * op.weight_row),
                           group.first ? 0 : 64 * int64_t{sizeof(T)} / 4};
      add_block<vectors.size>(op, weight, row, first, count, group, hidden + group.first * op.width, logits, sums,
                              ahead);
    });
  }
}

template <class Hidden, class Weight>
void combine(const LabelLosses& op) {
  thread_local Buffer<float> memory;
  float* gradient = memory.reserve(op.width);
  for_groups(op.count, [&](const Group& group, auto) {
    const int64_t columns = group.vectors * lanes;
    for (int64_t label = group.first; label < op.count && label < group.first + columns; ++label) {
      float largest = lowest, logit = 0;
      double mass = 0;
      for (int64_t p = 0; p < op.parts; ++p) {
        const float of_part = Sums(op, p).largest[label];
        largest = of_part > largest ? of_part : largest;
      }
      for (int64_t k = 0; k < op.width; ++k) gradient[k] = 0;
      for (int64_t p = 0; p < op.parts; ++p) {
        const Sums sums(op, p);
        const float factor = __builtin_expf(sums.largest[label] - largest);
        mass += factor * (static_cast<double>(sums.mass[label]) + sums.lost[label]);
        logit += sums.logit[label];  // zero but in the label's own part
        const float* mean = sums.mean + group.first * op.width + label - group.first;
        for (int64_t k = 0; k < op.width; ++k) gradient[k] += factor * mean[k * columns];
      }
      const float whole = static_cast<float>(mass);
      const Weight* row = static_cast<const Weight*>(op.weight) + op.labels[label] * op.weight_row;
      for (int64_t k = 0; k < op.width; ++k) gradient[k] = gradient[k] / whole - load_one(row + k);
      round_to(static_cast<Hidden*>(op.gradient) + label * op.width, gradient, op.width);
      // The two largest cancel exactly where a label is all but certain, and its loss is the logarithm alone.
      op.losses[label] = static_cast<float>(__builtin_log(mass) - (static_cast<double>(logit) - largest));
    }
  });
}

}  // namespace

void label_losses(const LabelLosses& op, int64_t begin, int64_t end) {
  thread_local Buffer<float> memory;
  float* hidden = memory.reserve(op.width * op.stride);
  with_float(op.hidden_type, [&](auto type) { transpose<decltype(type)>(op, hidden); });
  with_float(op.weight_type, [&](auto type) {
    for (int64_t part = begin; part < end; ++part) add_part<decltype(type)>(op, part, hidden);
  });
}

void label_losses_combine(const LabelLosses& op) {
  with_float(op.hidden_type, [&](auto hidden) {
    with_float(op.weight_type, [&](auto weight) { combine<decltype(hidden), decltype(weight)>(op); });
  });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
