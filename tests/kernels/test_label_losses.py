"""label_losses against the logits, their softmax and its mean of the weight's rows, whole and in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, TOLERANCE, assert_close, each_backend, error_ratio, normal, property_test, same_bits
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.kernels import dispatch, ops, reference


def whole(hidden, weight, labels):
    logits = hidden.double() @ weight.double().T
    losses = logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
    return losses.numpy(), (torch.softmax(logits, 1) @ weight.double() - weight.double()[labels]).numpy()


def case(count, vocabulary, width, seed, dtype=torch.float32, of_weight=None, scale=1.0):
    labels = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed))
    weight = normal(vocabulary, width, seed=seed + 1) * scale / max(1, width) ** 0.5
    return normal(count, width, seed=seed + 2, dtype=dtype), weight.to(of_weight or dtype), labels


def check(backend, hidden, weight, labels):
    with dispatch.use(backend):
        losses, gradient = ops.label_losses(hidden, weight, labels)
    assert losses.dtype == torch.float32 and gradient.dtype == hidden.dtype
    assert losses.shape == labels.shape and gradient.shape == hidden.shape
    # The reference rounds logits of half precision, and a share of p weight rows may cancel: some roundings more.
    rough = torch.float32 if backend == "native" else torch.promote_types(hidden.dtype, weight.dtype)
    expected_losses, expected_gradient = whole(hidden, weight, labels)
    assert error_ratio(losses, expected_losses) < TOLERANCE[rough]
    assert error_ratio(gradient, expected_gradient) < max(TOLERANCE[gradient.dtype], 2 * TOLERANCE[rough])


@each_backend("label_losses")
@property_test
@given(data=st.data())
def test_equals_the_whole_softmax(backend, data):
    """Around the lanes of each instruction set, tiles of rows and of columns, and blocks of the vocabulary."""
    count = data.draw(st.sampled_from((1, 2, 5, 8, 15, 16, 17, 33, 49, 64, 81)))
    vocabulary = data.draw(st.sampled_from((1, 2, 15, 97, 512, 1100)))
    width = data.draw(st.sampled_from((1, 3, 15, 40, 64, 193, 411)))
    dtype, of_weight = (data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16))) for _ in range(2))
    scale = data.draw(st.sampled_from((0.5, 3.0)))
    check(backend, *case(count, vocabulary, width, data.draw(st.integers(0, 1000)), dtype, of_weight, scale))


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_the_references_blocks_do_not_change_what_it_finds(monkeypatch, rows):
    monkeypatch.setattr(reference, "HEAD_BYTES", rows * 24 * 4)
    check("reference", *case(33, 100, 24, seed=0, scale=40.0))


@each_backend("label_losses")
@pytest.mark.parametrize("count", [1, 16, 40])
def test_errors_are_at_most_those_of_cross_entropy(backend, count):
    hidden, weight, labels = case(count, 4000, 576, seed=3, scale=3.0)
    with dispatch.use(backend):
        found = ops.label_losses(hidden, weight, labels)
    leaf = hidden.clone().requires_grad_()
    losses = F.cross_entropy(leaf @ weight.T, labels, reduction="none")
    torchs = losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]
    for ours, theirs, expected in zip(found, torchs, whole(hidden, weight, labels)):
        # Of few losses an error is one rounding or another: 3 roundings are as good as none.
        assert error_ratio(ours, expected) < max(1.25 * error_ratio(theirs, expected), 3 * 2**-24)


@each_backend("label_losses")
@pytest.mark.parametrize("label", [0, 150, 399])
def test_an_all_but_certain_label_loses_the_logarithm_alone(backend, label):
    """Logits of 1,000 and 980: the loss is e^-20, far below the rounding of either, and of their shares' sum."""
    weight = torch.zeros(400, 3)
    weight[label, 0], weight[200, 0] = 1000, 980
    with dispatch.use(backend):
        losses, gradient = ops.label_losses(torch.eye(3)[:1], weight, torch.tensor([label]))
        (unlikely,), _ = ops.label_losses(torch.eye(3)[:1], weight, torch.tensor([7]))
    assert 0 <= losses.item() < 1e-7 and gradient.abs().max() < 1e-2
    assert unlikely == 1000
    if backend == "native":  # which keeps what the additions to a share of 1 round off
        assert losses.item() == pytest.approx(math.exp(-20), rel=1e-4)


