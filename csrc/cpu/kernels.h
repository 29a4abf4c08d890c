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

// The routed tokens, those of one entry side by side.
struct Routes {
  const int32_t* tokens;   // [count]
  const int32_t* entries;  // [count]
  int64_t count;
};

// Strides are in elements. Work items are blocks of columns of y.
struct MaskedLinear {
  Type y_type, x_type, memory_type;
  void* y;  // [tokens, outputs]
  int64_t y_row, y_column, outputs;
  const void* x;  // [tokens, width]
  int64_t x_row, x_column, width;
  const void* memory;  // [width, outputs], its columns adjacent
  int64_t memory_row;
  const int32_t* masks;  // [M, words]
  int64_t words;
  Routes routes;
  int64_t block;  // columns of a work item
};

// Strides are in elements. `upstream` is filled by `masked_linear_upstream`, whose work items are routed tokens; those of
// `masked_linear_dx` are blocks of `mask_rows` rows of memory, those of `masked_linear_dmemory` mask words.
struct MaskedLinearBackward {
  Type grad_type, x_type, memory_type;
  const void* grad;  // [tokens, outputs]
  int64_t grad_row, grad_column, outputs;
  const void* x;  // [tokens, width]
  int64_t x_row, x_column, width;
  const void* memory;  // [width, outputs], its columns adjacent
  int64_t memory_row;
  const int32_t* masks;  // [M, words]
  int64_t words;
  Routes routes;
  float* upstream;  // [routes.count, stride]: the gradients of routed tokens
  int64_t stride;   // outputs, rounded up to `row_multiple`
  void* dx;         // [tokens, width], zero
  void* dmemory;    // [width, outputs]
};

// Rows of float32 that a kernel keeps are a multiple of this long: two of the widest vectors.
constexpr int64_t row_multiple = 32;

constexpr int64_t mask_rows = 512;

struct Kernels {
  void (*mask_overlap)(const MaskOverlap&, int64_t begin, int64_t end);
  void (*masked_linear)(const MaskedLinear&, int64_t begin, int64_t end);
  void (*masked_linear_upstream)(const MaskedLinearBackward&, int64_t begin, int64_t end);
  void (*masked_linear_dx)(const MaskedLinearBackward&, int64_t begin, int64_t end);
  void (*masked_linear_dmemory)(const MaskedLinearBackward&, int64_t begin, int64_t end);
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
