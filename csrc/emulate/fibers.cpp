// Runs the threads of a block as fibers of one CPU thread, in an order that a seed shuffles, up to each barrier.
#include "fibers.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulate {
namespace {

constexpr std::size_t STACK_BYTES = 256 * 1024;  // reserved, not touched; a sanitizer's frames are wide
constexpr unsigned char POISON = 0xA5;           // what shared memory holds before it is written

struct Fiber {
  ucontext_t context;  // where it starts
  jmp_buf place;       // where it goes on
  bool started = false;
  uint3 index;
  unsigned linear = 0;
  State state = State::done;
  unsigned mask = 0;                  // the lanes that this one waits for
  const char* file = "";              // the barrier's place
  int line = 0;
  std::uint64_t sent = 0;             // what a collective takes
  std::uint64_t received[WARP] = {};  // what it gives: every lane's `sent`
  int votes = 0;                      // of a __syncthreads that counts
};

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
using Heap = std::unique_ptr<unsigned char, FreeDeleter>;

Heap poisoned(std::size_t bytes) {
  // 16-byte aligned and no longer than asked for: the byte after the end is the sanitizer's.
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, std::max<std::size_t>(bytes, 1)) != 0) std::abort();
  std::memset(memory, POISON, bytes);
  return Heap(static_cast<unsigned char*>(memory));
}

[[noreturn]] void fail(const char* what, const Fiber& fiber) {
  std::fprintf(stderr, "%s: thread (%u, %u, %u) waits at %s:%d\n", what, fiber.index.x, fiber.index.y,
               fiber.index.z, fiber.file, fiber.line);
  std::abort();
}

// One OS thread: runs blocks, one after the other, on fibers that live as long as it does.
class Worker {
public:
  Here here{};
  Fiber* current = nullptr;

  Worker(void (*body)(const void*), const void* context, dim3 grid, dim3 block, std::size_t dynamic_bytes,
         std::uint64_t seed)
    : body(body), context(context), dynamic_bytes(dynamic_bytes), seed(seed),
      fibers(block.x * block.y * block.z) {
    here.block_size = block;
    here.grid_size = grid;
    const std::size_t bytes = fibers.size() * STACK_BYTES;
    stacks = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) std::abort();
    for (unsigned i = 0; i < fibers.size(); ++i) {
      Fiber& fiber = fibers[i];
      fiber.linear = i;
      fiber.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks + i * STACK_BYTES;
      fiber.context.uc_stack.ss_size = STACK_BYTES;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Worker::fiber_main, 0);
    }
    warps.resize((fibers.size() + WARP - 1) / WARP);
    std::iota(warps.begin(), warps.end(), 0);
  }

  ~Worker() { munmap(stacks, fibers.size() * STACK_BYTES); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void run(uint3 index) {
    here.block = index;
    shared.clear();
    dynamic = poisoned(dynamic_bytes);
    random.seed(seed * 1000003 + index.x + 4099ull * index.y + 16777259ull * index.z);
    for (Fiber& fiber : fibers) fiber.state = State::ready;
    while (!finished()) {
      if (seed != 0) std::shuffle(warps.begin(), warps.end(), random);
      bool moved = false;
      for (unsigned warp : warps) {
        while (advance(warp)) {
          moved = true;
          if (seed != 0 && random() % 4 == 0) break;
        }
      }
      if (release_block()) moved = true;
      if (!moved) stuck();
    }
  }

  void wait(State state, unsigned mask, std::uint64_t sent, const char* file, int line) {
    current->state = state;
    current->mask = mask;
    current->sent = sent;
    current->file = file;
    current->line = line;
    to_scheduler();
  }

  // The shared array declared at a place in the source: one per block, made by the first thread to come there.
  void* shared_array(std::size_t bytes, const char* file, int line) {
    Heap& array = shared[{file, line}];
    if (!array) array = poisoned(bytes);
    return array.get();
  }

  void* dynamic_shared() const { return dynamic.get(); }

  static Worker*& mine() {
    static thread_local Worker* worker = nullptr;
    return worker;
  }

private:
  static void fiber_main() {
    Worker* worker = mine();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &worker->home_stack, &worker->home_bytes);
#endif
    for (;;) {
      worker->body(worker->context);
      worker->current->state = State::done;
      worker->to_scheduler();
    }
  }

  void enter(Fiber& fiber) {
    current = &fiber;
    here.thread = fiber.index;
    here.lane = fiber.linear % WARP;
    here.received = fiber.received;
    here.votes = fiber.votes;
  }

#if defined(__SANITIZE_ADDRESS__)
  // The sanitizer has to know of each change of stacks, and takes longjmp for the end of frames.
  void resume(Fiber& fiber) {
    enter(fiber);
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.context.uc_stack.ss_sp, STACK_BYTES);
    swapcontext(&home, &fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  void to_scheduler() {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, home_stack, home_bytes);
    swapcontext(&current->context, &home);
    __sanitizer_finish_switch_fiber(fake, &home_stack, &home_bytes);
  }

  ucontext_t home;
