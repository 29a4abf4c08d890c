// Looks up each stored token in a table of the query's; a row that shares too little for the two best ends there.
#include "token_table.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {
namespace {

class Search {
 public:
  Search(const TokenOverlap& op, int64_t query, NearestTokens& best)
      : op_(op),
        query_(query),
        table_(op.query + query * op.query_tokens, op.query_tokens, op.rarity, op.vocabulary),
        query_mass_(mass(op.query + query * op.query_tokens, op.query_tokens, op.rarity, op.vocabulary)),
        best_(best) {}

  void visit(int64_t first, int64_t last) {
    int64_t row = first;
    for (; row + 4 <= last; row += 4) {
      const FourInts shared = sums(in_common(row), in_common(row + 1), in_common(row + 2), in_common(row + 3));
      if (!any(shared > bar_)) continue;
      for (int i = 0; i < 4; ++i) consider(row + i, shared[i]);
    }
    for (; row < last; ++row) consider(row, sums(in_common(row), Words{}, Words{}, Words{})[0]);
    for (row = first; best_.index < 0 && row < last; ++row)  // no score above 0: then the first row seen
      if (sees(row)) best_ = {static_cast<int32_t>(row), 0, 0};
  }

 private:
  static bool any(FourInts condition) { return condition[0] | condition[1] | condition[2] | condition[3]; }

  bool sees(int64_t row) const { return !op_.groups.query || op_.groups.query[query_] == op_.groups.stored[row]; }

  Words in_common(int64_t row) const { return table_.shared(op_.stored + row * op_.stored_tokens, op_.stored_tokens); }

  void consider(int64_t row, int32_t shared) {
    if (shared <= bar_ || !sees(row)) return;
    const int32_t own = mass(op_.stored + row * op_.stored_tokens, op_.stored_tokens, op_.rarity, op_.vocabulary);
    // The product by way of double, so that it is rounded before it is added, as in the formula.
    const auto rest = static_cast<float>(static_cast<double>(op_.extra_weight) * (query_mass_ - shared));
    const float score = static_cast<float>(shared) / (static_cast<float>(own) + rest);
    if (!(score > 0)) return;  // as an infinite extra_weight has it
    if (score > best_.score) {
      best_.runner_up = best_.score;
      best_.score = score;
      best_.index = static_cast<int32_t>(row);
    } else if (score > best_.runner_up) {
      best_.runner_up = score;
    } else {
      return;
    }
    raise_bar();
  }

  // A stored row holds at least what it shares, so a row that shares s scores at most s / (s + extra (query - s)).
  // Rows for which that is below the runner-up, by more than rounding, are left before their own mass is summed.
  void raise_bar() {
    const double score = static_cast<double>(best_.runner_up) * (1 - 1e-6);
    const double extra = score * op_.extra_weight;
    if (score > 0) bar_ = static_cast<int32_t>(extra * query_mass_ / (1 - score + extra));
  }

  const TokenOverlap& op_;
  const int64_t query_;
  const TokenTable table_;
  const int32_t query_mass_;
  NearestTokens& best_;
  int32_t bar_ = 0;  // rows that share no more than this change nothing
};

}  // namespace

void token_overlap(const TokenOverlap& op, const Part& part, NearestTokens* best) {
  for (int64_t query = part.first_query; query < part.last_query; ++query) {
    Search(op, query, best[query - part.first_query]).visit(part.first_row, part.last_row);
  }
}

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
