"""Every op as torch sees it: opcheck, fakes, whole-graph compilation, one registration."""

import importlib
import importlib.util

import pytest
import torch
from cases import same_bits
from op_arguments import TOKENS, arguments, flat
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from corrigenda.kernels import dispatch, ops, schemas


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_opcheck(op):
    opcheck(getattr(torch.ops.corrigenda, op).default, arguments(op))


@pytest.mark.parametrize("op", dispatch.TABLE)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(op, dynamic):
    """fullgraph raises on any graph break; the second batch size must not need a second graph if dynamic."""
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, op), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with torch._dynamo.config.patch(error_on_recompile=dynamic):
        for tokens in (TOKENS, TOKENS + 4) if dynamic else (TOKENS,):
            for expected, actual in zip(
                flat(getattr(ops, op)(*arguments(op, tokens))), flat(compiled(*arguments(op, tokens)))
            ):
                assert same_bits(expected, actual)


@pytest.mark.parametrize(
    "op, floats", [("masked_linear", (0, 1, 2)), ("associative_read", (0, 1, 3, 4)), ("label_losses", (0,))]
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_gradients_compile_whole(op, floats, dynamic):
    def gradients(function):
        given = [value.clone().requires_grad_() if i in floats else value for i, value in enumerate(arguments(op))]
        flat(function(*given))[0].square().sum().backward()
        return [given[i].grad for i in floats]

    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, op), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for expected, actual in zip(gradients(getattr(ops, op)), gradients(compiled)):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("op", ["masked_linear_", "associative_read_", "masked_sgd_"])
def test_in_place_compiles_among_other_ops(op):
    """The write must stay between what comes before and after it, and unrouted rows keep their bits."""

    def layer(y, *rest):
        y = y * 2
        getattr(ops, op)(y, *rest)
        return y + 1, y

    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for expected, actual in zip(layer(*arguments(op)), compiled(*arguments(op))):
        assert same_bits(expected, actual)


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_fake_outputs_match(op):
    given = arguments(op)
    real = flat(getattr(ops, op)(*given))
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in given]
        fake = flat(getattr(ops, op)(*faked))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_fake_checks_arguments_too():
    y, x, memory, masks, route = arguments("masked_linear")
    mode = FakeTensorMode()
    faked = [mode.from_tensor(tensor) for tensor in (y, x, memory, masks, route.long())]
    with mode, pytest.raises(ValueError, match=r"^route must be int32"):
        ops.masked_linear(*faked)


def test_tensors_on_two_devices_are_refused():
    y, x, memory, masks, route = arguments("masked_linear")
    with pytest.raises(ValueError, match=r"^memory must be .* on cpu, not .* on meta"):
        ops.masked_linear(y, x, memory.to("meta"), masks, route)


def test_a_second_import_registers_nothing():
    assert importlib.import_module("corrigenda.kernels.schemas") is schemas
    again = importlib.util.spec_from_file_location("corrigenda.kernels.schemas_again", schemas.__file__)
    copy = importlib.util.module_from_spec(again)
    with pytest.raises(RuntimeError, match="namespace corrigenda"):
        again.loader.exec_module(copy)
    test_fake_outputs_match("masked_linear")
