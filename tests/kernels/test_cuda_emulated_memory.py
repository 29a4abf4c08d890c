"""The CUDA kernels of the memories against the reference, on the CPU: see test_cuda_emulated.py."""

import emulate
import pytest
import torch
from cases import TOLERANCE, bank, dyadic, error_ratio, generator, normal, random_masks, random_route, same_bits

from corrigenda.kernels import reference

pytestmark = pytest.mark.skipif(emulate.compiler() is None, reason="g++ is not installed")

SINGLE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = [
    (SINGLE, SINGLE, SINGLE),
    (BRAIN, BRAIN, BRAIN),
    (BRAIN, BRAIN, SINGLE),
    (HALF, HALF, HALF),
    (SINGLE, HALF, BRAIN),
]
BETA = 3.0


def unwritten(like):
    return torch.full_like(like, -77)


def assert_as_close(actual, expected):
    """As `assert_close`, to a float64 tensor; what is not a number there is none here."""
    assert torch.equal(actual.isnan(), expected.isnan())
    ratio = error_ratio(actual.double().nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0).numpy())
    assert ratio < TOLERANCE[actual.dtype]


# tokens, D, d, masks. The first kernel takes up to 8 tokens, tiles of 16, 64 and 128 tokens take the rest.
MASKED = [
    pytest.param(1, 33, 5, 2, id="masked_linear_gather-odd"),
    pytest.param(3, 1100, 264, 2, id="masked_linear_gather-splits"),
    pytest.param(8, 64, 16, 8, id="masked_linear_gather-full"),
    pytest.param(5, 97, 8, 0, id="masked_linear_gather-unrouted"),
    pytest.param(9, 97, 40, 1, id="masked_linear-one-mask"),
    pytest.param(17, 160, 24, 3, id="masked_linear-odd"),
    pytest.param(70, 33, 8, 2, id="masked_linear-two-tiles"),
]


def masked_inputs(tokens, width, outputs, entries, dtypes, poison):
    shapes = (tokens, outputs), (tokens, width), (width, outputs)
    y, x, memory = (normal(*shape, seed=i, dtype=dtype) for i, (shape, dtype) in enumerate(zip(shapes, dtypes)))
    masks = random_masks(entries, width, seed=4)
    route = random_route(tokens, entries, seed=5) if entries else torch.full((tokens,), -1, dtype=torch.int32)
    if poison and entries:
        chosen = reference.unpack_mask(masks, width)
        memory[chosen.sum(0) <= 1] = torch.nan  # used by one mask alone, and by none
        for t, entry in enumerate(route.tolist()):
            x[t, ~chosen[entry] if entry >= 0 else slice(None)] = torch.inf
    return y, x, memory, masks, route


def doubles(*tensors):
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("poison", [False, True], ids=["finite", "poison"])
@pytest.mark.parametrize("tokens, width, outputs, entries", MASKED)
def test_masked_linear(kernels, thread_order, tokens, width, outputs, entries, poison):
    dtypes = DTYPES[(thread_order + tokens + poison) % len(DTYPES)]
    y, x, memory, masks, route = masked_inputs(tokens, width, outputs, entries, dtypes, poison)
    expected = reference.masked_linear(*doubles(y, x, memory), masks, route)
    given = {"x": x, "memory": memory, "masks": masks, "route": route}
    sizes = {"tokens": tokens, "width": width, "outputs": outputs}
    for out in (unwritten(y), y.clone()):
        source = out if same_bits(out, y) else y
        emulate.launch(kernels, "masked_linear", y=source, **given, **sizes, out=out)
        assert_as_close(out, expected)
        assert same_bits(out[route < 0], y[route < 0])


@pytest.mark.parametrize("poison", [False, True], ids=["finite", "poison"])
@pytest.mark.parametrize(
    "tokens, width, outputs, entries", [(0, 33, 4, 2), (3, 97, 5, 0), (9, 97, 40, 1), (20, 160, 24, 3)]
)
def test_masked_linear_backward(kernels, thread_order, tokens, width, outputs, entries, poison):
    dtypes = DTYPES[(thread_order + tokens + poison) % len(DTYPES)]
    grad, x, memory, masks, route = masked_inputs(tokens, width, outputs, entries, dtypes, poison)
    if poison:
        grad[route < 0] = torch.nan
        grad[2:3] = torch.nan
    expected = reference.masked_linear_backward(*doubles(grad, x, memory), masks, route, (True, True))
    given = {"grad": grad, "x": x, "memory": memory, "masks": masks, "route": route}
    sizes = {"tokens": tokens, "width": width, "outputs": outputs}
    for dx, dmemory in ((unwritten(x), unwritten(memory)), (None, unwritten(memory)), (unwritten(x), None)):
        emulate.launch(kernels, "masked_linear_backward", **given, **sizes, dx=dx, dmemory=dmemory)
        for actual, wanted in zip((dx, dmemory), expected):
            if actual is not None:
                assert_as_close(actual, wanted)


