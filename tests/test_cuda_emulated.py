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
    # Powers of two, so that the mean of dyadic features is exact in any order; few steps, so that many are equal.
    x = dyadic(sum(lengths), width, seed=seed, dtype=dtype, steps=8)
    weight = background = permutation = None
    if options:
        weight = torch.ones(len(x))
        background = dyadic(width, seed=seed + 1, steps=8)
        permutation = torch.randperm(width, generator=generator(seed))
    return x, offsets_of(*lengths), k, weight, background, permutation


@pytest.mark.parametrize("options", [False, True], ids=["plain", "all"])
@pytest.mark.parametrize("width, k, lengths", FINGERPRINTS, ids=str)
def test_topk_mask(kernels, order, width, k, lengths, options):
    dtype = FEATURE_DTYPES[(order + len(lengths)) % 3]
    x, offsets, *rest = fingerprint_inputs(width, k, lengths, dtype, order, options)
    k, weight, background, permutation = rest
    if width == 33:
        x[-1, 3], x[-1, 30], x[0, 8] = torch.nan, torch.inf, -torch.inf
    sizes = len(x), len(lengths), width
    masks = empty(len(lengths), (width + 31) // 32)
    scratch = emulate.scratch(kernels, "topk_mask", *sizes)
    features = (x, x.dtype, offsets, *sizes, k, weight, background, permutation)
    emulate.call(kernels, "topk_mask", *features, masks, scratch)
    assert torch.equal(masks, reference.topk_mask(x, offsets, k, weight, background, permutation))


def test_topk_mask_weighs_tokens(kernels, order):
    x, weight = dyadic(12, 65, seed=order), torch.tensor([4.0, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0])
    masks = empty(3, 3)
    scratch = emulate.scratch(kernels, "topk_mask", 12, 3, 65)
    offsets = offsets_of(1, 7, 4)
    emulate.call(kernels, "topk_mask", x, x.dtype, offsets, 12, 3, 65, 9, weight, None, None, masks, scratch)
    assert torch.equal(masks, reference.topk_mask(x, offsets, 9, weight, None, None))


def visibility(batch, rows, seed):
    """The ways of hiding stored rows: none, a count, a count with groups."""
    groups = integers(batch, low=0, high=2, seed=seed), integers(rows, low=0, high=2, seed=seed + 1)
    count = torch.tensor([rows * 3 // 4], dtype=torch.int32)
    return [(None, None, None), (count, None, None), (count, *groups)]


@pytest.mark.parametrize("width", [97, 160, 1536])
@pytest.mark.parametrize("batch, rows", [(1, 0), (1, 301), (6, 129), (9, 50), (70, 400)])
def test_mask_overlap(kernels, order, batch, rows, width):
    query, stored = random_masks(batch, width, seed=1), random_masks(rows, width, seed=2)
    if rows > 40:
        query[0] = stored[31] = stored[37]  # equals, in one block or in two
    for visible in visibility(batch, rows, order):
        index, overlap = empty(batch), empty(batch)
        scratch = emulate.scratch(kernels, "mask_overlap", batch)
        emulate.call(
            kernels, "mask_overlap", query, stored, batch, rows, query.shape[1], *visible, index, overlap, scratch
        )
        expected = reference.mask_overlap(query, stored, *visible)
        assert torch.equal(index, expected[0]) and torch.equal(overlap, expected[1])


@pytest.mark.parametrize("lengths", [(1,), (2, 16, 0)], ids=str)
def test_mask_route(kernels, order, lengths):
    width, k, rows, batch = 320, 40, 100, len(lengths)
    features = fingerprint_inputs(width, k, lengths, torch.bfloat16, order, True)
    x, offsets, k, weight, background, permutation = features
    stored = random_masks(rows, width, seed=order, k=k)
    stored[60] = reference.topk_mask(*features)[0]
    for visible in visibility(batch, rows, order):
        for least in (5, 30, 41):
            minimum = torch.tensor([least], dtype=torch.int32)
            outputs = [empty(batch) for _ in range(3)]
            scratch = emulate.scratch(kernels, "mask_route", len(x), batch, width)
            sizes = len(x), batch, width, k
            fingerprint = (x, x.dtype, offsets, *sizes, weight, background, permutation)
            emulate.call(kernels, "mask_route", *fingerprint, stored, rows, minimum, *visible, *outputs, scratch)
            for actual, expected in zip(outputs, reference.mask_route(*features, stored, minimum, *visible)):
                assert torch.equal(actual, expected)


def token_sets(rows, length, vocabulary, seed):
    table = torch.full((rows, length), -1, dtype=torch.int32)
    for i in range(rows):
        held = int(torch.randint(0, length + 1, (), generator=generator(seed + i)))
        table[i, :held] = torch.randperm(vocabulary, generator=generator(seed + 7 * i))[:held]
    return table


@pytest.mark.parametrize("batch, rows, query_length", [(1, 0, 5), (1, 5, 1), (2, 300, 9), (5, 40, 300)])
def test_token_overlap(kernels, order, batch, rows, query_length):
    vocabulary, stored_length = 331, 11
    query = token_sets(batch, query_length, vocabulary, 1)
    stored = token_sets(rows, stored_length, vocabulary, 1000)
    rarity = integers(vocabulary, low=0, high=4, seed=2) * 1000
    for visible in visibility(batch, rows, order):
        for extra_weight in (0.0, 0.125):
            index, score, runner_up = empty(batch), empty(batch, dtype=torch.float32), empty(batch, dtype=torch.float32)
            sizes = batch, query_length, rows, stored_length, vocabulary
            scratch = emulate.scratch(kernels, "token_overlap", batch, rows)
            tokens = (query, stored, rarity, *sizes, extra_weight)
            emulate.call(kernels, "token_overlap", *tokens, *visible, index, score, runner_up, scratch)
            expected = reference.token_overlap(query, stored, rarity, extra_weight, *visible)
            # The kernel rounds where the reference rounds: equal, not only close.
            for actual, wanted in zip((index, score, runner_up), expected):
                assert torch.equal(actual, wanted)


def test_every_launcher_is_called_here():
    tests = " ".join(path.read_text() for path in emulate.CSRC.parent.glob("tests/test_cuda_emulated*.py"))
    for source in emulate.CSRC.glob("cuda/*.cu"):
        for name in re.findall(r'extern "C" cudaError_t corrigenda_(\w+)\(', source.read_text()):
            assert f'"{name}"' in tests, f"no test calls {name} of {source.name} in the emulator"
