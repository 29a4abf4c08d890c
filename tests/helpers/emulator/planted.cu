// Kernels for tests/kernels/test_emulator.py, most of them with a mistake that must be caught.
#include <cstdio>
#include <cstdlib>

#include "primitives.cuh"

namespace {

// out[i] = in[n - 1 - i], through shared memory; without the barrier a thread may read what is not written yet.
__global__ void reverse(const int* in, int* out, int barrier) {
  SHARED_ARRAY(int, tile, 64);
  const int i = threadIdx.x;
  tile[i] = in[i];
  if (barrier) __syncthreads();
  out[i] = tile[63 - i];
}

__global__ void half_of_the_block_waits(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
  if (threadIdx.x >= 32) __syncthreads();
}

__global__ void half_of_a_warp_shuffles(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1, 1);
}

__global__ void half_of_a_warp_shuffles_with_its_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xFFFFu, static_cast<int>(threadIdx.x), 1);
}

__global__ void read_past_shared_memory(int* out) {
  SHARED_ARRAY(int, tile, 64);
  tile[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}

__global__ void read_past_an_array(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }

__global__ void load_misaligned(const int* in, int* out) {
  out[threadIdx.x] = reinterpret_cast<const int4*>(in + 1)->x;
}

__global__ void sum_of_blocks(const int* in, unsigned* finished, int* partial, int* out) {
  SHARED_ARRAY(unsigned, is_last, 1);
  const int sum = lanes_sum(in[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!last_block_done(finished, gridDim.x, is_last) || threadIdx.x != 0) return;
  *out = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) *out += partial[block];
}

template <typename T>
__global__ void round_trip(const float* in, T* there, float* back, std::int64_t count) {
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    there[i] = from_float<T>(in[i]);
    back[i] = to_float(there[i]);
  }
}

}  // namespace

extern "C" cudaError_t corrigenda_round_trip(const float* in, int dtype, void* there, float* back, std::int64_t count,
                                             cudaStream_t stream) {
  return dtype == BFLOAT16
             ? launch(round_trip<__nv_bfloat16>, 1, 32, 0, stream, in, static_cast<__nv_bfloat16*>(there), back, count)
             : launch(round_trip<__half>, 1, 32, 0, stream, in, static_cast<__half*>(there), back, count);
}

extern "C" cudaError_t corrigenda_reverse(const int* in, int* out, std::int64_t barrier, cudaStream_t stream) {
  return launch(reverse, 1, 64, 0, stream, in, out, static_cast<int>(barrier));
}

extern "C" cudaError_t corrigenda_sum_of_blocks(const int* in, std::int64_t blocks, unsigned* finished, int* partial,
                                                int* out, cudaStream_t stream) {
  return launch(sum_of_blocks, static_cast<unsigned>(blocks), 32, 0, stream, in, finished, partial, out);
}

extern "C" cudaError_t corrigenda_too_many_threads(int* out, cudaStream_t stream) {
  return launch(read_past_shared_memory, 1, 1025, 0, stream, out);
}

// The planted mistake of that number, as a program, for those that end the process.
int main(int, char** arguments) {
  int* in = static_cast<int*>(std::calloc(64, sizeof(int)));
  int* out = static_cast<int*>(std::calloc(64, sizeof(int)));
  switch (std::atoi(arguments[1])) {
    case 0: launch(reverse, 1, 64, 0, nullptr, in, out, 1); break;
    case 1: launch(half_of_the_block_waits, 1, 64, 0, nullptr, out); break;
    case 2: launch(half_of_a_warp_shuffles, 1, 32, 0, nullptr, out); break;
    case 3: launch(half_of_a_warp_shuffles_with_its_mask, 1, 32, 0, nullptr, out); break;
    case 4: launch(read_past_shared_memory, 1, 64, 0, nullptr, out); break;
    case 5: launch(read_past_an_array, 1, 64, 0, nullptr, in, out); break;
    case 6: launch(load_misaligned, 1, 1, 0, nullptr, in, out); break;
  }
  std::printf("ended %d\n", out[1]);
  std::free(in);
  std::free(out);
}
