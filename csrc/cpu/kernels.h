// The CPU kernels: plain C++, no torch. Arguments are what kernels/ops.py documents, contiguous, checked by the caller.
//
// Every kernel file is compiled once per instruction set, in a namespace of that name; `kernels()` picks a table by
// what the processor has. The files in amx/ are for AMX alone, whose other kernels are AVX-512's. A kernel does a part
// of the work, so that the caller can share it among threads.
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

struct NearestKey {
  Type type;           // of query and stored
  const void* query;   // [B, width]
  const void* stored;  // [N, width]
  int64_t width;
  bool cosine;
  Groups groups;
};

// The nearest of the rows that a query saw: the squared Euclidean distance, or the cosine's. -1 if it saw none.
struct NearestStored {
  int32_t index = -1;
  float distance = __builtin_inff();
};

// The routed tokens, those of one entry side by side.
struct Routes {
  const int32_t* tokens;   // [count]
  const int32_t* entries;  // [count]
  int64_t count;
};

// What routed tokens read of a memory, and by which features. Strides are in elements.
struct MaskedMemory {
  Type x_type, memory_type;
  const void* x;  // [tokens, width]
  int64_t x_row, x_column, width;
  const void* memory;  // [width, outputs], its columns adjacent
  int64_t memory_row, outputs;
  const int32_t* masks;  // [M, words]
  int64_t words;
  Routes routes;
};

// Work items are blocks of columns of y.
struct MaskedLinear : MaskedMemory {
  Type y_type;
  void* y;  // [tokens, outputs]
  int64_t y_row, y_column;
  int64_t block;  // columns of a work item
};

// `masked_linear_upstream` goes first and fills `upstream`: its work items are routed tokens. Those of
// `masked_linear_dx` are blocks of `mask_rows` rows of memory, those of `masked_linear_dmemory` mask words.
struct MaskedLinearBackward : MaskedMemory {
  Type grad_type;
  const void* grad;  // [tokens, outputs]
  int64_t grad_row, grad_column;
  float* upstream;  // [routes.count, stride]: the gradients of routed tokens
  int64_t stride;   // outputs, rounded up to `row_multiple`
  void* dx;         // [tokens, width], zero
  void* dmemory;    // [width, outputs]
};

// Rows of float32 that a kernel keeps are a multiple of this long: two of the widest vectors.
constexpr int64_t row_multiple = 32;

constexpr int64_t mask_rows = 512;

// Up to 4 routed tokens that read one edit: openings, which take its row 0, or later ones.
struct ReadTile {
  int32_t edit, begin, size;
  bool opening;
};

// All routed tokens of one edit: openings are [begin, later), later ones [later, end).
struct ReadRun {
  int32_t edit, begin, later, end;
};

// What an edit's rows are read by and from. Strides are in elements.
struct ReadBank {
  Type x_type, key_type, value_type;
  const void* x;  // [tokens, width]
  int64_t x_row, x_column, width;
  const void* keys;    // [P, 8, width]
  const void* values;  // [P, 8, outputs]
  const float* scales;  // [P, 8], or null
  int64_t outputs;
  const int32_t* pages;  // [E, max_pages]
  int64_t max_pages;
  const int32_t* rows;      // [E]
  const float* background;  // [width]
  float beta;
  const int32_t* tokens;  // the tokens that get something, as tiles and runs index them
};

// Work items are tiles.
struct AssociativeRead {
  ReadBank bank;
  const ReadTile* tiles;
  Type y_type;
  void* y;  // [tokens, outputs]
  int64_t y_row, y_column;
};

// `associative_read_scores` goes first: its work items are tiles, and it fills the buffers below and dx. Work items of
// `associative_read_dkeys` and `associative_read_dvalues` are pages.
struct AssociativeReadBackward {
  ReadBank bank;
  const ReadTile* tiles;
  const ReadRun* runs;
  const int32_t* page_begin;  // [P + 1]: the runs that read page p are owners[page_begin[p]:page_begin[p + 1]]
  const int32_t* owners;      // indices of runs
  const int32_t* places;      // beside them: which page of the run's edit it is
  Type grad_type;
  const void* grad;  // [tokens, outputs]
  int64_t grad_row, grad_column;
  float* directions;  // [routed tokens, width_stride]
  int64_t width_stride;
  float* upstream;  // [routed tokens, output_stride]
  int64_t output_stride;
  float* shares;   // [routed tokens, most_rows]
  float* dscores;  // [routed tokens, most_rows]
  int64_t most_rows;
  void* dx;       // [tokens, width], zero, or null
  void* dkeys;    // [P, 8, width]
  void* dvalues;  // [P, 8, outputs]
};

