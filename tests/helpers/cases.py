"""Shapes, inputs and tolerances that the tests of the ops share with `bench/`."""

import os

import numpy as np
import pytest
import torch
from hypothesis import settings

from corrigenda.kernels import dispatch, reference

# Where the tests of the ops run their backends: CORRIGENDA_TEST_DEVICE=cuda takes every call there and back.
DEVICE = os.environ.get("CORRIGENDA_TEST_DEVICE", "cpu")

# (D, d, k) of the edited down-projection; k is MEMOIR's 4096, and the same share of the small model's width.
MODELS = {
    "SmolLM2-135M": (1536, 576, 438),
    "LLaMA-3-8B": (14336, 4096, 4096),
    "Mistral-7B": (14336, 4096, 4096),
    "LLaMA-2-7B": (11008, 4096, 4096),
}

# Around the 32 bits of a mask word and the 8 rows of a page; a prime; a width of several words.
WIDTHS = (1, 31, 32, 33, 64, 97, 160)

FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Largest error_ratio against a float64 formula on the same inputs: some roundings to the dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}

# Derandomised: a red run must be red again.
property_test = settings(max_examples=25, deadline=None, derandomize=True)


# Of the native CPU kernels, best first; AMX has its own of these ops, and takes the rest from AVX-512.
INSTRUCTIONS = ("amx", "avx512", "avx2", "baseline")
OF_AMX = ("masked_linear", "masked_linear_backward", "delta_linear")


def instruction_sets():
    """Those of INSTRUCTIONS that this machine runs."""
    native = torch.ops.corrigenda_native
    before = native.cpu_instructions()
    found = [name for name in INSTRUCTIONS if native.select_cpu_instructions(name)]
    native.select_cpu_instructions(before)
    return found


def each_backend(op):
    """Parametrise a test over the live backends of `op`; it selects one by `dispatch.use(backend)`.

    The native one comes once per instruction set: the fixture `backend` selects the set, and those that this machine
    does not run are skipped.
    """
    names = []
    for backend in dispatch.impls(op, DEVICE.partition(":")[0]):
        if backend != "native" or not DEVICE.startswith("cpu"):
            names.append(backend)
            continue
        found = instruction_sets()
        for name in INSTRUCTIONS if op in OF_AMX else INSTRUCTIONS[1:]:
            skip = pytest.mark.skip(reason=f"this machine does not run the {name} kernels")
            names.append(pytest.param(f"native-{name}", marks=() if name in found else skip))
    return pytest.mark.parametrize("backend", names, indirect=True)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def dyadic(*shape, seed, dtype=torch.float32, steps=64):
    """Multiples of 1/16, exact in every dtype and exact in any sum: results do not depend on the order."""
    integers = torch.randint(-steps, steps + 1, shape, generator=generator(seed))
    return (integers / 16).to(dtype)


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def random_masks(rows, width, seed, k=None):
    """int32 [rows, W] masks of k bits each, or of some density per row, the first of them empty."""
    noise = torch.rand(rows, width, generator=generator(seed))
    if k is None:
        return reference.pack_mask(noise < torch.linspace(0, 1, rows)[:, None])
    chosen = torch.zeros(rows, width, dtype=torch.bool)
    return reference.pack_mask(chosen.scatter(1, noise.topk(k).indices, True))


def random_route(tokens, entries, seed):
    """int32 [tokens] in -1 .. entries - 1."""
    return torch.randint(-1, entries, (tokens,), generator=generator(seed), dtype=torch.int32)


def bank(counts, width, outputs, seed, dtype=torch.float32):
    """(keys, values, pages, rows) for edits of `counts` rows, their pages scattered over the bank.

    Whatever no edit owns is NaN, so that a read of it shows.
    """
    rows = torch.tensor(counts, dtype=torch.int32)
    per_edit = [-(-count // reference.PAGE_ROWS) for count in counts]
    spare = 2
    shuffled = torch.randperm(sum(per_edit) + spare, generator=generator(seed)).to(torch.int32)
    pages = torch.full((len(counts), max(per_edit, default=0) + 1), -1, dtype=torch.int32)
    keys = torch.full((len(shuffled), reference.PAGE_ROWS, width), torch.nan, dtype=dtype)
    values = torch.full((len(shuffled), reference.PAGE_ROWS, outputs), torch.nan, dtype=dtype)
    start = 0
    for edit, (count, owned) in enumerate(zip(counts, per_edit)):
        pages[edit, :owned] = shuffled[start : start + owned]
        start += owned
        for r in range(count):
            page = pages[edit, r // reference.PAGE_ROWS]
            keys[page, r % reference.PAGE_ROWS] = normal(width, seed=seed + 101 * edit + r).to(dtype)
            values[page, r % reference.PAGE_ROWS] = normal(outputs, seed=seed + 103 * edit + r + 50).to(dtype)
    return keys, values, pages, rows


def exact(tensor):
    """The tensor's numbers as a NumPy array: float64 for floats, bfloat16 included."""
    return (tensor.detach().double() if tensor.is_floating_point() else tensor.detach()).numpy()


def bit(mask, i):
    """Bit i of one mask, a sequence of int32 words."""
    return (int(mask[i // 32]) >> (i % 32)) & 1


def bits(masks, width):
    """Masks as a NumPy bool array [rows, width], bit by bit."""
    listed = [[bool(bit(mask, i)) for i in range(width)] for mask in masks.tolist()]
    return np.array(listed, dtype=bool).reshape(len(masks), width)


def same_bits(a, b):
    """Whether two tensors are equal in every bit: tells 0.0 from -0.0, and NaN equals itself."""
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def error_ratio(actual, expected):
    """Root mean square of the error over that of `expected` (a NumPy array): a tolerance that scales."""
    error = np.sqrt(np.mean((exact(actual) - expected) ** 2)) if expected.size else 0.0
    scale = np.sqrt(np.mean(expected**2)) if expected.size else 0.0
    return error / scale if scale else error


def assert_close(actual, expected):
    assert tuple(actual.shape) == expected.shape
    assert error_ratio(actual, expected) < TOLERANCE[actual.dtype]
