"""The public ops: what each computes, in which shapes, and its gradient; `schemas.py` registers them with torch.

Outputs are new, contiguous tensors. Floats may be float32, bfloat16 or float16, mixed as you like, and accumulate in
float32 (the reference backend also takes float64). A wrong argument raises ValueError and names itself.

A mask is D bits in W = ceil(D/32) int32 words: entry i is bit i % 32 of word i // 32, bits beyond D are zero
(`reference.pack_mask`, `reference.unpack_mask`). A `route` gives each token the entry that it reads, or -1:
its row of the output is then its row of `y`, bit for bit (adding zero would turn -0.0 into 0.0).
"""

from . import schemas
from .autograd import AssociativeRead, LabelLosses, MaskedLinear, wanted


def _refuse_gradient(op, *tensors):
    if wanted(*tensors):
        raise RuntimeError(f"{op} records no gradient: call it under torch.no_grad()")


def topk_mask(x, offsets, k, weight=None, background=None, permutation=None):
    """Fingerprint each sequence: the k largest magnitudes of its centred mean feature, as a bit mask.

        pooled_b = sum_t w_t x_t / sum_t w_t  over the tokens t of sequence b,  minus background
        bit permutation[i] of mask b  =  |pooled_b[i]| is among the k largest of row b

    Ties go to the lowest index i, exactly k bits are set. A NaN counts as infinitely large. A sequence that
    is empty, or whose weights sum to zero, pools to zero before the background is subtracted. The mean is
    float32 in no promised order of summation, so two backends may part where two magnitudes differ by
    rounding alone.

    Args:
        x: [tokens, D] float32, bfloat16 or float16, the sequences' features, packed.
        offsets: [B + 1] int32, ascending; sequence b is x[offsets[b]:offsets[b + 1]]; no other token is read.
        k: bits to set, between 1 and D.
        weight: [tokens] float32, or None for the plain mean.
        background: [D] float32, or None for zero.
        permutation: [D] int64, a permutation of 0 .. D - 1, or None for the identity.

    Returns:
        [B, W] int32 masks.

    Source: MEMOIR (arXiv 2506.07899), as its code has it; the weights are ours.
    Cost: O(tokens D) to pool, O(B D) to select.
    """
    return schemas.topk_mask(x, offsets, k, weight, background, permutation)


def mask_overlap(query, stored, valid=None, query_group=None, stored_group=None):
    """Find the stored mask that shares most bits with each query mask.

        overlap_b = max_n popcount(query_b & stored_n),  index_b = the lowest n that attains it

    A query sees the first `valid` rows and, with groups, only those of its own group. A query that sees no
    row gets index -1 and overlap 0; one that sees rows but shares no bit with any gets the first of them.
    Counts are exact. Queries and stored masks may have different numbers of bits set.

    Args:
        query: [B, W] int32 masks.
        stored: [N, W] int32 masks; N may be a capacity of which `valid` rows are in use.
        valid: [1] int32 on the masks' device, or None for N; beyond N it counts as N.
        query_group: [B] int32, or None (then stored_group too).
        stored_group: [N] int32.

    Returns:
        index [B] int32, overlap [B] int32.

    Source: MEMOIR (arXiv 2506.07899), as its code has it.
    Cost: O(B N W).
    """
    return schemas.mask_overlap(query, stored, valid, query_group, stored_group)


def mask_route(
    x, offsets, k, weight, background, permutation, stored, minimum, valid=None, query_group=None, stored_group=None
):
    """Name the stored mask that each sequence is about: `topk_mask`, `mask_overlap` and a threshold in one.

        nearest_b, overlap_b = mask_overlap(topk_mask(x)_b, stored)
        route_b = nearest_b  where overlap_b >= minimum, else -1

    Args:
        x, offsets, k, weight, background, permutation: as in `topk_mask`.
        stored, valid, query_group, stored_group: as in `mask_overlap`.
        minimum: [1] int32 on x's device, the least overlap that counts: on the device, so that a captured graph
            follows a threshold that moves.

    Returns:
        nearest [B] int32, overlap [B] int32, route [B] int32.

    Source: MEMOIR (arXiv 2506.07899), as its code has it.
    Cost: O(tokens D + B D + B N W).
    """
    return schemas.mask_route(
        x, offsets, k, weight, background, permutation, stored, minimum, valid, query_group, stored_group
    )