// Up to 4 routed tokens that read one adapter.
struct AdapterTile {
  int32_t block, begin, size;
};

// Work items are tiles. Strides are in elements.
struct AdapterLinear {
  Type x_type, factor_type, y_type;
  const void* x;  // [tokens, width]
  int64_t x_row, x_column, width;
  const void* down;  // [blocks, rank, width]
  const void* up;    // [blocks, rank, outputs]
  int64_t rank, outputs;
  const int32_t* tokens;  // the routed tokens, as tiles index them
  const AdapterTile* tiles;
  void* y;  // [tokens, outputs]
  int64_t y_row, y_column;
};

// Counts the keys of entries [begin, end): a key is an entry's magnitude, its bits without the sign.
struct MagnitudeCount {
  Type type;
  const void* entries;
  int32_t low, high;    // keys within are counted in bins of 2^shift keys
  int shift;
  uint32_t* histogram;  // added to
  int64_t above;        // added to: how many keys are larger than `high`
};

// Work items are blocks of `merge_block` entries.
struct TiesMerge {
  Type type;
  const void* deltas;  // [shards, entries]
  int64_t shards, entries;
  const float* weights;       // [shards]
  const int32_t* thresholds;  // [shards]: the bits of the smallest magnitude kept, as a float32
  void* merged;               // [entries]
};

constexpr int64_t merge_block = 8192;

// Work items are rows of delta, from `first` on.
struct MaskedSgd {
  float* delta;           // [width, outputs], its columns adjacent
  int64_t delta_row, outputs;
  const float* gradient;  // [rows from `first` on, outputs]
  int64_t first;
  const int32_t* masks;   // [width, words]
  int64_t words;
  Type base_type;
  const void* base;       // [width, outputs], or null
  float learning_rate, decay;
  bool decay_masked;
  float limit;
};

// Work items are tokens.
struct DeltaLinear {
  const float* side;  // [tokens, outputs]
  int64_t outputs;
  Type base_type;
  const void* base;   // [tokens, outputs]
  bool activated;
  float* distance;    // [tokens]
};

// Work items are parts of the vocabulary; `label_losses_combine` follows, and fills the outputs.
struct LabelLosses {
  Type hidden_type, weight_type;
  const void* hidden;  // [count, width]
  int64_t count, width;
  const void* weight;  // [vocabulary, width], its columns adjacent
  int64_t weight_row, vocabulary;
  const int64_t* labels;  // [count]
  int64_t parts;
  int64_t block;   // rows of the weight that are used twice while they are in the cache
  int64_t stride;  // count, rounded up to `row_multiple`
  float* sums;     // [parts, width + 4, stride]: what each part found
  float* losses;   // [count]
  void* gradient;  // [count, width]
};

struct Kernels {
  // False, with nothing written, if the permutation has an entry outside 0 .. width - 1.
  bool (*topk_mask)(const TopkMask&, int64_t begin, int64_t end);
  // One result per query of the part, from `best` on.
  void (*mask_overlap)(const MaskOverlap&, const Part&, NearestMask* best);
  void (*token_overlap)(const TokenOverlap&, const Part&, NearestTokens* best);
  void (*nearest_key)(const NearestKey&, const Part&, NearestStored* best);
  void (*masked_linear)(const MaskedLinear&, int64_t begin, int64_t end);
  void (*masked_linear_upstream)(const MaskedLinearBackward&, int64_t begin, int64_t end);
  void (*masked_linear_dx)(const MaskedLinearBackward&, int64_t begin, int64_t end);
  void (*masked_linear_dmemory)(const MaskedLinearBackward&, int64_t begin, int64_t end);
  void (*associative_read)(const AssociativeRead&, int64_t begin, int64_t end);
  void (*associative_read_scores)(const AssociativeReadBackward&, int64_t begin, int64_t end);
  void (*associative_read_dkeys)(const AssociativeReadBackward&, int64_t begin, int64_t end);
  void (*associative_read_dvalues)(const AssociativeReadBackward&, int64_t begin, int64_t end);
  void (*adapter_linear)(const AdapterLinear&, int64_t begin, int64_t end);
  void (*count_magnitudes)(MagnitudeCount&, int64_t begin, int64_t end);
  void (*ties_merge)(const TiesMerge&, int64_t begin, int64_t end);
  void (*masked_sgd)(const MaskedSgd&, int64_t begin, int64_t end);
  void (*delta_linear)(const DeltaLinear&, int64_t begin, int64_t end);
  void (*label_losses)(const LabelLosses&, int64_t begin, int64_t end);
  void (*label_losses_combine)(const LabelLosses&);
  bool tiles = false;  // whether masked_linear of bfloat16 keeps pace with a product of matrices
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
