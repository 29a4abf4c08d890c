"""The ops in eager torch alone, each in the forms that do best: what the kernels are measured against.

A form is a pair: `prepare(*arguments)` does once what a user would keep between calls (unpacked masks, say), and
`run(*prepared)` is what is timed. Tables of forms are keyed by what distinguishes them.
"""

from __future__ import annotations

import torch

from corrigenda.kernels import reference


def _selected(x, background, permutation, k, find):
    magnitude = (x.float() - background).abs()
    bits = torch.zeros(magnitude.shape, dtype=torch.bool, device=x.device)
    return bits.scatter_(1, permutation[find(magnitude, k)], True)


def _topk_indices(magnitude, k):
    return magnitude.topk(k, dim=1, sorted=False).indices


def _pack_by_shift(bits):
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    return (bits.unflatten(1, (-1, 32)).int() << place).sum(-1, dtype=torch.int32)


def _pack_by_product(bits):
    """Two halves of 16 bits by a matrix product, exact in float32."""
    place = 2.0 ** torch.arange(16, device=bits.device)
    halves = (bits.unflatten(1, (-1, 16)).float() @ place).int()
    return halves[:, 0::2] | halves[:, 1::2] << 16


def _topk_and(pack):
    def run(x, background, permutation, k):
        return pack(_selected(x, background, permutation, k, _topk_indices))

    return run


def _bisected(x, background, permutation, k):
    """Bisect the k-th magnitude's bits, all rows at once; equals beyond the k-th are kept, which torch cannot help."""
    keys = (x.float() - background).abs().view(torch.int32)
    threshold = torch.zeros(len(x), 1, dtype=torch.int32, device=x.device)
    for bit in range(30, -1, -1):
        candidate = threshold | 1 << bit
        threshold = torch.where((keys >= candidate).sum(1, keepdim=True) >= k, candidate, threshold)
    bits = torch.empty(keys.shape, dtype=torch.bool, device=x.device)
    bits[:, permutation] = keys >= threshold
    return _pack_by_shift(bits)


def _prepare_topk(x, offsets, k, weight, background, permutation):
    return x, background, permutation, k


TOPK_MASK = {
    "topk, pack by shifts": (_prepare_topk, _topk_and(_pack_by_shift)),
    "topk, pack by a product": (_prepare_topk, _topk_and(_pack_by_product)),
    "bisection": (_prepare_topk, _bisected),
}


def _unpacked(query, stored, *visible):
    """Float32, 32 times the bytes: a bfloat16 product rounds overlaps above 256, and names the wrong mask."""
    width = stored.shape[1] * 32
    blocks = [reference.unpack_mask(block, width).float() for block in stored.split(1024)]
    return reference.unpack_mask(query, width).float(), torch.cat(blocks)


def _best(overlap):
    value, index = overlap.max(1)
    return index.int(), value.int()


def _by_product(query, stored):
    return _best(query @ stored.T)


def _by_popcount(query, stored):
    return reference.mask_overlap(query, stored, None, None, None)


def _as_bool(query, stored, *visible):
    width = stored.shape[1] * 32
    return tuple(torch.cat([reference.unpack_mask(b, width) for b in masks.split(1024)]) for masks in (query, stored))


def _as_published(query, bank):
    return _best(query.float() @ bank.T.float())


def _as_bytes(query, stored, *visible):
    """`torch._int_mm` takes more than 16 rows."""
    query, bank = _as_bool(query, stored)
    padded = torch.zeros(max(32, len(query)), query.shape[1], dtype=torch.int8, device=query.device)
    padded[: len(query)] = query
    return padded, bank.to(torch.int8).T, len(query)


def _by_bytes(query, bank, queries):
    return _best(torch._int_mm(query, bank)[:queries])


MASK_OVERLAP_ON_GPU = {
    "as published: bool masks, cast in every call": (_as_bool, _as_published),
    "int8 product of unpacked masks": (_as_bytes, _by_bytes),
}

MASK_OVERLAP = {
    "float32 product of unpacked masks": (_unpacked, _by_product),
    "popcount by shifts": (lambda query, stored, *visible: (query, stored), _by_popcount),
}


def _keys(query, stored, radius, cosine, *visible):
    return query, stored, radius


def _reached(distance, radius):
    nearest, index = distance.min(1)
    return index.int(), nearest.float(), torch.where(nearest <= radius[index], index, -1).int()


def _by_cdist(mode):
    return lambda query, stored, radius: _reached(torch.cdist(query.float(), stored.float(), compute_mode=mode), radius)


