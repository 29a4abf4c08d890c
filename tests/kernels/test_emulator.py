"""The emulator itself: it must catch the mistakes that it is there for. The planted ones are in emulator/planted.cu."""

import ctypes
import subprocess
from pathlib import Path

import emulate
import pytest
import torch
from cases import FEATURE_DTYPES, normal, same_bits

pytestmark = pytest.mark.skipif(emulate.compiler() is None, reason="g++ is not installed")

PLANTED = Path(__file__).parents[1] / "helpers/emulator/planted.cu"
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


@pytest.fixture(scope="module")
def planted():
    return ctypes.CDLL(str(emulate.build([PLANTED])))


@pytest.fixture(scope="module")
def program():
    return emulate.build([PLANTED], name="planted")


@pytest.fixture(scope="module")
def sanitized():
    return emulate.build([PLANTED], *SANITIZED, name="planted")


def run(path, mistake):
    return subprocess.run([path, str(mistake)], capture_output=True, text=True, timeout=60)


def call(planted, name, *arguments):
    """Launch the planted `corrigenda_<name>`: tensors go as pointers, dtypes as codes, ints as int64."""

    def argument(value):
        if isinstance(value, torch.Tensor):
            return ctypes.c_void_p(value.data_ptr())
        return ctypes.c_int(emulate.DTYPES[value]) if isinstance(value, torch.dtype) else ctypes.c_int64(value)

    status = getattr(planted, f"corrigenda_{name}")(*map(argument, arguments), ctypes.c_void_p(None))
    assert status == 0, f"{name} was refused with CUDA error {status}"


def reversed_in(planted, seed, barrier, monkeypatch):
    monkeypatch.setenv("CORRIGENDA_EMULATE_SEED", str(seed))
    source, out = torch.arange(64, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
    call(planted, "reverse", source, out, barrier)
    return torch.equal(out, source.flip(0))


def test_a_missing_barrier_shows(planted, monkeypatch):
    assert all(reversed_in(planted, seed, 1, monkeypatch) for seed in emulate.SEEDS)
    assert not any(reversed_in(planted, seed, 0, monkeypatch) for seed in emulate.SEEDS)


def test_the_last_block_sees_what_the_others_wrote(planted, monkeypatch):
    source = torch.arange(32 * 9, dtype=torch.int32)
    for seed in emulate.SEEDS:
        monkeypatch.setenv("CORRIGENDA_EMULATE_SEED", str(seed))
        finished, partial, out = (torch.zeros(n, dtype=torch.int32) for n in (1, 9, 1))
        call(planted, "sum_of_blocks", source, 9, finished, partial, out)
        assert out == source.sum()


def test_a_launch_that_a_gpu_refuses_is_refused(planted):
    with pytest.raises(AssertionError, match="CUDA error 9"):
        call(planted, "too_many_threads", torch.zeros(2000, dtype=torch.int32))


@pytest.mark.parametrize("mistake", [1, 2], ids=["block", "warp"])
def test_a_divergent_barrier_ends_the_process(program, mistake):
    ended = run(program, mistake)
    assert ended.returncode != 0 and "divergent barrier" in ended.stderr and "planted.cu:" in ended.stderr


def test_a_shuffle_among_some_lanes_says_which(program):
    ended = run(program, 3)
    assert ended.returncode == 0 and ended.stdout == "ended 0\n"  # lane 1 got lane 0's


@pytest.mark.parametrize(
    "mistake, message",
    [(4, "heap-buffer-overflow"), (5, "heap-buffer-overflow"), (6, "misaligned address")],
    ids=["shared", "global", "misaligned"],
)
def test_the_sanitizers_see_memory_errors(sanitized, mistake, message):
    assert run(sanitized, 0).returncode == 0
    ended = run(sanitized, mistake)
    assert ended.returncode != 0 and message in ended.stderr and "planted.cu" in ended.stderr


@pytest.mark.parametrize("dtype", FEATURE_DTYPES[1:], ids=str)
def test_half_types_round_as_torch_does(planted, dtype):
    halves = torch.arange(0x10000).to(torch.int16).view(dtype)  # every number there is
    halfway = (halves.double() + halves.roll(-1).double()).div(2).float()
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 65519.0, 65520.0, 1e-8, 3.3e38])
    source = torch.cat([halves.float(), halfway, normal(4096, seed=0), special])
    there, back = torch.empty(len(source), dtype=dtype), torch.empty(len(source))
    call(planted, "round_trip", source, dtype, there, back, len(source))
    expected = source.to(dtype)
    numbers = ~source.isnan()
    assert same_bits(there[numbers], expected[numbers]) and same_bits(back[numbers], expected.float()[numbers])
    assert back[~numbers].isnan().all()
