// Picks the table of kernels by what the processor has. The build defines CORRIGENDA_AVX2, _AVX512 and _AMX for the
// instruction sets that it made: those that its compiler knows.
#include <cstdlib>
#include <cstring>

#if defined(CORRIGENDA_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace corrigenda {

#if defined(CORRIGENDA_AMX)
namespace amx {
void masked_linear(const MaskedLinear&, int64_t begin, int64_t end);
void masked_linear_dx(const MaskedLinearBackward&, int64_t begin, int64_t end);
void masked_linear_dmemory(const MaskedLinearBackward&, int64_t begin, int64_t end);
}  // namespace amx
#endif

namespace {

struct Choice {
  const char* name;
  const Kernels* table;
  bool (*runs)();
};

#if defined(CORRIGENDA_AVX512)
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vpopcntdq");
}
#endif

#if defined(CORRIGENDA_AMX)
// AVX-512's kernels but for those that have tiles. Made in this file, which every processor runs when it is loaded.
Kernels with_tiles() {
  Kernels kernels = avx512::table;
  kernels.tiles = true;
  kernels.masked_linear = amx::masked_linear;
  kernels.masked_linear_dx = amx::masked_linear_dx;
  kernels.masked_linear_dmemory = amx::masked_linear_dmemory;
  return kernels;
}

const Kernels amx_table = with_tiles();

// Linux gives a process the 8 KB of tile registers when it asks, and says no where the system cannot keep them.
bool runs_amx() {
  unsigned a, b, c, d;
  if (!runs_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool vbmi2 = c >> 6 & 1, bfloat16_tiles = d >> 22 & 1, tiles = d >> 24 & 1;
  if (!vbmi2 || !bfloat16_tiles || !tiles || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  const bool avx512_bfloat16 = a >> 5 & 1;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return avx512_bfloat16 && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

// Best first. By feature, not by `target_clones("arch=...")`: architecture names match one vendor's processors only,
// and an AMD processor with AVX-512 would silently run the baseline.
const Choice choices[] = {
#if defined(CORRIGENDA_AMX)
    {"amx", &amx_table, runs_amx},
#endif
#if defined(CORRIGENDA_AVX512)
    {"avx512", &avx512::table, runs_avx512},
#endif
#if defined(CORRIGENDA_AVX2)
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
