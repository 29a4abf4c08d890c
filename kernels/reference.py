"""The mathematics of every op in plain torch: the oracle of the tests, the fallback, and what an op means.

Only torch is imported. Shapes, ties and rounding are stated where users look, in `ops.py`; arguments are
taken as checked. Floats accumulate in float32, or in float64 where an argument is float64 (gradcheck needs
that).
"""

import torch

PAGE_ROWS = 8  # rows of an edit per page of the key and value banks

# Overlap is counted over so many mask words at a time: 458 KB, so that the passes over them stay in cache.
OVERLAP_WORDS = 256 * 448

# Of a head's weight at once. For 16 labels of SmolLM2, on one core, loss and gradient take 45 ms unblocked, 41, 39 and
# 35 ms in blocks of 1, 2 and 4 MB, and 40 ms in blocks of 19 MB.
HEAD_BYTES = 1 << 22


def pack_mask(bits):
    """bool [..., D] -> int32 [..., ceil(D/32)]: entry i is bit i % 32 of word i // 32, bits beyond D zero."""
    words = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 32)).unflatten(-1, (-1, 32))
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    return (words.to(torch.int32) << place).sum(-1, dtype=torch.int32)  # bit 31 lands in the sign


def unpack_mask(masks, width):
    """int32 [..., ceil(D/32)] -> bool [..., D], for D = `width`: the inverse of `pack_mask`."""
    place = torch.arange(32, dtype=torch.int32, device=masks.device)
    return ((masks.unsqueeze(-1) >> place) & 1).bool().flatten(-2)[..., :width]


def pool(x, offsets, weight=None):
    """Weighted mean of each sequence's rows: x [tokens, D], offsets int32 [B + 1] -> float32 [B, D].

    A sequence that is empty, or whose weights sum to zero, pools to zero.
    """
    tokens, width = x.shape
    rows = offsets.shape[0] - 1
    x = x.float()
    if weight is None:
        weight = x.new_ones(tokens)
    else:
        x = x * weight[:, None]
    # Sequence b is bucket b + 1; buckets 0 and B + 1 take the tokens that no sequence owns. A sum by index
    # keeps sequences apart, which a product with a 0/1 matrix would not: 0 * inf is NaN.
    position = torch.arange(tokens, dtype=offsets.dtype, device=x.device)
    bucket = torch.searchsorted(offsets.contiguous(), position, right=True)
    total = x.new_zeros(rows + 2, width).index_add_(0, bucket, x)[1:-1]
    mass = x.new_zeros(rows + 2).index_add_(0, bucket, weight)[1:-1, None]
    return torch.where(mass == 0, 0.0, total / mass)


def topk_mask(x, offsets, k, weight, background, permutation):
    feature = pool(x, offsets, weight)
    if background is not None:
        feature = feature - background
    magnitude = feature.abs()
    magnitude = torch.where(magnitude.isnan(), torch.inf, magnitude)
    # topk itself promises no order among equals: take all above the k-th value, then the first that equal it.
    threshold = magnitude.topk(k, sorted=False).values.amin(1, keepdim=True)
    above = magnitude > threshold
    equal = magnitude == threshold
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    if permutation is not None:
        placed = torch.empty_like(chosen)
        placed[:, permutation] = chosen
        chosen = placed
    return pack_mask(chosen)


def _popcount_(words):
    """Set bits of each int32 word, in place, by adding neighbours in fields of 2, 4 and 8 bits.

    A byte table is 7 times slower. A product of unpacked bits wins above 8 queries, but by too little for a
    second way: on 4096 masks of 14336 bits and one core, 1 / 8 / 32 queries take 26 / 34 / 78 ms with it and
    3.5 / 32 / 142 ms so.
    """
    words -= (words >> 1).bitwise_and_(0x55555555)
    pairs = (words >> 2).bitwise_and_(0x33333333)
    words.bitwise_and_(0x33333333).add_(pairs)
    words.add_(words >> 4).bitwise_and_(0x0F0F0F0F)
    return words.mul_(0x01010101).bitwise_right_shift_(24)