#else
  void resume(Fiber& fiber) {
    enter(fiber);
    if (_setjmp(home) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  void to_scheduler() {
    if (_setjmp(current->place) == 0) _longjmp(home, 1);
  }

  jmp_buf home;
#endif

  bool finished() const {
    return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.state == State::done; });
  }

  unsigned lanes_of(unsigned warp) const {
    return std::min<unsigned>(WARP, fibers.size() - warp * WARP);
  }

  // Run each lane that can, then open the warp's barriers that are complete; false if nothing moved.
  bool advance(unsigned warp) {
    Fiber* lanes = &fibers[warp * WARP];
    const unsigned count = lanes_of(warp);
    unsigned order[WARP];
    std::iota(order, order + count, 0);
    if (seed != 0) std::shuffle(order, order + count, random);
    bool moved = false;
    for (unsigned i = 0; i < count; ++i) {
      if (lanes[order[i]].state != State::ready) continue;
      resume(lanes[order[i]]);
      moved = true;
    }
    return release_warp(lanes, count) || moved;
  }

  bool release_warp(Fiber* lanes, unsigned count) {
    const unsigned existing = count == WARP ? ~0u : (1u << count) - 1;
    bool released = false;
    for (unsigned first = 0; first < count; ++first) {
      if (lanes[first].state != State::at_warp_barrier) continue;
      const unsigned mask = lanes[first].mask & existing;
      if (!(mask >> first & 1)) fail("a lane is missing from its own mask", lanes[first]);
      bool complete = true;
      std::uint64_t sent[WARP] = {};
      for (unsigned lane = 0; lane < count; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const Fiber& other = lanes[lane];
        if (other.state == State::done) fail("divergent barrier (a lane of the mask has ended)", lanes[first]);
        complete = complete && other.state == State::at_warp_barrier &&
                   (other.mask & existing) == mask && other.line == lanes[first].line;
        sent[lane] = other.sent;
      }
      if (!complete) continue;
      for (unsigned lane = 0; lane < count; ++lane) {
        if (!(mask >> lane & 1)) continue;
        std::memcpy(lanes[lane].received, sent, sizeof sent);
        lanes[lane].state = State::ready;
      }
      released = true;
    }
    return released;
  }

  bool release_block() {
    const Fiber* first = nullptr;
    int votes = 0;
    for (const Fiber& fiber : fibers) {
      if (fiber.state == State::done) continue;
      if (fiber.state != State::at_block_barrier) return false;
      if (first == nullptr) first = &fiber;
      if (fiber.line != first->line || std::strcmp(fiber.file, first->file) != 0) fail("divergent barrier", fiber);
      votes += fiber.sent != 0;
    }
    for (Fiber& fiber : fibers) {
      if (fiber.state == State::done) continue;
      fiber.votes = votes;
      fiber.state = State::ready;
    }
    return first != nullptr;
  }

  [[noreturn]] void stuck() const {
    for (const Fiber& fiber : fibers) {
      if (fiber.state == State::at_warp_barrier) fail("divergent barrier", fiber);
    }
    std::abort();
  }

  void (*body)(const void*);
  const void* context;
  std::size_t dynamic_bytes;
  std::uint64_t seed;
  std::vector<Fiber> fibers;
  std::vector<unsigned> warps;
  std::mt19937_64 random;
  char* stacks = nullptr;
  const void* home_stack = nullptr;  // the scheduler's, which the address sanitizer asks for
  std::size_t home_bytes = 0;
  std::map<std::pair<const char*, int>, Heap> shared;
  Heap dynamic{nullptr};
};

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

}  // namespace

const Here& here() { return Worker::mine()->here; }

void wait(State barrier, unsigned mask, std::uint64_t sent, const char* file, int line) {
  Worker::mine()->wait(barrier, mask, sent, file, line);
}

void* shared_array(std::size_t bytes, const char* file, int line) {
  return Worker::mine()->shared_array(bytes, file, line);
}

void* dynamic_shared() { return Worker::mine()->dynamic_shared(); }

void run_grid(void (*body)(const void*), const void* context, dim3 grid, dim3 block, std::size_t dynamic_bytes) {
  const std::uint64_t seed = from_environment("CORRIGENDA_EMULATE_SEED", 0);
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  std::vector<std::uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  std::atomic<std::uint64_t> next{0};
  const auto work = [&] {
    Worker worker(body, context, grid, block, dynamic_bytes, seed);
    Worker::mine() = &worker;
    for (std::uint64_t i = next++; i < blocks; i = next++) {
      const unsigned linear = static_cast<unsigned>(order[i]);
      worker.run({linear % grid.x, linear / grid.x % grid.y, linear / (grid.x * grid.y)});
    }
    Worker::mine() = nullptr;
  };
  const std::uint64_t workers = std::min(blocks, from_environment("CORRIGENDA_EMULATE_WORKERS", 2));
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < workers; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace emulate
