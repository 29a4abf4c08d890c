"""The registration of the ops: of each its schema, the checks of its arguments, and its fake outputs.

Every op is registered once, in the namespace `corrigenda`, as an opaque kernel whose body is the dispatcher; so
`torch.compile` sees one node, and which backend runs is decided at run time (`dispatch.py`). What each op computes
stands in `ops.py`, through which it is called.
"""

import torch
from torch.library import Library, register_fake

from . import dispatch
from .reference import PAGE_ROWS

FEATURES = (torch.float32, torch.bfloat16, torch.float16)
FLOATS = (*FEATURES, torch.float64)
VALUES = (*FLOATS, torch.int8)
FLOAT32 = (torch.float32,)
INT32 = (torch.int32,)
INT64 = (torch.int64,)
BOOL = (torch.bool,)

# DEF, not FRAGMENT: a second copy of this file raises instead of shadowing.
library = Library("corrigenda", "DEF")


def _register(schema, describe):
    """Define an op, return it; `describe(*arguments)` checks them and lists the outputs as (shape, dtype)."""
    name = schema[: schema.index("(")]
    in_place = name.endswith("_")

    def run(*arguments):
        describe(*arguments)
        if in_place and not arguments[0].is_inference():
            torch.autograd.graph.increment_version(arguments[0])  # kernels write behind autograd's back
        return dispatch.run(name, *arguments)

    def fake(*arguments):
        outputs = [arguments[0].new_empty(shape, dtype=dtype) for shape, dtype in describe(*arguments)]
        if not outputs:
            return None
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    library.impl(name, run, "CompositeExplicitAutograd")
    register_fake(f"corrigenda::{name}", fake, lib=library)
    return getattr(torch.ops.corrigenda, name).default


def _expect(name, tensor, dtypes, shape, device=None):
    """Return the shape of `tensor`, or raise if it has another dtype, shape (None: any size) or device."""
    actual = tensor.shape
    # One comparison where no size is free: masked_linear_ is checked in 4.6 us so, in 10 us size by size.
    fits = actual == shape or (
        None in shape
        and len(actual) == len(shape)
        and all(want is None or have == want for have, want in zip(actual, shape))
    )
    if fits and tensor.dtype in dtypes and (device is None or tensor.device == device):
        return actual
    allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    sizes = ", ".join("*" if size is None else str(size) for size in shape)
    place = "" if device is None else f" on {device}"
    found = f"{str(tensor.dtype).removeprefix('torch.')} {list(actual)} on {tensor.device}"
    raise ValueError(f"{name} must be {allowed} [{sizes}]{place}, not {found}")


def _words(width):
    return (width + 31) // 32


def _describe_topk_mask(x, offsets, k, weight, background, permutation):
    tokens, width = _expect("x", x, FEATURES, (None, None))
    (bounds,) = _expect("offsets", offsets, INT32, (None,), x.device)
    if bounds < 1:
        raise ValueError("offsets must hold at least one entry, the start of the first sequence")
    if not 1 <= k <= width:
        raise ValueError(f"k must be between 1 and the width of x, {width}, not {k}")
    if weight is not None:
        _expect("weight", weight, FLOAT32, (tokens,), x.device)
    if background is not None:
        _expect("background", background, FLOAT32, (width,), x.device)
    if permutation is not None:
        _expect("permutation", permutation, INT64, (width,), x.device)
    return [((bounds - 1, _words(width)), torch.int32)]


def _expect_visible(batch, rows, device, valid, query_group, stored_group):
    """Check what says which stored rows a query sees."""
    if valid is not None:
        _expect("valid", valid, INT32, (1,), device)
    if (query_group is None) != (stored_group is None):
        raise ValueError("query_group and stored_group must be given together or not at all")
    if query_group is not None:
        _expect("query_group", query_group, INT32, (batch,), device)
        _expect("stored_group", stored_group, INT32, (rows,), device)


def _describe_mask_overlap(query, stored, valid, query_group, stored_group):
    batch, words = _expect("query", query, INT32, (None, None))
    rows, _ = _expect("stored", stored, INT32, (None, words), query.device)
    _expect_visible(batch, rows, query.device, valid, query_group, stored_group)
    return [((batch,), torch.int32), ((batch,), torch.int32)]


def _describe_mask_route(
    x, offsets, k, weight, background, permutation, stored, minimum, valid, query_group, stored_group
):
    [((batch, words), _)] = _describe_topk_mask(x, offsets, k, weight, background, permutation)
    rows, _ = _expect("stored", stored, INT32, (None, words), x.device)
    _expect("minimum", minimum, INT32, (1,), x.device)
    _expect_visible(batch, rows, x.device, valid, query_group, stored_group)
    return [((batch,), torch.int32)] * 3


def _describe_token_overlap(query, stored, rarity, extra_weight, valid, query_group, stored_group):
    batch, _ = _expect("query", query, INT32, (None, None))
    rows, _ = _expect("stored", stored, INT32, (None, None), query.device)
    _expect("rarity", rarity, INT32, (None,), query.device)
    if not extra_weight >= 0:
        raise ValueError(f"extra_weight must be at least 0, not {extra_weight}")
    _expect_visible(batch, rows, query.device, valid, query_group, stored_group)
    return [((batch,), torch.int32), ((batch,), torch.float32), ((batch,), torch.float32)]


