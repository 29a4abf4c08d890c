"""mask_route in Triton: two launches for short prompts, three for long ones.

The selection clears the counters that the matching counts its programs with, and the last of these applies the
threshold.
"""

from .mask_overlap import match
from .topk_mask import topk_mask


def mask_route(x, offsets, k, weight, background, permutation, stored, minimum, valid, query_group, stored_group):
    ticket = offsets.new_empty(offsets.shape[0] - 1)
    query = topk_mask(x, offsets, k, weight, background, permutation, ticket)
    return match(query, stored, valid, query_group, stored_group, minimum, ticket)