def token_overlap(query, stored, rarity, extra_weight, valid=None, query_group=None, stored_group=None):
    """Find the stored token set that each query's tokens match best, rare tokens counting most.

        shared = sum of rarity over the tokens that both hold
        score_bn = shared / (sum of rarity over stored_n + extra_weight (sum of rarity over query_b - shared))
        index_b = the lowest n with the largest score, runner_up_b = the largest score of the others

    The Tversky index with prototype weight 1: what the stored set lacks counts in full, what the query says
    beyond it `extra_weight` as much. Sums are exact integers, so that backends differ by the rounding of one
    float32 multiplication, addition and division at most. A row without mass scores 0; a query that sees no
    row gets index -1 and scores 0. Rows are seen as in `mask_overlap`.

    Args:
        query: [B, Q] int32 token ids below V, distinct within a row, -1 where a row has ended.
        stored: [N, L] int32, likewise.
        rarity: [V] int32, at least 0, the weight of each token; a row's sum stays below 2^24.
        extra_weight: float, at least 0.
        valid: [1] int32, or None.
        query_group: [B] int32, or None (then stored_group too).
        stored_group: [N] int32.

    Returns:
        index [B] int32, score [B] float32, runner_up [B] float32.

    Source: ours; the index is Tversky's (Features of similarity, 1977).
    Cost: O(B (V + N L)) in the reference.
    """
    return schemas.token_overlap(query, stored, rarity, extra_weight, valid, query_group, stored_group)


def nearest_key(query, stored, radius=None, cosine=False, valid=None, query_group=None, stored_group=None):
    """Find the stored key that is nearest to each query, and whether the query lies within that key's radius.

        distance_bn = |query_b - stored_n|                                     or with `cosine`
                      1 - query_b . stored_n / (|query_b| |stored_n|)          1 where a length is 0; at least 0
        index_b = the lowest n with the smallest distance
        route_b = index_b  where distance_b <= radius[index_b], else -1

    Euclidean distances are made of differences: a key that is asked for itself is at 0, to the bit. Sums are in
    float32 and in each backend's order, so that of rows that are as near to rounding any may be the nearest. A row
    whose distance is no finite number is not seen; a query that sees no row gets index and route -1, distance
    infinity. Rows are seen as in `mask_overlap`: by `valid`, and those of a query's own group.

    Args:
        query: [B, D] float32, bfloat16 or float16 (float64 on the reference backend).
        stored: [N, D], of the same dtype.
        radius: [N] float32, or None: every query is routed.
        cosine: whether the distance is the cosine's.
        valid: [1] int32, or None.
        query_group: [B] int32, or None (then stored_group too).
        stored_group: [N] int32.

    Returns:
        index [B] int32, distance [B] float32, route [B] int32.

    Source: the codebook of GRACE (arXiv 2211.11031), the index of MELO (2312.11795).
    Cost: O(B N D).
    """
    return schemas.nearest_key(query, stored, radius, cosine, valid, query_group, stored_group)


def masked_linear(y, x, memory, masks, route):
    """Add to each routed token what the residual memory holds under its mask.

        out_t = y_t + sum over set bits i of masks[route_t] of x_t[i] memory[i, :]      where route_t >= 0
        out_t = y_t                                                                     elsewhere, bit for bit

    Entries of x and rows of memory outside the mask are not read: a NaN there does no harm. The sum is
    rounded once, to y's dtype. Differentiable in y, x and memory.

    Where a CPU has AMX, many tokens in bfloat16 share products of matrices, here and in the gradients: factors
    and sums below 1.2e-38 then count as zero, and the order of a sum, so its last bit, depends on the batch.

    Args:
        y: [tokens, d] float, the output of the frozen layer.
        x: [tokens, D] float, its input.
        memory: [D, d] float, the residual matrix, transposed.
        masks: [M, W] int32.
        route: [tokens] int32, a row of masks, or -1.

    Returns:
        [tokens, d] in y's dtype.

    Source: MEMOIR (arXiv 2506.07899), as its code has it.
    Cost: O(k d) per routed token with k bits set, nothing for the others.
    """
    if wanted(y, x, memory):
        return MaskedLinear.apply(y, x, memory, masks, route)
    return schemas.masked_linear(y, x, memory, masks, route)


