// One instruction set's table of kernels.
#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

void mask_overlap(const MaskOverlap&, int64_t begin, int64_t end);

const Kernels table = {mask_overlap};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
