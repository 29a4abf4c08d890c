// associative_read: what the forward and the backward pass share.
#pragma once

#include "associative_read.h"
#include "elements.cuh"

constexpr int PAGE_ROWS = 8;
constexpr float SMALLEST_NORM = 1e-6f;

struct AssociativeRead {
  Elements y;  // in the backward pass, the gradient
  Elements x;
  const bool* first;
  Elements keys;
  Elements values;
  const int* pages;  // [edits, max_pages]
  const int* rows;
  const int* route;
  const float* background;
  float beta;
  const float* scales;
  std::int64_t tokens, width, outputs, max_pages;
  MutableElements out;

  // The place of row r of an edit in the banks.
  __device__ __forceinline__ std::int64_t slot(int edit, int r) const {
    return std::int64_t{pages[edit * max_pages + r / PAGE_ROWS]} * PAGE_ROWS + r % PAGE_ROWS;
  }
};

inline AssociativeRead associative_read_of(const ReadingArguments& arguments, Elements y, const float* scales,
                                           MutableElements out) {
  return {y,
          {arguments.x, arguments.x_dtype},
          arguments.first,
          {arguments.keys, arguments.keys_dtype},
          {arguments.values, arguments.values_dtype},
          arguments.pages,
          arguments.rows,
          arguments.route,
          arguments.background,
          arguments.beta,
          scales,
          arguments.tokens,
          arguments.width,
          arguments.outputs,
          arguments.max_pages,
          out};
}

// The rows of its edit that a token reads, begin <= r < end: row 0 alone where it is first, the others else.
struct Span {
  int edit, begin, end;
};

__device__ __forceinline__ Span rows_read(const AssociativeRead& op, std::int64_t token) {
  const int edit = op.route[token];
  const bool opens = op.first[token];
  if (edit < 0) return {edit, 0, 0};
  const int count = op.rows[edit];
  return opens ? Span{edit, 0, min(count, 1)} : Span{edit, 1, max(count, 1)};
}

constexpr int SCORE_COUNT = 8;  // neighbours that a lane takes at once

// Whether `length` elements can be read SCORE_COUNT at a time.
inline bool in_packs(const Elements& array, std::int64_t length) {
  return length % SCORE_COUNT == 0 && is_aligned(array.data);
}

inline bool keys_in_packs(const AssociativeRead& op) {
  return in_packs(op.keys, op.width) && in_packs(op.x, op.width) && is_aligned(op.background);
}

// By a warp: row `slot` of the values . y, in every lane.
__device__ __forceinline__ float value_product(const AssociativeRead& op, std::int64_t token, std::int64_t slot,
                                               bool packed) {
  const int lane = threadIdx.x % WARP_SIZE;
  float product = 0;
  if (packed) {
    for (std::int64_t i = lane * SCORE_COUNT; i < op.outputs; i += WARP_SIZE * SCORE_COUNT) {
      float value[SCORE_COUNT], gradient[SCORE_COUNT];
      load_floats(op.values, slot * op.outputs + i, true, value);
      load_floats(op.y, token * op.outputs + i, true, gradient);
#pragma unroll
      for (int j = 0; j < SCORE_COUNT; j++) product = __fmaf_rn(value[j], gradient[j], product);
    }
  } else {
    for (std::int64_t i = lane; i < op.outputs; i += WARP_SIZE) {
      product = __fmaf_rn(op.values[slot * op.outputs + i], op.y[token * op.outputs + i], product);
    }
  }
  return lanes_sum(product);
}

// By a warp: key . (x - background) and |x - background|^2, in every lane.
struct Projection {
  float product, square;
};

__device__ __forceinline__ Projection project(const AssociativeRead& op, std::int64_t token, std::int64_t slot,
                                              bool packed) {
  const int lane = threadIdx.x % WARP_SIZE;
  float product = 0, square = 0;
  const auto add = [&](float key, float centred) {
    product = __fmaf_rn(key, centred, product);
    square = __fmaf_rn(centred, centred, square);
  };
  if (packed) {
    for (std::int64_t i = lane * SCORE_COUNT; i < op.width; i += WARP_SIZE * SCORE_COUNT) {
      float key[SCORE_COUNT], feature[SCORE_COUNT], background[SCORE_COUNT];
      load_floats(op.keys, slot * op.width + i, true, key);
      load_floats(op.x, token * op.width + i, true, feature);
      load_floats(Elements{op.background, FLOAT32}, i, true, background);
#pragma unroll
      for (int j = 0; j < SCORE_COUNT; j++) add(key[j], feature[j] - background[j]);
    }
  } else {
    for (std::int64_t i = lane; i < op.width; i += WARP_SIZE) {
      add(op.keys[slot * op.width + i], op.x[token * op.width + i] - op.background[i]);
    }
  }
  return {lanes_sum(product), lanes_sum(square)};
}

__device__ __forceinline__ float norm_of(const Projection& projection) {
  return fmaxf(sqrtf(projection.square), SMALLEST_NORM);
}

__device__ __forceinline__ float score(const AssociativeRead& op, const Projection& projection) {
  return op.beta * (projection.product / norm_of(projection));
}

// By all THREADS threads of a block; `shared` has a place per warp and is free again when they return.
template <int THREADS, typename Combine>
__device__ __forceinline__ float block_reduce(float value, float* shared, Combine combine) {
#pragma unroll
  for (int step = WARP_SIZE / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(FULL_WARP, value, step));
  if (threadIdx.x % WARP_SIZE == 0) shared[threadIdx.x / WARP_SIZE] = value;
  __syncthreads();
  value = shared[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / WARP_SIZE; warp++) value = combine(value, shared[warp]);
  __syncthreads();
  return value;
}

// The largest of `count` scores, and the sum of exp(score - largest).
struct Softmax {
  float largest, sum;
};

template <int THREADS>
__device__ __forceinline__ Softmax softmax_of(const float* scores, int count, float* shared) {
  float largest = -INFINITY, sum = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) largest = fmaxf(largest, scores[i]);
  largest = block_reduce<THREADS>(largest, shared, [](float a, float b) { return fmaxf(a, b); });
  for (int i = threadIdx.x; i < count; i += THREADS) sum += expf(scores[i] - largest);
  sum = block_reduce<THREADS>(sum, shared, [](float a, float b) { return a + b; });
  return {largest, sum};
}