def masked_linear_(y, x, memory, masks, route):
    """`masked_linear` into y, for inference: writes the routed rows of y, no others; returns y.

    Raises RuntimeError where a gradient would have to be recorded.
    """
    _refuse_gradient("masked_linear_", y, x, memory)
    schemas.masked_linear_(y, x, memory, masks, route)
    return y


def masked_linear_backward(grad, x, memory, masks, route, needed=(True, True)):
    """Gradients of `masked_linear` (that of y is `grad` itself), for t over the routed tokens.

        dx_t[i] = grad_t . memory[i]              at the set bits i of masks[route_t], 0 elsewhere
        dmemory[i] = sum_t x_t[i] grad_t          over the tokens t with bit i set

    Args:
        grad: [tokens, d] float; x, memory, masks, route as in the forward op.
        needed: which of (dx, dmemory) to compute; the other comes back empty, [0, 0].

    Returns:
        dx [tokens, D] in x's dtype, dmemory [D, d] in memory's dtype, each rounded once.

    Cost: O(k d) per routed token and gradient, and one pass over each output to clear it.
    """
    _refuse_gradient("masked_linear_backward", grad, x, memory)
    return schemas.masked_linear_backward(grad, x, memory, masks, route, needed)


def associative_read(y, x, first, keys, values, pages, rows, route, background, beta, scales=None):
    """Add to each routed token what its edit's own rows answer: a softmax read of values by keys.

        u_t = (x_t - background) / max(|x_t - background|, 1e-6)
        out_t = y_t + values_0                                                     where first_t
        out_t = y_t + sum over r in 1 .. n - 1 of softmax_r(beta keys_r . u_t) values_r     elsewhere

    with n = rows[e] and keys, values those of edit e = route_t; where route_t is -1, out_t is y_t, bit for
    bit. The first position of an answer is known by position, so it reads row 0 without its key, and no other
    position reads row 0. An edit of one row gives nothing to later tokens, an edit of no rows gives nothing
    at all: those rows of y are left bit for bit too. The sum is rounded once, to y's dtype. Differentiable in
    y, x, keys and values.

    Args:
        y: [tokens, d] float, the output of the frozen layer.
        x: [tokens, D] float, its input, or what its input was projected to.
        first: [tokens] bool, whether this is the first position of the answer.
        keys: [P, 8, D] float, a bank in pages of 8 rows.
        values: [P, 8, d] float, laid out likewise; or int8, for reading alone.
        pages: [E, max_pages] int32; row r of edit e is row r % 8 of page pages[e, r // 8]; -1 is no page.
        rows: [E] int32, how many rows edit e has.
        route: [tokens] int32, an edit, or -1.
        background: [D] float32.
        beta: float, the inverse temperature.
        scales: [P, 8] float32, by which int8 values of a row are multiplied; None with float values.

    Returns:
        [tokens, d] in y's dtype.

    Source: ours; the keyed softmax is that of a modern Hopfield layer (arXiv 2008.02217).
    Cost: O(n (D + d)) per routed token, nothing for the others.
    """
    if wanted(y, x, keys, values):
        if scales is not None:
            raise RuntimeError("associative_read records no gradient through int8 values: call it under no_grad()")
        return AssociativeRead.apply(y, x, first, keys, values, pages, rows, route, background, beta)
    return schemas.associative_read(y, x, first, keys, values, pages, rows, route, background, beta, scales)


def associative_read_(y, x, first, keys, values, pages, rows, route, background, beta, scales=None):
    """`associative_read` into y, for inference: writes the rows that get something, no others; returns y.

    Raises RuntimeError where a gradient would have to be recorded.
    """
    _refuse_gradient("associative_read_", y, x, keys, values)
    schemas.associative_read_(y, x, first, keys, values, pages, rows, route, background, beta, scales)
    return y