def mask_overlap(query, stored, valid, query_group, stored_group):
    batch, width = query.shape
    if valid is not None and valid.is_cpu:  # a bank with spare rows then costs only the rows it holds
        stored, valid = stored[: max(int(valid), 0)], None
    best = query.new_full((batch,), -1)
    index = best.clone()
    step = max(1, OVERLAP_WORDS // max(1, batch * width))
    for start in range(0, stored.shape[0], step):
        overlap = _popcount_(query[:, None] & stored[start : start + step]).sum(-1, dtype=torch.int32)
        if query_group is not None:
            stranger = query_group[:, None] != stored_group[start : start + overlap.shape[1]]
            overlap.masked_fill_(stranger, -1)
        if valid is not None:
            row = torch.arange(start, start + overlap.shape[1], dtype=torch.int64, device=query.device)
            overlap.masked_fill_(row >= valid, -1)
        top, at = overlap.max(1)  # the first of equals
        better = top > best
        best = torch.where(better, top, best)
        index = torch.where(better, (at + start).to(torch.int32), index)
    return index, best.clamp_(min=0)


def mask_route(x, offsets, k, weight, background, permutation, stored, minimum, valid, query_group, stored_group):
    query = topk_mask(x, offsets, k, weight, background, permutation)
    nearest, overlap = mask_overlap(query, stored, valid, query_group, stored_group)
    return nearest, overlap, torch.where(overlap >= minimum, nearest, -1)


def token_overlap(query, stored, rarity, extra_weight, valid, query_group, stored_group):
    batch, rows = query.shape[0], stored.shape[0]
    score = rarity.new_zeros(batch, rows, dtype=torch.float32)
    weight = torch.cat([rarity, rarity.new_zeros(1)])  # the last entry is what -1, the padding, weighs: nothing
    stored_mass = weight[stored].sum(1, dtype=torch.int32)
    query_mass = weight[query].sum(1, dtype=torch.int32)
    for b in range(batch):  # one query at a time: its tokens' weights as a table, 4 bytes a vocabulary entry
        table = torch.zeros_like(weight)
        present = query[b].long() % weight.shape[0]
        table[present] = weight[present]
        shared = table[stored].sum(1, dtype=torch.int32)
        own = stored_mass + extra_weight * (query_mass[b] - shared)
        score[b] = torch.where(own > 0, shared / own, 0.0)
    row = torch.arange(rows, dtype=torch.int64, device=query.device)
    hidden = torch.zeros_like(score, dtype=torch.bool)
    if valid is not None:
        hidden |= row >= valid
    if query_group is not None:
        hidden |= query_group[:, None] != stored_group
    score.masked_fill_(hidden, -1.0)
    score = torch.nn.functional.pad(score, (0, 2), value=-1.0)  # so that there are two best where no row is seen
    best, index = score.max(1)  # the first of equals
    runner_up = score.scatter(1, index[:, None], -1.0).amax(1)
    index = torch.where(best < 0, -1, index).int()
    return index, best.clamp(min=0), runner_up.clamp(min=0)


NEAREST_ENTRIES = 1 << 22
"""Differences of queries and stored keys at once."""


def nearest_key(query, stored, radius, cosine, valid, query_group, stored_group):
    batch, width = query.shape
    kind = _accumulator(query, stored)
    asked = query.to(kind)
    best = torch.full((batch,), torch.inf, dtype=kind, device=query.device)
    index = torch.full((batch,), -1, dtype=torch.int32, device=query.device)
    step = max(1, NEAREST_ENTRIES // max(1, batch * width))
    for start in range(0, stored.shape[0], step):
        keys = stored[start : start + step].to(kind)
        if cosine:
            norms = asked.norm(dim=1)[:, None] * keys.norm(dim=1)
            distance = (1 - torch.where(norms > 0, asked @ keys.T / norms, 0.0)).clamp(min=0)
        else:
            distance = (asked[:, None] - keys).square().sum(2)
        distance = torch.where(distance.isfinite(), distance, torch.inf)
        if query_group is not None:
            distance.masked_fill_(query_group[:, None] != stored_group[start : start + step], torch.inf)
        if valid is not None:
            row = torch.arange(start, start + len(keys), dtype=torch.int64, device=query.device)
            distance.masked_fill_(row >= valid, torch.inf)
        nearest, at = distance.min(1)  # the first of equals
        nearer = nearest < best
        best = torch.where(nearer, nearest, best)
        index = torch.where(nearer, (at + start).to(torch.int32), index)
    distance = (best if cosine else best.sqrt()).float()
    reached = index >= 0
    if radius is not None and len(radius):
        reached &= distance <= radius[index.clamp(min=0)]
    return index, distance, torch.where(reached, index, -1)


def _accumulator(*tensors):
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _tokens_by_route(route):
    """(entry, its tokens) for each distinct entry >= 0 of `route`.

    Looping over distinct entries lets each one touch only its own rows of memory, once, and an unrouted batch
    touch nothing. It reads `route` on the host: nothing on a CPU, a synchronisation on a GPU, where this
    backend therefore cannot be captured in a CUDA graph.
    """
    for entry in route.unique().tolist():
        if entry >= 0:
            yield entry, (route == entry).nonzero().squeeze(1)


def _add_rows_(y, tokens, update):
    y[tokens] = (y[tokens].to(update.dtype) + update).to(y.dtype)


def _gradient(like, needed, dtype):
    return torch.zeros(like.shape if needed else (0,) * like.dim(), dtype=dtype, device=like.device)


def on_copy(in_place):
    """The functional form of an op that adds to its first argument: the same, on a contiguous copy of it."""

    def run(y, *others):
        out = y.clone(memory_format=torch.contiguous_format)
        in_place(out, *others)
        return out

    return run


def masked_linear_(y, x, memory, masks, route):
    dtype = _accumulator(y, x, memory)
    for entry, tokens in _tokens_by_route(route):
        columns = unpack_mask(masks[entry], x.shape[1]).nonzero().squeeze(1)
        _add_rows_(y, tokens, x[tokens][:, columns].to(dtype) @ memory[columns].to(dtype))


masked_linear = on_copy(masked_linear_)


def masked_linear_backward(grad, x, memory, masks, route, needed):
    dtype = _accumulator(grad, x, memory)
    need_x, need_memory = needed
    dx = _gradient(x, need_x, dtype)
    dmemory = _gradient(memory, need_memory, dtype)
    for entry, tokens in _tokens_by_route(route):
        columns = unpack_mask(masks[entry], x.shape[1]).nonzero().squeeze(1)
        upstream = grad[tokens].to(dtype)
        if need_x:
            dx[tokens[:, None], columns] = upstream @ memory[columns].to(dtype).T
        if need_memory:
            dmemory.index_add_(0, columns, x[tokens][:, columns].to(dtype).T @ upstream)
    return dx.to(x.dtype), dmemory.to(memory.dtype)


def _reads(first, pages, rows, route):
    """(slots, opening tokens, later tokens) of each edit read; a slot is a row of the flattened banks."""
    for edit, tokens in _tokens_by_route(route):
        count = int(rows[edit])
        if count == 0:
            continue
        row = torch.arange(count, dtype=torch.int64, device=route.device)
        slots = pages[edit, row // PAGE_ROWS] * PAGE_ROWS + row % PAGE_ROWS
        opens = first[tokens]
        later = tokens[~opens] if count > 1 else tokens[:0]
        yield slots, tokens[opens], later


def _direction(x, background, dtype):
    """(u, norm) with u = (x - background) / norm, norm = max(|x - background|, 1e-6)."""
    centred = x.to(dtype) - background.to(dtype)
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).clamp(min=1e-6)
    return centred / norm, norm


def associative_read_(y, x, first, keys, values, pages, rows, route, background, beta, scales):
    dtype = _accumulator(y, x, keys, values)
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    for slots, opening, later in _reads(first, pages, rows, route):
        value = values[slots].to(dtype)
        if scales is not None:
            value = value * scales.flatten()[slots, None]
        if opening.numel():
            _add_rows_(y, opening, value[0])
        if later.numel():
            u, _ = _direction(x[later], background, dtype)
            share = torch.softmax(beta * (u @ keys[slots[1:]].to(dtype).T), dim=-1)
            _add_rows_(y, later, share @ value[1:])


associative_read = on_copy(associative_read_)


def associative_read_backward(grad, x, first, keys, values, pages, rows, route, background, beta, needed):
    dtype = _accumulator(grad, x, keys, values)
    need_x, need_keys, need_values = needed
    dx = _gradient(x, need_x, dtype)
    dkeys = _gradient(keys, need_keys, dtype)
    dvalues = _gradient(values, need_values, dtype)
    dkeys_flat, dvalues_flat = dkeys.flatten(0, 1), dvalues.flatten(0, 1)
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    for slots, opening, later in _reads(first, pages, rows, route):
        if need_values and opening.numel():
            dvalues_flat[slots[0]] += grad[opening].to(dtype).sum(0)
        if later.numel() == 0:
            continue
        slots = slots[1:]
        key, value, upstream = keys[slots].to(dtype), values[slots].to(dtype), grad[later].to(dtype)
        u, norm = _direction(x[later], background, dtype)
        share = torch.softmax(beta * (u @ key.T), dim=-1)
        if need_values:
            dvalues_flat.index_add_(0, slots, share.T @ upstream)
        dshare = upstream @ value.T
        dscore = beta * share * (dshare - (share * dshare).sum(-1, keepdim=True))
        if need_keys:
            dkeys_flat.index_add_(0, slots, dscore.T @ u)
        if need_x:
            du = dscore @ key
            radial = (u * du).sum(-1, keepdim=True) * (norm > 1e-6)  # a clamped norm is a constant
            dx[later] = (du - u * radial) / norm
    return dx.to(x.dtype), dkeys.to(keys.dtype), dvalues.to(values.dtype)


def adapter_linear_(y, x, down, up, block_of, route):
    if not len(block_of):
        return
    dtype = _accumulator(y, x, down, up)
    block = torch.where(route >= 0, block_of[route.clamp(min=0)], -1)
    for entry, tokens in _tokens_by_route(block):
        _add_rows_(y, tokens, x[tokens].to(dtype) @ down[entry].to(dtype).T @ up[entry].to(dtype))


def ties_merge(deltas, weights, densities):
    shape, entries = deltas.shape[1:], deltas[0].numel()
    if entries == 0:
        return deltas.new_empty(shape)
    dtype = _accumulator(deltas)
    weights = weights.to(dtype)

    # Shard by shard, twice, so that no more than one trimmed shard is alive beside the sums.
    thresholds = []
    for shard, density in zip(deltas, densities):
        magnitude = shard.flatten().to(dtype).abs()
        magnitude = torch.where(magnitude.isnan(), torch.inf, magnitude)
        keep = max(int(density * entries), 1)
        thresholds.append(magnitude.kthvalue(entries - keep + 1).values)

    def contribution(s):
        shard = deltas[s].to(dtype)
        return torch.where(shard.abs() < thresholds[s], 0.0, weights[s] * shard)  # NaN stays

    elected = sum(contribution(s) for s in range(deltas.shape[0])) >= 0
    total = torch.zeros(shape, dtype=dtype, device=deltas.device)
    mass = torch.zeros_like(total)
    for s in range(deltas.shape[0]):
        part = contribution(s)
        agrees = (part != 0) & ((part > 0) == elected)
        total += torch.where(agrees, part, 0.0)
        mass += torch.where(agrees, weights[s], 0.0)
    return torch.where(mass == 0, 0.0, total / mass).to(deltas.dtype)


def masked_sgd_(delta, x, gradient, masks, base, learning_rate, decay, decay_masked, limit):
    free = unpack_mask(masks, delta.shape[1])
    step = (x.float().T @ gradient.float()).mul_(learning_rate).masked_fill_(~free, 0.0)
    if decay:
        shrunk = delta * decay if base is None else (delta + base).mul_(decay)
        step += shrunk.masked_fill_(~free, 0.0) if decay_masked else shrunk
    delta.sub_(step).clamp_(-limit, limit)


def delta_linear(x, base, delta, offsets, weight, activated, longest):
    side = x.float() @ delta.float()
    change = side
    if activated:
        base = base.float()
        change = torch.nn.functional.silu(base + side) - torch.nn.functional.silu(base)
    distance = torch.linalg.vector_norm(change, dim=1)
    counted = torch.ones_like(distance) if weight is None else (weight > 0).float()
    scored = torch.where(counted > 0, distance, 0.0)  # padding may be infinitely far: 0 * inf is NaN
    mean = pool(scored[:, None], offsets, weight)[:, 0]
    # Buckets as in `pool`: the first and the last take the tokens that no sequence owns.
    position = torch.arange(len(x), dtype=offsets.dtype, device=x.device)
    bucket = torch.searchsorted(offsets.contiguous(), position, right=True)
    count = counted.new_zeros(len(offsets) + 1).index_add_(0, bucket, counted)[1:-1]
    highest = counted.new_zeros(len(offsets) + 1)
    highest.scatter_reduce_(0, bucket, scored, "amax")
    return side, distance, torch.where(count > longest, highest[1:-1], mean)


def label_losses(hidden, weight, labels):
    vocabulary, width = weight.shape
    if labels.is_cpu and not bool(((labels >= 0) & (labels < vocabulary)).all()):
        raise RuntimeError(f"labels must be rows of weight, 0 to {vocabulary - 1}, not {labels.tolist()}")
    dtype, factors = _accumulator(hidden, weight), torch.promote_types(hidden.dtype, weight.dtype)
    hidden_factor = hidden.to(factors)
    # Not -inf: beside an infinite logit the difference would be NaN.
    largest = hidden.new_full((len(hidden), 1), torch.finfo(dtype).min, dtype=dtype)
    mass, wanted = torch.zeros_like(largest), torch.zeros_like(largest)
    mean = hidden.new_zeros(hidden.shape, dtype=dtype)
    size = max(1, HEAD_BYTES // max(1, width * weight.element_size()))
    for first in range(0, vocabulary, size):
        block = weight[first : first + size].to(factors)
        logits = (hidden_factor @ block.T).to(dtype)
        place = labels[:, None] - first
        here = (place >= 0) & (place < len(block))
        wanted = torch.where(here, logits.gather(1, place.clamp(0, len(block) - 1)), wanted)
        larger = torch.maximum(largest, logits.amax(1, keepdim=True))
        shrunk = (largest - larger).exp_()
        share = logits.sub_(larger).exp_()
        mass.mul_(shrunk).add_(share.sum(1, keepdim=True))
        mean.mul_(shrunk).add_(share.to(factors) @ block)
        largest = larger
    # The two largest cancel exactly where a label is all but certain, and its loss is the logarithm alone.
    losses = (mass.log() - (wanted - largest)).squeeze(1)
    return losses, mean.div_(mass).sub_(weight[labels]).to(hidden.dtype)
