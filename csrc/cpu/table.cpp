// One instruction set's table of kernels.
#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

void mask_overlap(const MaskOverlap&, int64_t begin, int64_t end);
void masked_linear(const MaskedLinear&, int64_t begin, int64_t end);

const Kernels table = {mask_overlap, masked_linear};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