def associative_read_backward(
    grad, x, first, keys, values, pages, rows, route, background, beta, needed=(True, True, True)
):
    """Gradients of `associative_read` (that of y is `grad` itself).

    With p_r the softmax of the forward op, over the later tokens t of each edit, r >= 1, and m_t = |x_t -
    background|:

        dvalues_r = sum_t p_r grad_t                  dvalues_0 = sum of grad over the edit's first tokens
        ds_r = beta p_r (grad_t . values_r - sum_q p_q grad_t . values_q)
        dkeys_r = sum_t ds_r u_t                      dkeys_0 = 0
        du_t = sum_r ds_r keys_r                      dx_t = (du_t - u_t (u_t . du_t)) / m_t

    The middle term of dx vanishes where m_t is at most 1e-6, and 1e-6 divides then.

    Args:
        grad: [tokens, d] float; the others as in the forward op.
        needed: which of (dx, dkeys, dvalues) to compute; the others come back empty, all sizes 0.

    Returns:
        dx [tokens, D], dkeys [P, 8, D], dvalues [P, 8, d], in the dtypes of x, keys, values, each rounded
        once.

    Cost: O(n (D + d)) per routed token, and one pass over each output to clear it.
    """
    _refuse_gradient("associative_read_backward", grad, x, keys, values)
    return schemas.associative_read_backward(grad, x, first, keys, values, pages, rows, route, background, beta, needed)


def adapter_linear_(y, x, down, up, block_of, route):
    """Add to each routed token what its edit's low-rank adapter makes of it, for inference; returns y.

        y_t += sum over r of (x_t . down[b, r]) up[b, r]  with b = block_of[route_t]        where route_t >= 0

    No other row of y is written, and no other adapter is read. Products are summed in float32 and rounded once, to y's
    dtype. Training holds one adapter at a time, for which torch's own products of matrices are the kernel: raises
    RuntimeError where a gradient would have to be recorded.

    Args:
        y: [tokens, d] float, the output of the frozen layer.
        x: [tokens, D] float, its input.
        down: [blocks, rank, D] float.
        up: [blocks, rank, d], of down's dtype.
        block_of: [E] int32, the block of each edit: edits may share one.
        route: [tokens] int32, an edit, or -1.

    Source: LoRA (arXiv 2106.09685) with a block for each batch of edits, MELO (2312.11795).
    Cost: O(rank (D + d)) per routed token, nothing for the others.
    """
    _refuse_gradient("adapter_linear_", y, x, down, up)
    schemas.adapter_linear_(y, x, down, up, block_of, route)
    return y


def ties_merge(deltas, weights, densities):
    """Merge shards of one matrix: trim each, elect a sign per entry, average the entries that agree with it.

        trimmed_s = deltas_s where |deltas_s| >= the k_s-th largest magnitude of shard s, else 0
        sign = + where sum_s weights_s trimmed_s >= 0, else -
        merged = sum_s weights_s trimmed_s / sum_s weights_s   over the s whose weights_s trimmed_s has it

    with k_s = max(1, int(densities_s * n)) for shards of n entries, in double precision as Python has it.
    Entries tied at the threshold are all kept. An entry where no shard agrees, or whose agreeing weights sum
    to zero, is 0; an entry where a kept delta is NaN is NaN, and NaN counts as infinitely large when
    trimming. Rounded once. Raises RuntimeError where a gradient would have to be recorded.

    Args:
        deltas: [S, ...] float, S >= 1 shards.
        weights: [S] float32.
        densities: S numbers in (0, 1], on the host: they decide counts, not values.

    Returns:
        [...] in deltas' dtype.

    Source: TIES (arXiv 2306.01708), with WISE's weights (arXiv 2405.14768).
    Cost: a selection per shard and two passes over the shards.
    """
    _refuse_gradient("ties_merge", deltas, weights)
    return schemas.ties_merge(deltas, weights, [float(density) for density in densities])


