// The emulator's processor: a block is one OS thread, each CUDA thread of it a fiber (ucontext; longjmp between them,
// for swapcontext makes two system calls a switch).
//
// Fibers run until they wait at a barrier. Warps and lanes take turns in an order that the seed decides, and a warp
// may run far ahead of the others between two __syncthreads, so that a kernel that misses a barrier gives other
// results under another seed. A barrier that its threads cannot all reach ends the process with "divergent barrier".
// Not modelled: weak memory, occupancy, warps that diverge and shuffle without a mask that says so.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using uint3 = dim3;

namespace emulate {

constexpr unsigned WARP = 32;

enum class State { ready, at_warp_barrier, at_block_barrier, done };

// What a kernel sees of the thread and the block that it runs in.
struct Here {
  uint3 thread, block, block_size, grid_size;
  unsigned lane;
  const std::uint64_t* received;  // of the last warp collective: what every lane of the mask sent
  int votes;                      // of the last block barrier: how many sent something but 0
};

const Here& here();

// Wait until all that the barrier is for have come: the lanes of `mask`, or the block. `file` and `line` say where.
void wait(State barrier, unsigned mask, std::uint64_t sent, const char* file, int line);

// The shared array declared at a place in the source: one per block, made by the first thread to come there.
void* shared_array(std::size_t bytes, const char* file, int line);
void* dynamic_shared();

// Run `body(context)` as every thread of every block, in an order that CORRIGENDA_EMULATE_SEED decides (0: plain), on
// two OS threads: blocks meet in global atomics.
void run_grid(void (*body)(const void*), const void* context, dim3 grid, dim3 block, std::size_t dynamic_bytes);

}  // namespace emulate
