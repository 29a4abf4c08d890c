"""The CUDA kernels against the reference, on the CPU: small and odd shapes, threads in several orders.

What only a GPU can show is not tested here: speed, and what two processors do to one memory.
"""

import re

import emulate
import pytest
import torch
from cases import FEATURE_DTYPES, dyadic, generator, random_masks

from corrigenda.kernels import reference

pytestmark = pytest.mark.skipif(emulate.compiler() is None, reason="g++ is not installed")


def offsets_of(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def integers(*shape, low, high, seed):
    return torch.randint(low, high, shape, generator=generator(seed), dtype=torch.int32)


def empty(*shape, dtype=torch.int32):
    """What an output holds before: nothing that a test could take for an answer."""
    return torch.full(shape, -77, dtype=dtype)


# Lengths that the selecting block pools itself, and (above 8 tokens) lengths that a grid pools before.
SEQUENCES = [(1,), (2, 0, 4), (1, 8, 32, 0)]
# Widths that 16-byte loads may and may not read; one per number of entries a thread holds.
FINGERPRINTS = [
    *((width, k, lengths) for width, k in ((33, 7), (768, 219)) for lengths in SEQUENCES),
    *(pytest.param(width, 1000, (1,), id=f"large-{width}") for width in (4101, 4104, 16400)),
]


def fingerprint_inputs(width, k, lengths, dtype, seed, options):
    """The arguments of topk_mask, by name."""
    # Powers of two, so that the mean of dyadic features is exact in any order; few steps, so that many are equal.
    x = dyadic(sum(lengths), width, seed=seed, dtype=dtype, steps=8)
    weight = background = permutation = None
    if options:
        weight = torch.ones(len(x))
        background = dyadic(width, seed=seed + 1, steps=8)
        permutation = torch.randperm(width, generator=generator(seed))
    names = "x", "offsets", "k", "weight", "background", "permutation"
    return dict(zip(names, (x, offsets_of(*lengths), k, weight, background, permutation)))


def sizes_of(features):
    (tokens, width), batch = features["x"].shape, len(features["offsets"]) - 1
    return {"tokens": tokens, "batch": batch, "width": width}


def run_topk_mask(kernels, features):
    masks = empty(len(features["offsets"]) - 1, (features["x"].shape[1] + 31) // 32)
    emulate.launch(kernels, "topk_mask", **features, **sizes_of(features), masks=masks)
    return masks


@pytest.mark.parametrize("options", [False, True], ids=["plain", "all"])
@pytest.mark.parametrize("width, k, lengths", FINGERPRINTS, ids=str)
def test_topk_mask(kernels, thread_order, width, k, lengths, options):
    dtype = FEATURE_DTYPES[(thread_order + len(lengths)) % 3]
    features = fingerprint_inputs(width, k, lengths, dtype, thread_order, options)
    if width == 33:
        x = features["x"]
        x[-1, 3], x[-1, 30], x[0, 8] = torch.nan, torch.inf, -torch.inf
    assert torch.equal(run_topk_mask(kernels, features), reference.topk_mask(**features))


def test_topk_mask_weighs_tokens(kernels, thread_order):
    features = fingerprint_inputs(65, 9, (1, 7, 4), torch.float32, thread_order, False)
    features |= {"x": dyadic(12, 65, seed=thread_order), "weight": torch.tensor([4.0, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0])}
    assert torch.equal(run_topk_mask(kernels, features), reference.topk_mask(**features))


def visibility(batch, rows, seed):
    """The ways of hiding stored rows: none, a count, a count with groups."""
    groups = integers(batch, low=0, high=2, seed=seed), integers(rows, low=0, high=2, seed=seed + 1)
    count = torch.tensor([rows * 3 // 4], dtype=torch.int32)
    names = "valid", "query_group", "stored_group"
    return [dict(zip(names, given)) for given in ((None, None, None), (count, None, None), (count, *groups))]


@pytest.mark.parametrize("width", [97, 160, 1536])
@pytest.mark.parametrize("batch, rows", [(1, 0), (1, 301), (6, 129), (9, 50), (70, 400)])
def test_mask_overlap(kernels, thread_order, batch, rows, width):
    query, stored = random_masks(batch, width, seed=1), random_masks(rows, width, seed=2)
    if rows > 40:
        query[0] = stored[31] = stored[37]  # equals, in one block or in two
    for visible in visibility(batch, rows, thread_order):
        index, overlap = empty(batch), empty(batch)
        sizes = {"batch": batch, "rows": rows, "words": query.shape[1]}
        given = {"query": query, "stored": stored, **visible}
        emulate.launch(kernels, "mask_overlap", **given, **sizes, index=index, overlap=overlap)
        expected = reference.mask_overlap(**given)
        assert torch.equal(index, expected[0]) and torch.equal(overlap, expected[1])


@pytest.mark.parametrize("lengths", [(1,), (2, 16, 0)], ids=str)
def test_mask_route(kernels, thread_order, lengths):
    width, k, rows, batch = 320, 40, 100, len(lengths)
    features = fingerprint_inputs(width, k, lengths, torch.bfloat16, thread_order, True)
    stored = random_masks(rows, width, seed=thread_order, k=k)
    stored[60] = reference.topk_mask(**features)[0]
    for visible in visibility(batch, rows, thread_order):
        for least in (5, 30, 41):
            given = {**features, "stored": stored, "minimum": torch.tensor([least], dtype=torch.int32), **visible}
            outputs = {name: empty(batch) for name in ("nearest", "overlap", "route")}
            emulate.launch(kernels, "mask_route", **given, **sizes_of(features), rows=rows, **outputs)
            for actual, expected in zip(outputs.values(), reference.mask_route(**given)):
                assert torch.equal(actual, expected)


def token_sets(rows, length, vocabulary, seed):
    table = torch.full((rows, length), -1, dtype=torch.int32)
    for i in range(rows):
        held = int(torch.randint(0, length + 1, (), generator=generator(seed + i)))
        table[i, :held] = torch.randperm(vocabulary, generator=generator(seed + 7 * i))[:held]
    return table


@pytest.mark.parametrize("batch, rows, query_length", [(1, 0, 5), (1, 5, 1), (2, 300, 9), (5, 40, 300)])
def test_token_overlap(kernels, thread_order, batch, rows, query_length):
    vocabulary, stored_length = 331, 11
    query = token_sets(batch, query_length, vocabulary, 1)
    stored = token_sets(rows, stored_length, vocabulary, 1000)
    rarity = integers(vocabulary, low=0, high=4, seed=2) * 1000
    for visible in visibility(batch, rows, thread_order):
        for extra_weight in (0.0, 0.125):
            given = {"query": query, "stored": stored, "rarity": rarity, "extra_weight": extra_weight, **visible}
            outputs = {"index": empty(batch)}
            outputs |= {name: empty(batch, dtype=torch.float32) for name in ("score", "runner_up")}
            emulate.launch(
                kernels, "token_overlap", **given, **outputs, batch=batch, query_length=query_length, rows=rows,
                stored_length=stored_length, vocabulary=vocabulary,
            )  # fmt: skip
            # The kernel rounds where the reference rounds: equal, not only close.
            for actual, wanted in zip(outputs.values(), reference.token_overlap(**given)):
                assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch, rows, width", [(1, 0, 7), (1, 1, 1), (2, 300, 33), (5, 40, 160)])
def test_nearest_key(kernels, thread_order, dtype, batch, rows, width):
    query, stored = dyadic(batch, width, seed=1, dtype=dtype), dyadic(rows, width, seed=2, dtype=dtype)
    stored[rows // 2 :][:batch] = query[: len(stored[rows // 2 :])]
    radius = torch.rand(rows, generator=generator(3)) * 30
    for visible in visibility(batch, rows, thread_order):
        for cosine in (False, True):
            given = {"query": query, "stored": stored, "radius": radius, "cosine": cosine, **visible}
            outputs = {"index": empty(batch), "distance": empty(batch, dtype=torch.float32), "route": empty(batch)}
            emulate.launch(kernels, "nearest_key", **given, **outputs, batch=batch, rows=rows, width=width)
            expected = reference.nearest_key(**given)
            torch.testing.assert_close(outputs["distance"], expected[1], rtol=1e-5, atol=1e-5)
            if not cosine:  # sums of multiples of 1/256 are exact: ties are ties
                assert torch.equal(outputs["index"], expected[0]) and torch.equal(outputs["route"], expected[2])


def test_every_launcher_is_called_here():
    tests = " ".join(path.read_text() for path in emulate.CSRC.parent.glob("tests/kernels/test_cuda_emulated*.py"))
    for source in emulate.CSRC.glob("cuda/*.cu"):
        for name in re.findall(r'extern "C" cudaError_t corrigenda_(\w+)\(', source.read_text()):
            assert f'"{name}"' in tests, f"no test calls {name} of {source.name} in the emulator"
