// The CPU kernels: plain C++, no torch. Arguments are what kernels/ops.py documents, contiguous, checked by the caller.
//
// Every kernel file is compiled once per instruction set, in a namespace of that name; `kernels()` picks a table by what
// the processor has. A kernel does a part of the work, so that the caller can share it among threads.
#pragma once

#include <cstdint>

namespace corrigenda {

enum class Type : int { float32, bfloat16, float16, int8 };

// Work items are sequences.
struct TopkMask {
  Type type;               // of x
  const void* x;           // [tokens, width]
  const int32_t* offsets;  // [B + 1]
  int64_t tokens;
  int64_t width;
  int64_t k;
  const float* weight;         // [tokens], or null
  const float* background;     // [width], or null
  const int64_t* permutation;  // [width], or null
  int32_t* masks;              // [B, words]
};

// With groups, a query sees only the stored rows of its own.
struct Groups {
  const int32_t* query;   // [B], or null
  const int32_t* stored;  // [N], or null
};

// One part of a search of stored rows: each of some queries against a run of rows.
struct Part {
  int64_t first_query, last_query;  // the last ones excluded
  int64_t first_row, last_row;
};

struct MaskOverlap {
  const int32_t* query;   // [B, words]
  const int32_t* stored;  // [N, words]
  int64_t words;
  Groups groups;
};

// The best of the rows that a query saw; index and overlap are -1 if it saw none.
struct NearestMask {
  int32_t index = -1;
  int32_t overlap = -1;
};

struct TokenOverlap {
  const int32_t* query;   // [B, query_tokens]
  const int32_t* stored;  // [N, stored_tokens]
  const int32_t* rarity;  // [vocabulary]
  int64_t query_tokens, stored_tokens, vocabulary;
  float extra_weight;
  Groups groups;
};

// The best two of the rows that a query saw; index is -1 if it saw none.
struct NearestTokens {
  int32_t index = -1;
  float score = -1;
  float runner_up = -1;
};

struct Kernels {
  // False, with nothing written, if the permutation has an entry outside 0 .. width - 1.
  bool (*topk_mask)(const TopkMask&, int64_t begin, int64_t end);
  // One result per query of the part, from `best` on.
  void (*mask_overlap)(const MaskOverlap&, const Part&, NearestMask* best);
  void (*token_overlap)(const TokenOverlap&, const Part&, NearestTokens* best);
};

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

// The table in use: the best one that this processor runs, unless `select` chose another.
const Kernels& kernels();

// Use the table of an instruction set, "auto" for the best one; false if the processor lacks it or it is unknown.
bool select(const char* instructions);

// The name of the table in use.
const char* selected();

}  // namespace corrigenda
