// One instruction set's table of kernels.
#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

bool topk_mask(const TopkMask&, int64_t begin, int64_t end);
void mask_overlap(const MaskOverlap&, const Part&, NearestMask* best);
void token_overlap(const TokenOverlap&, const Part&, NearestTokens* best);

const Kernels table = {
    topk_mask,
    mask_overlap,
    token_overlap,
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