def _describe_nearest_key(query, stored, radius, cosine, valid, query_group, stored_group):
    batch, width = _expect("query", query, FLOATS, (None, None))
    rows, _ = _expect("stored", stored, (query.dtype,), (None, width), query.device)
    if radius is not None:
        _expect("radius", radius, FLOAT32, (rows,), query.device)
    _expect_visible(batch, rows, query.device, valid, query_group, stored_group)
    return [((batch,), torch.int32), ((batch,), torch.float32), ((batch,), torch.int32)]


def _expect_masked_linear(name, y, x, memory, masks, route):
    tokens, width = _expect("x", x, FLOATS, (None, None))
    _, outputs = _expect("memory", memory, FLOATS, (width, None), x.device)
    _expect(name, y, FLOATS, (tokens, outputs), x.device)
    _expect("masks", masks, INT32, (None, _words(width)), x.device)
    _expect("route", route, INT32, (tokens,), x.device)


def _describe_masked_linear(y, x, memory, masks, route):
    _expect_masked_linear("y", y, x, memory, masks, route)
    return [(y.shape, y.dtype)]


def _describe_masked_linear_(y, x, memory, masks, route):
    _expect_masked_linear("y", y, x, memory, masks, route)
    return []


def _gradients(tensors, needed):
    return [(t.shape if need else (0,) * t.dim(), t.dtype) for t, need in zip(tensors, needed)]


def _describe_masked_linear_backward(grad, x, memory, masks, route, needed):
    _expect_masked_linear("grad", grad, x, memory, masks, route)
    return _gradients((x, memory), needed)


def _expect_associative_read(name, y, x, first, keys, values, pages, rows, route, background, scales=None):
    tokens, width = _expect("x", x, FLOATS, (None, None))
    banks, _, _ = _expect("keys", keys, FLOATS, (None, PAGE_ROWS, width), x.device)
    _, _, outputs = _expect("values", values, VALUES, (banks, PAGE_ROWS, None), x.device)
    if (values.dtype == torch.int8) != (scales is not None):
        raise ValueError("scales must be given with int8 values, and with no others")
    if scales is not None:
        _expect("scales", scales, FLOAT32, (banks, PAGE_ROWS), x.device)
    _expect(name, y, FLOATS, (tokens, outputs), x.device)
    _expect("first", first, BOOL, (tokens,), x.device)
    edits, _ = _expect("pages", pages, INT32, (None, None), x.device)
    _expect("rows", rows, INT32, (edits,), x.device)
    _expect("route", route, INT32, (tokens,), x.device)
    _expect("background", background, FLOAT32, (width,), x.device)


def _describe_associative_read(y, x, first, keys, values, pages, rows, route, background, beta, scales):
    _expect_associative_read("y", y, x, first, keys, values, pages, rows, route, background, scales)
    return [(y.shape, y.dtype)]


def _describe_associative_read_(y, x, first, keys, values, pages, rows, route, background, beta, scales):
    _expect_associative_read("y", y, x, first, keys, values, pages, rows, route, background, scales)
    return []


def _describe_associative_read_backward(grad, x, first, keys, values, pages, rows, route, background, beta, needed):
    _expect("values", values, FLOATS, (None, PAGE_ROWS, None))
    _expect_associative_read("grad", grad, x, first, keys, values, pages, rows, route, background)
    return _gradients((x, keys, values), needed)


def _describe_adapter_linear_(y, x, down, up, block_of, route):
    tokens, width = _expect("x", x, FLOATS, (None, None))
    blocks, rank, _ = _expect("down", down, FLOATS, (None, None, width), x.device)
    _, _, outputs = _expect("up", up, (down.dtype,), (blocks, rank, None), x.device)
    _expect("y", y, FLOATS, (tokens, outputs), x.device)
    _expect("block_of", block_of, INT32, (None,), x.device)
    _expect("route", route, INT32, (tokens,), x.device)
    return []


def _describe_ties_merge(deltas, weights, densities):
    if deltas.dim() == 0 or deltas.shape[0] == 0:
        raise ValueError("deltas must hold at least one shard along its first dimension")
    shards, *shape = _expect("deltas", deltas, FLOATS, deltas.shape)
    _expect("weights", weights, FLOAT32, (shards,), deltas.device)
    if len(densities) != shards or not all(0 < density <= 1 for density in densities):
        raise ValueError(f"densities must be {shards} numbers above 0 and at most 1, not {list(densities)}")
    return [(shape, deltas.dtype)]


def _describe_masked_sgd_(delta, x, gradient, masks, base, learning_rate, decay, decay_masked, limit):
    width, outputs = _expect("delta", delta, FLOAT32, (None, None))
    tokens, _ = _expect("x", x, FEATURES, (None, width), delta.device)
    _expect("gradient", gradient, FEATURES, (tokens, outputs), delta.device)
    _expect("masks", masks, INT32, (width, _words(outputs)), delta.device)
    if base is not None:
        _expect("base", base, FEATURES, (width, outputs), delta.device)
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1, not {decay}")
    if not limit >= 0:
        raise ValueError(f"limit must be at least 0, not {limit}")
    return []