def _by_differences(query, stored, radius):
    return _reached((query[:, None].float() - stored).square().sum(2).sqrt(), radius)


def _by_cosine(query, stored, radius):
    normed = torch.nn.functional.normalize
    return _reached((1 - normed(query.float(), dim=1) @ normed(stored.float(), dim=1).T).clamp(min=0), radius)


NEAREST_KEY = {
    "cdist, exact": (_keys, _by_cdist("donot_use_mm_for_euclid_dist")),
    "cdist, by a product": (_keys, _by_cdist("use_mm_for_euclid_dist")),
    "differences": (_keys, _by_differences),
}

NEAREST_COSINE = {"product of normalised keys": (_keys, _by_cosine)}


def _block_of_tokens(y, x, down, up, block_of, route):
    return y, x, down, up, block_of.index_select(0, route).long()


def _by_products(y, x, down, up, block):
    inner = torch.bmm(down.index_select(0, block), x.float()[:, :, None])
    return (y + torch.bmm(inner.transpose(1, 2), up.index_select(0, block))[:, 0]).to(y.dtype)


def _by_einsum(y, x, down, up, block):
    inner = torch.einsum("td,trd->tr", x.float(), down[block])
    return (y + torch.einsum("tr,tro->to", inner, up[block])).to(y.dtype)


def _token_by_token(y, x, down, up, block):
    added = [up[b].T @ (down[b] @ one) for b, one in zip(block.tolist(), x.float())]
    return (y + torch.stack(added)).to(y.dtype)


ADAPTER_LINEAR = {
    "gathered, bmm": (_block_of_tokens, _by_products),
    "gathered, einsum": (_block_of_tokens, _by_einsum),
    "token by token": (_block_of_tokens, _token_by_token),
}
"""Every token has a route."""


def _columns(y, x, memory, masks, route):
    chosen = reference.unpack_mask(masks[0], x.shape[1])
    return y, x, memory, chosen.nonzero().squeeze(1), chosen.to(x.dtype)


def _gathered(y, x, memory, columns, chosen):
    return y + x[:, columns] @ memory[columns]


def _gathered_by_select(y, x, memory, columns, chosen):
    return torch.addmm(y, x.index_select(1, columns), memory.index_select(0, columns))


def _dense(y, x, memory, columns, chosen):
    return torch.addmm(y, x * chosen, memory)


def _gathered_vector(y, x, memory, columns, chosen):
    if len(x) > 1:
        return _gathered_by_select(y, x, memory, columns, chosen)
    return torch.addmv(y[0], memory.index_select(0, columns).T, x[0].index_select(0, columns))[None]


MASKED_LINEAR = {
    "gather, product": (_columns, _gathered),
    "index_select, addmm": (_columns, _gathered_by_select),
    "index_select, addmv": (_columns, _gathered_vector),
    "dense masked product": (_columns, _dense),
}


def _chosen_by_token(x, masks, route):
    return reference.unpack_mask(masks, x.shape[1])[route.long()].to(x.dtype)


# With a mask each, gathering is hopeless: every token would copy its own rows of memory.
MASKED_LINEAR_MANY = {
    "dense masked product": (
        lambda y, x, memory, masks, route: (y, x, memory, None, _chosen_by_token(x, masks, route)),
        _dense,
    )
}


def _both_gradients(grad, x, memory, masks, route, needed):
    return grad, x, memory, _chosen_by_token(x, masks, route)


def _dense_gradients(grad, x, memory, chosen):
    return (grad @ memory.T).mul_(chosen), (x * chosen).T @ grad


MASKED_LINEAR_BACKWARD = {"dense masked products": (_both_gradients, _dense_gradients)}


def _read_arguments(y, x, first, keys, values, pages, rows, route, background, beta, scales):
    return y, x, keys, values, pages[:, 0].long(), background, beta


def _direction(x, background):
    return torch.nn.functional.normalize(x.float() - background, dim=-1)


def _read_batched(y, x, keys, values, page, background, beta):
    u = _direction(x, background).to(keys.dtype)
    share = torch.softmax(beta * torch.bmm(keys[page, 1:], u[:, :, None]).squeeze(-1).float(), -1)
    return y + torch.bmm(share.to(values.dtype)[:, None], values[page, 1:]).squeeze(1)


def _read_in_a_loop(y, x, keys, values, page, background, beta):
    """No gathered copy: each token multiplies its edit's rows where they lie."""
    u = _direction(x, background).to(keys.dtype)
    out = torch.empty_like(y)
    for t, p in enumerate(page.tolist()):
        share = torch.softmax(beta * (keys[p, 1:] @ u[t]).float(), -1).to(values.dtype)
        torch.addmv(y[t], values[p, 1:].T, share, out=out[t])
    return out


