// masked_linear: what the forward pass for few tokens, that for many, and the backward pass share.
#pragma once

#include "elements.cuh"

struct MaskedLinear {
  Elements y;  // in the backward pass, the gradient
  Elements x;
  Elements memory;
  const unsigned* masks;  // [M, words]
  const int* route;
  std::int64_t tokens, width, outputs, words;
  MutableElements out;

  __device__ __forceinline__ bool has(int entry, std::int64_t row) const {
    return masks[entry * words + row / 32] >> (row % 32) & 1;
  }

  // What a token without a route gets: nothing, and its row is written only if it has not been there before.
  __device__ __forceinline__ void keep(std::int64_t place) const {
    if (out.data != y.data) out.copy(place, y.data);
  }
};

// How the set bits are shared among blocks, each of which leaves partial sums [splits, tokens, outputs].
struct Splits {
  int number;
  int words;  // of the masks, per split
  float* partial;
};

// The format in which a tile is multiplied: that of both operands if it is a 16-bit one, else float32.
inline int product_dtype(const Elements& a, const Elements& b) { return a.dtype == b.dtype ? a.dtype : FLOAT32; }

// Whether rows of `length` elements can be read by T, 16 bytes at a time.
template <typename T>
bool in_packs(const Elements& array, std::int64_t length) {
  return array.dtype == DTYPE_OF<T> && length % VECTOR_WIDTH<T> == 0 && is_aligned(array.data);
}

// For at most GATHERED_TOKENS tokens: masked_linear_gather.cu.
constexpr int GATHERED_TOKENS = 8;
constexpr int GATHERED_WORDS = 16;  // of a mask that one block takes at most
constexpr int GATHERED_COLUMNS = 256;
cudaError_t launch_gather(const MaskedLinear& op, const Splits& splits, cudaStream_t stream);
