// The CPU kernels: plain C++, no torch. Arguments are what kernels/ops.py documents, contiguous, checked by the caller.
//
// Every kernel file is compiled once per instruction set, in a namespace of that name; `kernels()` picks a table by what
// the processor has. A kernel does the work items [begin, end), so that the caller can share them among threads.
#pragma once

#include <cstdint>

namespace corrigenda {

enum class Type : int { float32, bfloat16, float16, int8 };

// Which stored rows a query sees: the first `valid`, and with groups only those of its own group.
struct Visible {
  int64_t valid;
  const int32_t* query_group;   // [B], or null
  const int32_t* stored_group;  // [N], or null
};

// Work items are queries.
struct MaskOverlap {
  const int32_t* query;   // [B, words]
  const int32_t* stored;  // [N, words]
  int64_t words;
  Visible visible;
  int32_t* index;    // [B]
  int32_t* overlap;  // [B]
};

struct Kernels {
  void (*mask_overlap)(const MaskOverlap&, int64_t begin, int64_t end);
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
