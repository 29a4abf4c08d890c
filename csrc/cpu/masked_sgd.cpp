// A step of SGD on rows of a residual matrix whose gradient is at hand: mask, decay, clamp and update in one pass.
#include "simd.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

// -1 in the lanes whose bit is set, for entries from `column` on, a multiple of `lanes`.
inline Ints free_lanes(const int32_t* mask, int64_t column) {
  const uint32_t word = static_cast<uint32_t>(mask[column / 32]) >> (column % 32);
  return ((ints(static_cast<int32_t>(word)) >> lane_numbers) & 1) != 0;
}

struct Step {
  Floats learning_rate, decay, limit;
  bool decays, decay_masked;

  Floats operator()(Floats delta, Floats gradient, Floats base, Ints free) const {
    Floats step = select<Floats>(free, gradient * learning_rate, Floats{});
    if (decays) {
      const Floats shrunk = (delta + base) * decay;
      step += decay_masked ? select<Floats>(free, shrunk, Floats{}) : shrunk;
    }
    const Floats updated = delta - step;  // NaN passes both comparisons, and stays
    const Floats below = select<Floats>(updated > limit, limit, updated);
    return select<Floats>(below < -limit, -limit, below);
  }
};

template <class Base>
void update(const MaskedSgd& op, int64_t begin, int64_t end) {
  const Step step = {floats(op.learning_rate), floats(op.decay), floats(op.limit), op.decay != 0, op.decay_masked};
  const bool held = op.base && step.decays;
  for (int64_t row = begin; row < end; ++row) {
    float* delta = op.delta + row * op.delta_row;
    const float* gradient = op.gradient + (row - op.first) * op.outputs;
    const int32_t* mask = op.masks + row * op.words;
    const Base* base = held ? static_cast<const Base*>(op.base) + row * op.outputs : nullptr;
    int64_t j = 0;
    for (; j + lanes <= op.outputs; j += lanes) {
      const Floats frozen = held ? load(base + j) : Floats{};
      store(delta + j, step(load(delta + j), load(gradient + j), frozen, free_lanes(mask, j)));
    }
    if (const int64_t rest = op.outputs - j; rest > 0) {
      const Floats before = load_some(delta + j, rest), slope = load_some(gradient + j, rest);
      const Floats frozen = held ? load_some(base + j, rest) : Floats{};
      store_some(delta + j, step(before, slope, frozen, free_lanes(mask, j)), rest);
    }
  }
}

}  // namespace

void masked_sgd(const MaskedSgd& op, int64_t begin, int64_t end) {
  with_element(op.base_type, [&](auto base) { update<decltype(base)>(op, begin, end); });
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