@pytest.mark.parametrize(
    "tokens, width, outputs, rank",
    [(0, 8, 5, 2), (1, 1, 1, 1), (3, 33, 1100, 2), (5, 300, 40, 9), (140, 33, 2050, 3)],
)
def test_adapter_linear(kernels, thread_order, tokens, width, outputs, rank):
    dtypes = DTYPES[(thread_order + tokens) % len(DTYPES)]
    y, x = normal(tokens, outputs, seed=1, dtype=dtypes[0]), normal(tokens, width, seed=2, dtype=dtypes[1])
    down, up = (normal(3, rank, size, seed=size, dtype=dtypes[2]) / width**0.5 for size in (width, outputs))
    block_of, route = torch.tensor([2, 0, 2, 0], dtype=torch.int32), random_route(tokens, 4, seed=5)
    down[1] = up[1] = torch.nan  # of no edit
    expected = reference.on_copy(reference.adapter_linear_)(*doubles(y, x, down, up), block_of, route)
    out = y.clone()
    given = {"x": x, "down": down, "up": up, "block_of": block_of, "route": route}
    sizes = {"tokens": tokens, "width": width, "rank": rank, "outputs": outputs}
    emulate.launch(kernels, "adapter_linear", y=out, **given, **sizes)
    assert_as_close(out, expected)
    assert same_bits(out[route < 0], y[route < 0])


def reading_inputs(tokens, counts, width, outputs, dtypes):
    y, x = normal(tokens, outputs, seed=1, dtype=dtypes[0]), normal(tokens, width, seed=2, dtype=dtypes[1])
    first = torch.rand(tokens, generator=generator(3)) < 0.3
    keys, values, pages, rows = bank(counts, width, outputs, 4, dtypes[2])
    keys = keys / width**0.5
    for page in pages[:, 0].tolist():
        if page >= 0:
            keys[page, 0] = torch.nan  # row 0 is read by position, without its key
    x[first] = torch.nan
    return y, x, first, keys, values, pages, rows, random_route(tokens, len(counts), 5), normal(width, seed=6)


# tokens, rows of the edits, D, d; scores come from a launch of their own for wide keys, and for many rows.
READS = [
    (0, (4,), 16, 8),
    (3, (), 16, 8),
    (6, (0, 1, 2, 9), 40, 24),
    (5, (17, 3), 33, 5),
    (4, (8, 2), 1032, 8),
    (3, (1030, 2), 8, 1032),
]


def read_fields(x, first, keys, values, pages, rows, route, background):
    """What associative_read and its gradients take alike."""
    given = {"x": x, "first": first, "keys": keys, "values": values, "pages": pages, "rows": rows, "route": route}
    sizes = {"tokens": len(x), "width": x.shape[1], "outputs": values.shape[2], "max_pages": pages.shape[1]}
    return {**given, "background": background, "beta": BETA, **sizes}


def run_read(kernels, y, *given, scales, out):
    emulate.launch(kernels, "associative_read", y=y, **read_fields(*given), scales=scales, out=out)
    return out


def run_read_backward(kernels, grad, x, first, keys, values, pages, *rest, needed=(True, True, True)):
    gradients = [unwritten(like) if need else None for like, need in zip((x, keys, values), needed)]
    fields = read_fields(x, first, keys, values, pages, *rest)
    outputs = dict(zip(("dx", "dkeys", "dvalues"), gradients))
    emulate.launch(
        kernels, "associative_read_backward", grad=grad, **fields, edits=len(pages), banks=len(keys), **outputs
    )
    return gradients


@pytest.mark.parametrize("tokens, counts, width, outputs", READS, ids=str)
def test_associative_read(kernels, thread_order, tokens, counts, width, outputs):
    y, x, first, keys, values, *rest = reading_inputs(
        tokens, counts, width, outputs, DTYPES[(thread_order + tokens) % 5]
    )
    wide = doubles(y, x), first, doubles(keys, values)
    expected = reference.associative_read(*wide[0], first, *wide[2], *rest, BETA, None)
    for out in (unwritten(y), y.clone()):
        source = out if same_bits(out, y) else y
        run_read(kernels, source, x, first, keys, values, *rest, scales=None, out=out)
        assert_as_close(out, expected)
        kept = (expected == y.double()).all(1)
        assert same_bits(out[kept], y[kept])