def _describe_delta_linear(x, base, delta, offsets, weight, activated, longest):
    tokens, width = _expect("x", x, FEATURES, (None, None))
    _, outputs = _expect("delta", delta, FEATURES, (width, None), x.device)
    _expect("base", base, FEATURES, (tokens, outputs), x.device)
    (bounds,) = _expect("offsets", offsets, INT32, (None,), x.device)
    if bounds < 1:
        raise ValueError("offsets must hold at least one entry, the start of the first sequence")
    if weight is not None:
        _expect("weight", weight, FLOAT32, (tokens,), x.device)
    return [((tokens, outputs), torch.float32), ((tokens,), torch.float32), ((bounds - 1,), torch.float32)]


def _describe_label_losses(hidden, weight, labels):
    count, width = _expect("hidden", hidden, FLOATS, (None, None))
    _expect("weight", weight, FLOATS, (None, width), hidden.device)
    _expect("labels", labels, INT64, (count,), hidden.device)
    double = torch.float64 in (hidden.dtype, weight.dtype)
    return [((count,), torch.float64 if double else torch.float32), ((count, width), hidden.dtype)]


# No defaults in the schemas: torch drops trailing arguments equal to theirs, and the backends take them all.
topk_mask = _register(
    "topk_mask(Tensor x, Tensor offsets, SymInt k, Tensor? weight, Tensor? background, Tensor? permutation) -> Tensor",
    _describe_topk_mask,
)
mask_overlap = _register(
    "mask_overlap(Tensor query, Tensor stored, Tensor? valid, Tensor? query_group, Tensor? stored_group)"
    " -> (Tensor, Tensor)",
    _describe_mask_overlap,
)
mask_route = _register(
    "mask_route(Tensor x, Tensor offsets, SymInt k, Tensor? weight, Tensor? background, Tensor? permutation,"
    " Tensor stored, Tensor minimum, Tensor? valid, Tensor? query_group, Tensor? stored_group)"
    " -> (Tensor, Tensor, Tensor)",
    _describe_mask_route,
)
token_overlap = _register(
    "token_overlap(Tensor query, Tensor stored, Tensor rarity, float extra_weight, Tensor? valid,"
    " Tensor? query_group, Tensor? stored_group) -> (Tensor, Tensor, Tensor)",
    _describe_token_overlap,
)
nearest_key = _register(
    "nearest_key(Tensor query, Tensor stored, Tensor? radius, bool cosine, Tensor? valid, Tensor? query_group,"
    " Tensor? stored_group) -> (Tensor, Tensor, Tensor)",
    _describe_nearest_key,
)
masked_linear = _register(
    "masked_linear(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route) -> Tensor",
    _describe_masked_linear,
)
masked_linear_ = _register(
    "masked_linear_(Tensor(a!) y, Tensor x, Tensor memory, Tensor masks, Tensor route) -> ()",
    _describe_masked_linear_,
)
masked_linear_backward = _register(
    "masked_linear_backward(Tensor grad, Tensor x, Tensor memory, Tensor masks, Tensor route, bool[2] needed)"
    " -> (Tensor, Tensor)",
    _describe_masked_linear_backward,
)
_READ = (
    "Tensor x, Tensor first, Tensor keys, Tensor values, Tensor pages, Tensor rows, Tensor route,"
    " Tensor background, float beta"
)
associative_read = _register(
    f"associative_read(Tensor y, {_READ}, Tensor? scales) -> Tensor",
    _describe_associative_read,
)
associative_read_ = _register(
    f"associative_read_(Tensor(a!) y, {_READ}, Tensor? scales) -> ()",
    _describe_associative_read_,
)
associative_read_backward = _register(
    f"associative_read_backward(Tensor grad, {_READ}, bool[3] needed) -> (Tensor, Tensor, Tensor)",
    _describe_associative_read_backward,
)
adapter_linear_ = _register(
    "adapter_linear_(Tensor(a!) y, Tensor x, Tensor down, Tensor up, Tensor block_of, Tensor route) -> ()",
    _describe_adapter_linear_,
)
ties_merge = _register(
    "ties_merge(Tensor deltas, Tensor weights, float[] densities) -> Tensor",
    _describe_ties_merge,
)
masked_sgd_ = _register(
    "masked_sgd_(Tensor(a!) delta, Tensor x, Tensor gradient, Tensor masks, Tensor? base, float learning_rate,"
    " float decay, bool decay_masked, float limit) -> ()",
    _describe_masked_sgd_,
)
delta_linear = _register(
    "delta_linear(Tensor x, Tensor base, Tensor delta, Tensor offsets, Tensor? weight, bool activated,"
    " SymInt longest) -> (Tensor, Tensor, Tensor)",
    _describe_delta_linear,
)
label_losses = _register(
    "label_losses(Tensor hidden, Tensor weight, Tensor labels) -> (Tensor, Tensor)",
    _describe_label_losses,
)
