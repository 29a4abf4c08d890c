"""What only Triton's kernels have: variants by shape, split work, passes that are seldom needed, and memory's edges."""

import runpy
import subprocess
import sys
import textwrap

import pytest
import test_associative_read
import test_mask_overlap
import test_masked_linear
import test_ties_merge
import torch
from cases import assert_close, dyadic, normal, random_masks, same_bits

from corrigenda.kernels import dispatch, ops, triton_backend, tuner, tuning

absent = triton_backend.absent("cpu")
pytestmark = pytest.mark.skipif(bool(absent), reason=absent)


@pytest.fixture(autouse=True)
def poison():
    """Memory that a kernel should have written and did not reads as NaN, or as the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_many_queries_share_the_tensor_cores():
    query, stored = random_masks(20, 97, seed=0), random_masks(300, 97, seed=1)
    stored[200] = stored[7]
    valid, groups = test_mask_overlap.count(290), test_mask_overlap.groups
    test_mask_overlap.check("triton", torch.cat([query, stored[[200]]]), stored, valid, groups(21, 0), groups(300, 1))


def test_one_program_takes_several_tiles(monkeypatch):
    monkeypatch.setattr("corrigenda.kernels.mask_overlap.MAXIMUM_PROGRAMS", 2)
    test_mask_overlap.check("triton", random_masks(1, 64, seed=2), random_masks(45, 64, seed=3), None)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_masked_linear_by_block_and_split(monkeypatch, tokens, multiprocessors):
    """Few programs write y themselves; many split the mask's words and add the parts in a second launch."""
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: multiprocessors)
    y, x, memory, _, _ = test_masked_linear.make(tokens, 1300, 20, 3, 0)
    route = torch.arange(tokens, dtype=torch.int32) % 4 - int(tokens > 1)
    test_masked_linear.check("triton", y, x, memory, random_masks(3, 1300, seed=0, k=400), route)


def test_a_row_that_is_not_finite_reaches_only_tokens_that_read_it():
    y, x, memory, masks, _ = test_masked_linear.make(3, 40, 5, 2, 1)
    masks[0], masks[1] = 5, 6
    route = torch.tensor([0, 1, 0], dtype=torch.int32)
    memory[0], y[:] = torch.inf, 1.0
    grad = y.clone()
    grad[1] = torch.nan
    with dispatch.use("triton"):
        out = ops.masked_linear(y, x, memory, masks, route)
        _, dmemory = ops.masked_linear_backward(grad, x, memory, masks, route)
    assert out[1].isfinite().all() and out[[0, 2]].isinf().all()
    assert dmemory[0].isfinite().all() and dmemory[1].isnan().all()