def test_associative_read_of_eight_bits(kernels, thread_order):
    y, x, first, keys, values, *rest = reading_inputs(7, (9, 1, 4), 40, 33 - thread_order % 2, DTYPES[1])
    scales = values.float().nan_to_num().abs().amax(-1) / 127
    small = (values.float() / scales[..., None]).nan_to_num().round().to(torch.int8)
    plain = small.double() * scales.double()[..., None]
    expected = reference.associative_read(*doubles(y, x), first, keys.double(), plain, *rest, BETA, None)
    actual = run_read(kernels, y, x, first, keys, small, *rest, scales=scales, out=unwritten(y))
    assert_as_close(actual, expected)


@pytest.mark.parametrize("tokens, counts, width, outputs", [*READS[:4], (9, (9, 2), 520, 16)], ids=str)
def test_associative_read_backward(kernels, thread_order, tokens, counts, width, outputs):
    dtypes = DTYPES[(thread_order + tokens) % 5]
    grad, x, first, keys, values, pages, rows, route, background = reading_inputs(
        tokens, counts, width, outputs, dtypes
    )
    wide = doubles(grad, x), doubles(keys, values)
    tables = pages, rows, route, background
    expected = reference.associative_read_backward(*wide[0], first, *wide[1], *tables, BETA, (True,) * 3)
    for needed in ((True,) * 3, (False, True, False), (True, False, False), (False, False, True)):
        gradients = run_read_backward(kernels, grad, x, first, keys, values, *tables, needed=needed)
        for actual, wanted in zip(gradients, expected):
            if actual is not None:
                assert_as_close(actual, wanted)


def test_a_token_without_a_direction(kernels, thread_order):
    """Scores of zero at the background; nearer than 1e-6 to it the norm is a constant."""
    grad, x, first, keys, values, pages, rows, route, background = reading_inputs(3, (4,), 16, 8, DTYPES[0])
    first[:], route[:], background[:] = False, 0, 0
    x[:] = normal(3, 16, seed=1)
    x[0] = 0
    x[1] *= 3e-7 / x[1].norm()
    tables = pages, rows, route, background
    expected = reference.associative_read_backward(
        *doubles(grad, x), first, *doubles(keys, values), *tables, BETA, (True,) * 3
    )
    for actual, wanted in zip(run_read_backward(kernels, grad, x, first, keys, values, *tables), expected):
        assert_as_close(actual, wanted)


# tokens, D, d: one tile and several; d that 16-byte loads may and may not read; more tokens than the stages hold.
STEPS = [(0, 33, 40), (1, 5, 3), (9, 130, 264), (33, 64, 97), (130, 16, 32)]


@pytest.mark.parametrize("tokens, width, outputs", STEPS, ids=str)
def test_masked_sgd(kernels, thread_order, tokens, width, outputs):
    dtypes = DTYPES[(thread_order + tokens) % 5]
    x, gradient = normal(tokens, width, seed=1, dtype=dtypes[1]), normal(tokens, outputs, seed=2, dtype=dtypes[2])
    masks, base = random_masks(width, outputs, seed=3), normal(width, outputs, seed=4, dtype=dtypes[0])
    if tokens > 8:
        x[2, 1], gradient[3, 2], gradient[4, outputs - 1] = torch.inf, -torch.inf, torch.nan
    sizes = {"tokens": tokens, "width": width, "outputs": outputs}
    kinds = (None, 0.0, False, torch.inf), (base, 0.1, False, 0.9), (base, 0.1, True, 0.9)
    for frozen, decay, decay_masked, limit in kinds:
        delta = normal(width, outputs, seed=5)
        before = delta.clone()
        wide = delta.double(), x.double(), gradient.double()
        free = reference.unpack_mask(masks, outputs)
        step = torch.where(free, 0.5 * wide[1].T @ wide[2], 0.0)
        whole = decay * (wide[0] + (0 if frozen is None else frozen.double()))
        expected = (wide[0] - step - (torch.where(free, whole, 0.0) if decay_masked else whole)).clamp(-limit, limit)
        given = {"delta": delta, "x": x, "gradient": gradient, "masks": masks, "base": frozen}
        options = {"learning_rate": 0.5, "decay": decay, "decay_masked": decay_masked, "limit": limit}
        emulate.launch(kernels, "masked_sgd", **given, **options, **sizes)
        assert torch.equal(delta.isinf(), expected.isinf())
        assert_as_close(delta, expected)
        if decay == 0:
            assert same_bits(delta[~free], before[~free])


