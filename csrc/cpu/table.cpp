// One instruction set's table of kernels.
#include "kernels.h"

namespace corrigenda::CORRIGENDA_INSTRUCTIONS {

bool topk_mask(const TopkMask&, int64_t begin, int64_t end);
void mask_overlap(const MaskOverlap&, const Part&, NearestMask* best);
void token_overlap(const TokenOverlap&, const Part&, NearestTokens* best);
void nearest_key(const NearestKey&, const Part&, NearestStored* best);
void masked_linear(const MaskedLinear&, int64_t begin, int64_t end);
void masked_linear_upstream(const MaskedLinearBackward&, int64_t begin, int64_t end);
void masked_linear_dx(const MaskedLinearBackward&, int64_t begin, int64_t end);
void masked_linear_dmemory(const MaskedLinearBackward&, int64_t begin, int64_t end);
void associative_read(const AssociativeRead&, int64_t begin, int64_t end);
void associative_read_scores(const AssociativeReadBackward&, int64_t begin, int64_t end);
void associative_read_dkeys(const AssociativeReadBackward&, int64_t begin, int64_t end);
void associative_read_dvalues(const AssociativeReadBackward&, int64_t begin, int64_t end);
void adapter_linear(const AdapterLinear&, int64_t begin, int64_t end);
void count_magnitudes(MagnitudeCount&, int64_t begin, int64_t end);
void ties_merge(const TiesMerge&, int64_t begin, int64_t end);
void masked_sgd(const MaskedSgd&, int64_t begin, int64_t end);
void delta_linear(const DeltaLinear&, int64_t begin, int64_t end);
void label_losses(const LabelLosses&, int64_t begin, int64_t end);
void label_losses_combine(const LabelLosses&);

const Kernels table = {
    topk_mask,
    mask_overlap,
    token_overlap,
    nearest_key,
    masked_linear,
    masked_linear_upstream,
    masked_linear_dx,
    masked_linear_dmemory,
    associative_read,
    associative_read_scores,
    associative_read_dkeys,
    associative_read_dvalues,
    adapter_linear,
    count_magnitudes,
    ties_merge,
    masked_sgd,
    delta_linear,
    label_losses,
    label_losses_combine,
};

}  // namespace corrigenda::CORRIGENDA_INSTRUCTIONS
