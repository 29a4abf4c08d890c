"""delta_linear against NumPy in float64, sequence by sequence."""

import numpy as np
import pytest
import torch
from cases import assert_close, each_backend, exact, normal, property_test
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops


def slow_delta_linear(x, base, delta, offsets, weight, activated, longest):
    def silu(values):
        return values / (1 + np.exp(-values))

    side = exact(x) @ exact(delta)
    change = silu(exact(base) + side) - silu(exact(base)) if activated else side
    distance = np.sqrt((change**2).sum(1))
    weights = np.ones(len(side)) if weight is None else exact(weight)
    scores = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        counted = weights[start:end] > 0
        far, share = distance[start:end][counted], weights[start:end][counted]
        if not counted.any():
            scores.append(0.0)
        else:
            scores.append(far.max() if len(far) > longest else (far * share).sum() / share.sum())
    return side, distance, np.array(scores)


def check(backend, *arguments):
    with dispatch.use(backend):
        found = ops.delta_linear(*arguments)
    for actual, expected in zip(found, slow_delta_linear(*arguments), strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, expected)


@each_backend("delta_linear")
@property_test
@given(data=st.data())
def test_equals_a_loop_over_sequences(backend, data):
    width, outputs = data.draw(st.sampled_from(((1, 1), (7, 33), (40, 64), (97, 5))))
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=4))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    seed = data.draw(st.integers(0, 1000))
    spare = data.draw(st.integers(0, 2))  # tokens before the first sequence and after the last
    tokens = sum(lengths) + 2 * spare
    offsets = torch.tensor([spare, *(spare + np.cumsum(lengths))], dtype=torch.int32)
    weight = None
    if data.draw(st.booleans()):
        weight = normal(tokens, seed=seed + 4).clamp(min=0)
    check(
        backend,
        normal(tokens, width, seed=seed, dtype=dtype),
        normal(tokens, outputs, seed=seed + 1, dtype=dtype),
        normal(width, outputs, seed=seed + 2, dtype=data.draw(st.sampled_from((torch.float32, dtype)))),
        offsets,
        weight,
        data.draw(st.booleans()),
        data.draw(st.sampled_from((0, 3, 100))),
    )


@each_backend("delta_linear")
def test_mean_up_to_a_length_and_maximum_beyond(backend):
    x = torch.tensor([[1.0], [3.0], [2.0], [1.0], [3.0], [2.0], [9.0]])
    offsets = torch.tensor([0, 3, 7], dtype=torch.int32)
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 0])
    arguments = (x, torch.zeros(7, 1), torch.ones(1, 1), offsets)
    with dispatch.use(backend):
        assert ops.delta_linear(*arguments, longest=3)[2].tolist() == [2.0, 9.0]
        assert ops.delta_linear(*arguments, weight, longest=3)[2].tolist() == [2.0, 2.0]
        assert ops.delta_linear(*arguments, weight, longest=2)[2].tolist() == [3.0, 3.0]


@each_backend("delta_linear")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens, outputs", [(9, 40), (65, 40), (70, 530)], ids=str)
def test_many_tokens(backend, tokens, outputs, dtype):
    """Tiles of tokens beyond the first, and products by columns where few tokens are taken otherwise."""
    shapes = (tokens, 70), (tokens, outputs), (70, outputs)
    x, base, delta = (normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    bound = torch.tensor([0, 5, tokens], dtype=torch.int32)
    check(backend, x, base, delta, bound, None, True, 100)


@each_backend("delta_linear")
def test_what_does_not_count_may_be_anything(backend):
    x = torch.tensor([[1.0], [torch.inf], [3.0], [torch.nan]])
    weight, offsets = torch.tensor([1.0, 0, 1, 0]), torch.tensor([0, 2, 4], dtype=torch.int32)
    with dispatch.use(backend):
        for longest in (0, 100):
            score = ops.delta_linear(x, torch.zeros(4, 1), torch.ones(1, 1), offsets, weight, longest=longest)[2]
            assert score.tolist() == [1.0, 3.0]


@each_backend("delta_linear")
def test_views(backend):
    check(
        backend,
        normal(14, 9, seed=0)[1::2, 2:7],
        normal(6, 7, seed=1).T,
        normal(6, 5, seed=2).T,
        torch.tensor([0, 9, 4, 9, 7], dtype=torch.int32)[::2],
        normal(14, seed=3).abs()[::2],
        True,
        100,
    )


def test_refuses_to_lose_a_gradient():
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="delta_linear records no gradient"):
        ops.delta_linear(x, torch.ones(1, 3), torch.ones(2, 3), torch.tensor([0, 1], dtype=torch.int32))


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", {"x": torch.ones(4)}),
        ("delta", {"delta": torch.ones(2, 4)}),
        ("base", {"base": torch.ones(3, 5)}),
        ("offsets", {"offsets": torch.tensor([0, 4])}),
        ("offsets", {"offsets": torch.zeros(0, dtype=torch.int32)}),
        ("weight", {"weight": torch.ones(3)}),
    ],
)
def test_a_wrong_argument_is_named(name, change):
    arguments = {
        "x": torch.ones(4, 3),
        "base": torch.ones(4, 5),
        "delta": torch.ones(3, 5),
        "offsets": torch.tensor([0, 4], dtype=torch.int32),
        **change,
    }
    with pytest.raises(ValueError, match=f"^{name} must"):
        ops.delta_linear(**arguments)