# tokens, D, d, bounds of the sequences: the gather, and tiles of 16, 64 and 128 tokens.
SIDES = [
    (0, 8, 5, (0, 0)),
    (1, 33, 5, (0, 1)),
    (7, 70, 264, (0, 3, 3, 7)),
    (11, 64, 40, (1, 9)),
    (70, 33, 8, (0, 2, 70)),
    (130, 20, 130, (0, 129, 130)),
]


@pytest.mark.parametrize("tokens, width, outputs, bounds", SIDES, ids=str)
def test_delta_linear(kernels, thread_order, tokens, width, outputs, bounds):
    dtypes = DTYPES[(thread_order + tokens) % 5]
    x, base = normal(tokens, width, seed=1, dtype=dtypes[1]), normal(tokens, outputs, seed=2, dtype=dtypes[0])
    delta, offsets = normal(width, outputs, seed=3, dtype=dtypes[2]), torch.tensor(bounds, dtype=torch.int32)
    padding = torch.arange(tokens) % 3 == 1
    weight = torch.where(padding, 0.0, normal(tokens, seed=4).abs())
    if tokens > 8:
        x[padding] = torch.inf
    sizes = {"tokens": tokens, "width": width, "outputs": outputs, "sequences": len(bounds) - 1}
    for weights, activated, longest in ((weight, True, 100), (weight, False, 1), (None, False, 100)):
        shapes = {"side": (tokens, outputs), "distance": (tokens,), "score": (len(bounds) - 1,)}
        outcome = {name: torch.full(shape, -77.0) for name, shape in shapes.items()}
        given = {"x": x, "base": base, "delta": delta, "offsets": offsets, "weight": weights}
        options = {"activated": activated, "longest": longest}
        emulate.launch(kernels, "delta_linear", **given, **options, **sizes, **outcome)
        expected = reference.delta_linear(*doubles(x, base, delta), offsets, weights, **options)
        for actual, wanted in zip(outcome.values(), expected, strict=True):
            assert_as_close(actual, wanted.double())


def run_merge(kernels, deltas, weights, densities, sampled_from):
    shards, entries = len(deltas), deltas[0].numel()
    keep = torch.tensor([max(1, int(density * entries)) for density in densities])
    merged = unwritten(deltas[0])
    given = {"deltas": deltas, "weights": weights, "keep": keep, "sampled_from": sampled_from}
    emulate.launch(kernels, "ties_merge", **given, shards=shards, entries=entries, merged=merged)
    return merged


ALWAYS, NEVER = 0, 1 << 40  # whether shards are sampled before they are counted


@pytest.mark.parametrize("shape", [(0,), (7,), (64, 32), (33, 7)], ids=str)
@pytest.mark.parametrize("shards", [1, 2, 4, 8, 9])
def test_ties_merge(kernels, thread_order, shards, shape):
    dtype = (SINGLE, BRAIN, HALF)[(thread_order + shards) % 3]
    for deltas in (
        normal(shards, *shape, seed=shards, dtype=dtype),
        dyadic(shards, *shape, seed=1, dtype=dtype, steps=3),
    ):
        if shards > 2 and deltas.numel():
            deltas[0].view(-1)[:3], deltas[1].view(-1)[4] = torch.nan, -torch.inf
        weights = torch.rand(shards, generator=generator(shards))
        densities = [(0.05, 0.3, 0.53, 1.0)[s % 4] for s in range(shards)]
        expected = reference.ties_merge(deltas, weights, densities)
        for sampled_from in (ALWAYS, NEVER):
            merged = run_merge(kernels, deltas, weights, densities, sampled_from)
            assert same_bits(merged.nan_to_num(99), expected.nan_to_num(99))


@pytest.mark.parametrize("dtype", [SINGLE, BRAIN])
def test_ties_merge_of_sampled_shards(kernels, dtype):
    """The guess is right of a shard like any other; of one whose large entries lie where no sample falls, it is not."""
    deltas = normal(3, 1 << 17, seed=1)
    deltas[1, torch.rand(1 << 17, generator=generator(2)) < 0.7] = 0
    deltas[2, : 1 << 15] *= 1e-3
    deltas = deltas.to(dtype)
    for densities in ([0.3, 0.2, 0.75], [0.01, 0.9, 0.5], [1e-5, 1.0, 1.0]):
        merged = run_merge(kernels, deltas, torch.ones(3), densities, ALWAYS)
        assert same_bits(merged, reference.ties_merge(deltas, torch.ones(3), densities))