def masked_sgd_(delta, x, gradient, masks, base, learning_rate, decay=0.0, decay_masked=False, limit=float("inf")):
    """One step of SGD on some entries of a residual matrix, from the two factors of its gradient; returns delta.

        step = learning_rate mask * (x^T gradient) + decay (base + delta)
        delta <- clamp(delta - step, -limit, limit)

    in one pass over delta, in float32. What decays is the whole weight, frozen part and residual: an optimiser that
    holds their sum shrinks both. Raises RuntimeError where a gradient would have to be recorded.

    Args:
        delta: [D, d] float32, written in place.
        x: [tokens, D] float32, bfloat16 or float16, the layer's input.
        gradient: [tokens, d] likewise, the loss's gradient by the layer's output.
        masks: [D, ceil(d/32)] int32, one bit an entry of delta: which may be written.
        base: [D, d] likewise, the frozen weight, transposed; None where decay is to shrink delta alone.
        learning_rate: float.
        decay: float in [0, 1), the share taken off: learning rate times weight decay.
        decay_masked: bool, whether decay too is confined to the mask's entries.
        limit: float, the largest magnitude in delta.

    Source: WISE (arXiv 2405.14768), as its code has it.
    Cost: O(tokens D d), and one pass over delta, mask and, for decay, base.
    """
    _refuse_gradient("masked_sgd_", delta, x, gradient)
    schemas.masked_sgd_(delta, x, gradient, masks, base, learning_rate, decay, decay_masked, limit)
    return delta


def delta_linear(x, base, delta, offsets, weight=None, activated=False, longest=100):
    """What a residual matrix adds at every token, and how far it moves the output: by token and by sequence.

        side_t = x_t delta
        distance_t = |side_t|, or with `activated` |silu(base_t + side_t) - silu(base_t)|
        score_b = sum_t w_t distance_t / sum_t w_t over the tokens t of sequence b that have a weight, or the
                  maximum of distance_t over them where they are more than `longest`

    A sequence without such tokens scores 0. Raises RuntimeError where a gradient would have to be recorded.

    Args:
        x: [tokens, D] float32, bfloat16 or float16, the layer's input.
        base: [tokens, d] likewise, the frozen layer's output.
        delta: [D, d] likewise.
        offsets: [B + 1] int32, ascending; sequence b is tokens offsets[b] to offsets[b + 1].
        weight: [tokens] float32, not negative, 0 for a token that does not count; None for ones.
        activated: bool.
        longest: the number of tokens up to which a sequence's score is the mean.

    Returns:
        side [tokens, d], distance [tokens], score [B], all float32.

    Source: WISE (arXiv 2405.14768): the raw distance is the paper's, `activated` and `longest` its code's.
    Cost: O(tokens D d).
    """
    _refuse_gradient("delta_linear", x, base, delta)
    return schemas.delta_linear(x, base, delta, offsets, weight, activated, longest)


def label_losses(hidden, weight, labels):
    """Cross-entropy of labels at a model's head, and its gradient by the hidden states, in one reading of the weight.

        loss_t = log(sum_v exp(hidden_t . weight_v)) - hidden_t . weight_y                            with y = labels_t
        gradient_t = sum_v p_tv weight_v - weight_y,  p_t the softmax of hidden_t . weight_v over v

    The logits are not kept. Sums are relative to the largest logit, so only differences of logits need be in range; the
    largest terms of an all but certain label's loss cancel exactly. A NaN or an infinite logit in row t may make loss_t
    and gradient_t NaN, and no other row's unless it comes from the weight. Differentiable in hidden through the losses;
    raises RuntimeError where a gradient of the weight would have to be recorded.

    The reference backend multiplies in the inputs' own dtype: its logits of half precision are rounded to that. With
    "auto" it also runs more than 16 labels of bfloat16 on a processor with AVX-512, where it is faster.

    Args:
        hidden: [labels, d] float, the hidden states that the head is to read.
        weight: [V, d] float, the head.
        labels: [labels] int64, each at least 0 and below V.

    Returns:
        losses [labels] float32 (float64 where an argument is), gradient [labels, d] in hidden's dtype.

    Source: the sums are FlashAttention's (arXiv 2205.14135), with the head as keys and as values.
    Cost: O(labels V d), and one pass over the weight.
    """
    if wanted(weight):
        raise RuntimeError("label_losses records no gradient of the weight: detach it, or use torch's cross_entropy")
    if wanted(hidden):
        return LabelLosses.apply(hidden, weight, labels)
    return schemas.label_losses(hidden, weight, labels)