def test_long_edits_are_scored_in_a_launch_of_their_own(monkeypatch):
    monkeypatch.setattr("corrigenda.kernels.associative_read.FUSED_KEYS", 0)
    for dtypes in test_associative_read.DTYPES[:3]:
        test_associative_read.check("triton", *test_associative_read.make(6, [9, 0, 1, 40], 45, 33, 0, dtypes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["normal", "sparse", "ties", "sample misses"])
def test_thresholds_beyond_a_sample(monkeypatch, dtype, kind):
    monkeypatch.setattr("corrigenda.kernels.ties_merge.SAMPLE", 64)
    deltas = normal(2, 3000, seed=0, dtype=dtype)
    if kind == "sparse":
        deltas[torch.rand(2, 3000, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    elif kind == "ties":
        deltas = dyadic(2, 3000, seed=0, dtype=dtype, steps=2)
    elif kind == "sample misses":
        deltas[0, ::2], deltas[1, 1500:] = 0, torch.inf
    test_ties_merge.check("triton", deltas.nan_to_num(posinf=1e4), [0.5, 1.0], [0.2, 0.55])


def test_rows_too_wide_to_select_from_are_declined():
    x, offsets = torch.zeros(1, 16385), torch.tensor([0, 1], dtype=torch.int32)
    with dispatch.use("triton"), pytest.raises(RuntimeError, match="16384 features at most, not 16385"):
        ops.topk_mask(x, offsets, 3)


def test_in_place_and_functional_are_the_same_bits():
    y, x, memory, _, route = test_masked_linear.make(5, 700, 9, 2, 3)
    arguments = (x, memory, random_masks(2, 700, seed=3, k=200), route)
    with dispatch.use("triton"):
        out = ops.masked_linear(y, *arguments)
        assert same_bits(out, ops.masked_linear_(y.clone(), *arguments))
    assert_close(out, test_masked_linear.slow_masked_linear(y, *arguments))


def test_every_variant_has_a_configuration():
    for name in {path.stem for path in tuning.FOLDER.glob("*.json")}:
        entries = tuning.table(name)
        for kernel, variants in tuner.CANDIDATES.items():
            for variant, choices in variants.items():
                assert set(choices) <= set(entries[kernel][variant]) | {"num_stages", "num_warps"}


def test_launchers_read_what_the_tuner_sets(monkeypatch):
    """Run by `python -m`, the tuner is not the module that others import: what it sets must reach them all the same."""
    tuned = runpy.run_module("corrigenda.kernels.tuner", run_name="run by -m")
    device = torch.device("cpu")
    before = dict(tuning.config("ties_merge", "merge", device))
    monkeypatch.setitem(tuning.table("default")["ties_merge"], "merge", before)
    tried = [candidate["BLOCK"] for candidate in tuned["candidates"]("ties_merge", "merge", before)]
    assert len(set(tried)) > 1
    for block in tried:
        tuned["_configured"]("ties_merge", "merge", "ties_merge", {**before, "BLOCK": block}, device)
        assert tuning.config("ties_merge", "merge", device)["BLOCK"] == block
    tuning.config.cache_clear()


GUARDED = """
    import ctypes, mmap, os, sys
    import torch
    sys.path[:0] = {tests!r}
    import conftest  # interprets Triton
    from cases import bank, normal, random_masks
    from corrigenda.kernels import dispatch, ops

    libc, kept = ctypes.CDLL(None, use_errno=True), []

    def guarded(tensor):
        '''A copy that ends where a page begins that may not be touched.'''
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // mmap.PAGESIZE)
        area = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(area))
        assert libc.mprotect(ctypes.c_void_p(base + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
        offset = pages * mmap.PAGESIZE - size
        copy = torch.frombuffer(area, dtype=tensor.dtype, offset=offset, count=tensor.numel()).view(tensor.shape)
        kept.append(area)
        return copy.copy_(tensor)

    def call(op, *arguments):
        with dispatch.use("triton"):
            op(*(guarded(a) if isinstance(a, torch.Tensor) and a.numel() else a for a in arguments))

    int32 = lambda *values: torch.tensor(values, dtype=torch.int32)
    masks, x = random_masks(5, 45, 0), normal(3, 45, seed=1)
    call(ops.topk_mask, normal(11, 45, seed=0), int32(0, 4, 11), 7, torch.rand(11), torch.rand(45), torch.arange(45))
    call(ops.mask_overlap, masks[:2], masks, int32(9), int32(0, 1), int32(0, 1, 0, 1, 0))
    call(ops.mask_overlap, masks[[0] * 17], masks)
    call(ops.token_overlap, int32([1, 2, 7]), int32([7, 1], [2, -1]), torch.ones(8, dtype=torch.int32), 0.1)
    call(ops.nearest_key, x, normal(5, 45, seed=9), torch.ones(5), False, int32(9))
    call(ops.nearest_key, x, normal(5, 45, seed=9), None, True, None, int32(0, 1, 0), int32(0, 1, 0, 1, 0))
    for tokens in (1, 3):
        arguments = normal(tokens, 5, seed=2), x[:tokens], normal(45, 5, seed=3), masks, int32(4, -1, 0)[:tokens]
        call(ops.masked_linear, *arguments)
        call(ops.masked_linear_backward, *arguments)
    keys, values, pages, rows = bank([3, 9], 45, 5, 0)
    arguments = keys, values, pages, rows, int32(1, 0, -1), torch.zeros(45), 2.0
    call(ops.associative_read, normal(3, 5, seed=4), x, torch.tensor([False, True, False]), *arguments)
    call(ops.associative_read_backward, normal(3, 5, seed=4), x, torch.tensor([False, True, False]), *arguments)
    factors = normal(2, 3, 45, seed=10), normal(2, 3, 5, seed=11)
    call(ops.adapter_linear_, normal(3, 5, seed=4), x, *factors, int32(1, 0, 1), int32(2, -1, 0))
    call(ops.ties_merge, normal(3, 77, seed=5), torch.ones(3), [0.2, 0.5, 1.0])
    delta, upstream = normal(45, 5, seed=6), normal(3, 5, seed=7)
    call(ops.masked_sgd_, delta, x, upstream, random_masks(45, 5, 1), normal(45, 5, seed=8), 0.1, 0.1)
    call(ops.delta_linear, x, upstream, delta, int32(0, 2, 3), torch.rand(3), True)
    print("within bounds", flush=True)
    os._exit(0)  # tensors outlive their memory
"""


@pytest.mark.slow
def test_nothing_is_read_past_the_end():
    """Inputs end at a page without access: a load beyond them kills the process."""
    from pathlib import Path

    tests = Path(__file__).parents[1]
    script = textwrap.dedent(GUARDED.format(tests=[str(tests), str(tests / "helpers")]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "within bounds" in done.stdout, done.stderr[-2000:]