@each_backend("label_losses")
def test_logits_that_only_their_difference_keeps_finite(backend):
    hidden = torch.tensor([[0.0, 1e4, -1e4, 3.0, 1e4, 9999.0], [500.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    arguments = hidden, torch.eye(6), torch.tensor([5, 1])
    with dispatch.use(backend):
        losses, gradient = ops.label_losses(*arguments)
    assert_close(losses, whole(*arguments)[0])
    assert_close(gradient, whole(*arguments)[1])


@each_backend("label_losses")
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(backend, odd):
    hidden, weight, labels = case(20, 300, 40, seed=4)
    with dispatch.use(backend):
        losses, gradient = ops.label_losses(hidden, weight, labels)
        hidden[7, 3] = odd
        spoilt, spoilt_gradient = ops.label_losses(hidden, weight, labels)
    others = torch.arange(20) != 7
    assert not spoilt[7].isfinite() and not spoilt_gradient[7].isfinite().all()
    assert same_bits(losses[others], spoilt[others]) and same_bits(gradient[others], spoilt_gradient[others])


@each_backend("label_losses")
def test_a_vocabulary_entry_that_is_impossible(backend):
    """A logit of -inf, before any finite one, and overflown from finite numbers."""
    hidden, weight, _ = case(3, 50, 8, seed=5)
    hidden[:, 0] = 3e38
    weight[:, 0], weight[:20, 0] = 0, -3e38
    with dispatch.use(backend):
        losses, gradient = ops.label_losses(hidden, weight, torch.tensor([30, 40, 49]))
    rest = case(3, 50, 8, seed=5)[0][:, 1:], weight[20:, 1:], torch.tensor([10, 20, 29])
    assert_close(losses, whole(*rest)[0])
    assert_close(gradient[:, 1:], whole(*rest)[1])


@each_backend("label_losses")
def test_nothing_to_lose(backend):
    with dispatch.use(backend):
        losses, gradient = ops.label_losses(torch.ones(0, 5), torch.ones(7, 5), torch.zeros(0, dtype=torch.int64))
        assert losses.shape == (0,) and gradient.shape == (0, 5)
        losses, gradient = ops.label_losses(torch.ones(2, 0), torch.ones(7, 0), torch.zeros(2, dtype=torch.int64))
    assert_close(losses, torch.full((2,), 7.0).double().log().numpy())
    assert gradient.shape == (2, 0)


@each_backend("label_losses")
def test_views(backend):
    hidden, weight, labels = normal(40, 18, seed=6)[1::2, 3:12], normal(9, 130, seed=7).T, torch.arange(40)[::2]
    check(backend, hidden, weight, labels)
    check(backend, hidden, normal(130, 20, seed=8)[::2, 5:14], labels)


@pytest.mark.skipif(not DEVICE.startswith("cpu"), reason="a GPU would wait to see labels")
@each_backend("label_losses")
@pytest.mark.parametrize("label", [-1, -100, 7, 2**40])
def test_a_label_out_of_range_is_named(backend, label):
    with dispatch.use(backend), pytest.raises(RuntimeError, match=f"labels must be rows of weight, 0 to 6, .*{label}"):
        ops.label_losses(torch.ones(2, 5), torch.ones(7, 5), torch.tensor([0, label]))


@each_backend("label_losses")
def test_threads_share_the_vocabulary(backend):
    arguments = case(5, 3001, 64, seed=9)
    check(backend, *arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(backend, *arguments)
        with dispatch.use(backend):
            runs = [ops.label_losses(*arguments) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(same_bits(a, b) for a, b in zip(runs[0], run))


@each_backend("label_losses")
def test_losses_are_differentiable_by_the_hidden_states(backend):
    hidden, weight, labels = case(6, 90, 24, seed=10)
    scale = torch.rand(6)
    with dispatch.use(backend):
        leaf = hidden.clone().requires_grad_()
        losses, gradient = ops.label_losses(leaf, weight, labels)
        (found,) = torch.autograd.grad((losses * scale).sum(), leaf)
    assert not gradient.requires_grad
    assert torch.equal(found, scale[:, None] * gradient)


def test_gradcheck():
    hidden, weight, labels = case(3, 20, 6, seed=11, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.label_losses(x, weight, labels)[0], hidden.requires_grad_())


def test_refuses_to_lose_a_gradient():
    with pytest.raises(RuntimeError, match="label_losses records no gradient of the weight"):
        ops.label_losses(torch.ones(1, 2), torch.ones(3, 2, requires_grad=True), torch.tensor([0]))


def test_many_labels_of_bfloat16_go_to_the_faster_backend():
    few, many = (case(count, 30, 8, seed=12, dtype=torch.bfloat16) for count in (16, 17))
    native = next(row for row in dispatch.TABLE["label_losses"] if row.backend == "native")
    if native.absent("cpu"):
        pytest.skip("the native library is not built")
    assert native.pays(*few)
    wide = torch.ops.corrigenda_native.cpu_instructions() in ("amx", "avx512")
    assert native.pays(*many) == (not wide)
    assert native.pays(*(tensor.float() for tensor in many[:2]), many[2])


@pytest.mark.parametrize(
    "name, change",
    [
        ("hidden", {"hidden": torch.ones(3)}),
        ("weight", {"weight": torch.ones(7, 4)}),
        ("labels", {"labels": torch.zeros(3, dtype=torch.int64)}),
        ("labels", {"labels": torch.zeros(2, dtype=torch.int32)}),
    ],
)
def test_a_wrong_argument_is_named(name, change):
    arguments = {
        "hidden": torch.ones(2, 5),
        "weight": torch.ones(7, 5),
        "labels": torch.zeros(2, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=f"^{name} must"):
        ops.label_losses(**arguments)
