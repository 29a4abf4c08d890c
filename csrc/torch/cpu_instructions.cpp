// Which instruction set the CPU kernels use, and choosing one.
#include <string>

#include "../cpu/kernels.h"
#include "tensors.h"

namespace corrigenda {
namespace {

std::string cpu_instructions() { return selected(); }

bool select_cpu_instructions(std::string name) { return select(name.c_str()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(corrigenda_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&cpu_instructions));
  m.impl("select_cpu_instructions", TORCH_BOX(&select_cpu_instructions));
}

}  // namespace corrigenda