ASSOCIATIVE_READ = {
    "gather, batched products": (_read_arguments, _read_batched),
    "a loop over tokens": (_read_arguments, _read_in_a_loop),
}


def _merge(deltas, weights, densities, threshold):
    trimmed = []
    for shard, density in zip(deltas, densities):
        magnitude = shard.abs()
        trimmed.append(shard * (magnitude >= threshold(magnitude, max(1, int(density * shard.numel())))))
    weighted = torch.stack(trimmed) * weights.view(-1, *[1] * (deltas.dim() - 1)).to(deltas.dtype)
    sign = torch.where(weighted.sum(0) >= 0, 1, -1)
    agrees = weighted * sign > 0
    mass = (agrees * weights.view(-1, *[1] * (deltas.dim() - 1)).to(deltas.dtype)).sum(0)
    return (weighted * agrees).sum(0) / mass.clamp(min=1e-12)


def _by_kthvalue(magnitude, keep):
    return magnitude.flatten().kthvalue(magnitude.numel() - keep + 1).values


def _by_topk(magnitude, keep):
    return magnitude.flatten().topk(keep, sorted=False).values.amin()


TIES_MERGE = {
    "kthvalue": (lambda *arguments: arguments, lambda *arguments: _merge(*arguments, _by_kthvalue)),
    "topk": (lambda *arguments: arguments, lambda *arguments: _merge(*arguments, _by_topk)),
}


def _step_arguments(delta, x, gradient, masks, base, learning_rate, decay, decay_masked, limit):
    free = reference.unpack_mask(masks, delta.shape[1])
    return delta.clone(), x, gradient, free, free.float(), learning_rate, limit


def _step_by_product(delta, x, gradient, free, share, learning_rate, limit):
    step = (x.float().T @ gradient).mul_(share)
    return delta.sub_(step, alpha=learning_rate).clamp_(-limit, limit)


def _step_by_fill(delta, x, gradient, free, share, learning_rate, limit):
    step = (x.float().T @ gradient).masked_fill_(~free, 0.0)
    return delta.sub_(step, alpha=learning_rate).clamp_(-limit, limit)


MASKED_SGD = {
    "product, times the mask": (_step_arguments, _step_by_product),
    "product, masked_fill": (_step_arguments, _step_by_fill),
}


def _side_arguments(x, base, delta, offsets, weight, activated, longest):
    """Sequences of one length up to `longest`, so that scores are means of rows."""
    return x, base, delta, len(offsets) - 1


def _measured(side, base, sequences):
    change = torch.nn.functional.silu(base.float() + side) - torch.nn.functional.silu(base.float())
    distance = torch.linalg.vector_norm(change, dim=1)
    return side, distance, distance.view(sequences, -1).mean(1)


def _side_by_conversion(x, base, delta, sequences):
    return _measured(x.float() @ delta.float(), base, sequences)


def _side_by_columns(x, base, delta, sequences):
    """Delta taken to float32 some columns at a time, which stay in cache."""
    features = x.float()
    parts = [features @ delta[:, from_ : from_ + 512].float() for from_ in range(0, delta.shape[1], 512)]
    return _measured(torch.cat(parts, 1), base, sequences)


DELTA_LINEAR = {
    "float32 product": (_side_arguments, _side_by_conversion),
    "float32 products of columns": (_side_arguments, _side_by_columns),
}


def _loss_arguments(hidden, weight, labels):
    return hidden, weight, labels


def _losses_by_autograd(hidden, weight, labels):
    """All logits, and then the weight a second time."""
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        losses = torch.nn.functional.cross_entropy((leaf @ weight.T).float(), labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def _losses_by_softmax(hidden, weight, labels):
    """The same without autograd, the shares written over the logits."""
    logits = (hidden @ weight.T).float()
    wanted = logits.gather(1, labels[:, None]).squeeze(1)
    largest = logits.amax(1, keepdim=True)
    share = logits.sub_(largest).exp_()
    mass = share.sum(1, keepdim=True)
    gradient = (share.to(weight.dtype) @ weight).float().div_(mass).sub_(weight[labels])
    return mass.log_().add_(largest).squeeze(1) - wanted, gradient.to(hidden.dtype)


LABEL_LOSSES = {
    "whole, by autograd": (_loss_arguments, _losses_by_autograd),
    "whole, by hand": (_loss_arguments, _losses_by_softmax),
    "in blocks": (_loss_arguments, reference.label_losses),
}
