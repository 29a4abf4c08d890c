// Picks the table of kernels by what the processor has.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace corrigenda {
namespace {

struct Choice {
  const char* name;
  const Kernels* table;
  bool (*runs)();
};

// Best first. By feature, not by `target_clones("arch=...")`: architecture names match one vendor's processors only,
// and an AMD processor with AVX-512 would silently run the baseline.
const Choice choices[] = {
#if defined(__x86_64__)
    {"avx512", &avx512::table,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vpopcntdq");
     }},
    {"avx2", &avx2::table,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {"baseline", &baseline::table, [] { return true; }},
};

const Choice* find(const char* name) {
  for (const Choice& choice : choices)
    if ((!std::strcmp(name, "auto") || !std::strcmp(name, choice.name)) && choice.runs()) return &choice;
  return nullptr;
}

// CORRIGENDA_CPU names an instruction set to run, for tests and comparisons; one that does not run here is ignored.
const Choice* initial() {
  const char* name = std::getenv("CORRIGENDA_CPU");
  const Choice* asked = name ? find(name) : nullptr;
  return asked ? asked : find("auto");
}

const Choice* current = initial();

}  // namespace

const Kernels& kernels() { return *current->table; }

bool select(const char* instructions) {
  const Choice* choice = find(instructions);
  if (choice) current = choice;
  return choice;
}

const char* selected() { return current->name; }

}  // namespace corrigenda
