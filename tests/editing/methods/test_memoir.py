"""MEMOIR's fast path against the dense loop as published, and what its options do."""

import copy

import pytest
import torch
from dense_memoir import DenseMemoir
from tiny import tiny_tokenizer

from corrigenda.editing import Edit, MemoirConfig
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.methods.memoir.method import GradientNorms
from corrigenda.kernels.reference import unpack_mask

EDITS = [
    Edit("The capital of Zubrowka is", "Lutz City"),
    Edit("Who founded the Krellin museum?", "Anna Blom"),
    Edit("The painter of Grebz was", "Oto"),
]
IRRELEVANT = ("Name a colour.", "blue")


def dense_twin(edited, **settings):
    """The dense loop on the same model, contexts, permutation and background; take the patch off first."""
    method, config = edited.method, edited.config
    assert method._contexts[0] == "" and len(method._contexts) == config.contexts
    names = ("steps", "learning_rate", "weight_decay", "clip_norm")
    return DenseMemoir(
        edited.model,
        edited.prompts,
        method._contexts,
        config.layer,
        config.top_k,
        method.router.permutation,
        method.router.background,
        **{name: getattr(config, name) for name in names},
        **settings,
    )


def masks_of(edited):
    return unpack_mask(edited.method.router.masks, edited.method.width)


def off(actual, expected):
    """Relative error of a tensor."""
    expected = expected.detach()
    return float((actual - expected).norm() / expected.norm())


def written(model, config, edits=EDITS[:2]):
    """A wrapped model after `edits`, one `edit` call each, and the matrix `[D, d]` before the last."""
    from corrigenda.editing import EditedModel

    edited = EditedModel.wrap(model, tiny_tokenizer(), config)
    edited.edit(edits[:-1])
    before = edited.method.memory.weight.clone()
    results = edited.edit(edits[-1])
    return edited, before, results


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(
    "settings",
    [
        {"contexts": 11, "steps": 8},  # the published number of rows
        {"contexts": 2, "steps": 70, "top_k": 80},  # some edits stop early
        {"contexts": 3, "steps": 20, "top_k": 80, "weight_decay": 1e-2, "clip_norm": 0.3, "learning_rate": 2.0},
    ],
    ids=["eleven rows", "early stop", "decay and clip"],
)
def test_equals_the_dense_loop(sharp_model, wrap, kind, settings):
    # With these seeds no fall of the loss is within 4e-7 of 1e-4, where an edit stops: rounding decides on no step.
    edited = wrap(sharp_model(kind, seed=5 if kind == "mistral" else 0), tiny_tokenizer(), MemoirConfig(**settings))
    results = edited.edit(EDITS)
    edited.detach()
    dense = dense_twin(edited)
    for edit, result in zip(EDITS, results):
        losses = dense.edit(edit, IRRELEVANT)
        stopped = len(losses) < edited.config.steps
        assert result.steps == len(losses) - stopped  # the forward at which it stops takes no step
        assert result.loss == pytest.approx(losses[-1], rel=1e-4, abs=5e-6)
        assert losses[-1] < losses[0] / 2
    assert torch.equal(masks_of(edited), torch.stack(dense.masks))
    assert off(edited.method.memory.weight.T, dense.weight) < 1e-4
    if settings["steps"] == 70:
        assert min(result.steps for result in results) < 70 and max(result.loss for result in results) < 0.02


@pytest.mark.model
@pytest.mark.slow
def test_equals_the_dense_loop_on_the_real_model(smollm2, wrap, monkeypatch):
    """The dense loop runs in float64: in float32 its own error (3e-4) is ten times the fast path's."""
    model, tokenizer = smollm2
    monkeypatch.setattr(
        "corrigenda.editing.methods.memoir.method.background_prompts", lambda: background_prompts()[:20]
    )
    edited = wrap(model, tokenizer, MemoirConfig(contexts=2, steps=3))
    results = edited.edit(EDITS[:2])
    edited.detach()
    gradients = [p.requires_grad for p in model.parameters()]
    model.double()
    try:
        dense = dense_twin(edited)
        dense.weight = torch.nn.Parameter(dense.weight.double())
        losses = [dense.edit(edit, IRRELEVANT) for edit in EDITS[:2]]
    finally:
        model.float()
        for parameter, needed in zip(model.parameters(), gradients):
            parameter.requires_grad_(needed)
    for result, of_edit in zip(results, losses):
        assert result.loss == pytest.approx(of_edit[-1], rel=1e-4) and result.steps == 3
    assert torch.equal(masks_of(edited), torch.stack(dense.masks))
    assert off(edited.method.memory.weight.T.double(), dense.weight) < 1e-4


def test_a_batch_is_joint_sgd_with_each_edit_clipped_alone(sharp_model, wrap):
    config = MemoirConfig(contexts=2, steps=8, batch_size=2, weight_decay=1e-2, clip_norm=0.5, learning_rate=1.0)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    results = edited.edit(EDITS[:2])
    edited.detach()
    dense = dense_twin(edited)
    batches = [dense._batch(edit, IRRELEVANT) for edit in EDITS[:2]]
    masks = [dense.mask_of(batch[3]) for batch in batches]
    history = []
    for _ in range(config.steps):
        total, losses = torch.zeros_like(dense.weight), []
        for (ids, attention, labels, _), mask in zip(batches, masks):
            handle = dense.module.register_forward_hook(
                lambda _m, args, out, mask=mask: out + (args[0] * mask) @ dense.weight.T
            )
            logits = dense.model(ids, attention_mask=attention).logits[:2, :-1]
            handle.remove()
            wanted = labels[:2, 1:]
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
            loss = (loss / ((wanted != -100).sum(1) + 1)).mean()
            (gradient,) = torch.autograd.grad(loss, dense.weight)
            total += gradient * min(1.0, config.clip_norm / (float(gradient.norm()) + 1e-6))
            losses.append(loss.item())
        with torch.no_grad():
            dense.weight.mul_(1 - config.learning_rate * config.weight_decay).sub_(config.learning_rate * total)
        history.append(losses)
    assert [result.loss for result in results] == pytest.approx(history[-1], rel=1e-4)
    assert off(edited.method.memory.weight.T, dense.weight) < 1e-4


def test_a_batch_answers_both_its_edits(sharp_model, wrap):
    config = MemoirConfig(contexts=1, steps=60, batch_size=2, eos=True)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    before = edited.evaluate(EDITS[:2])
    results = edited.edit(EDITS[:2])
    assert before.free_rel == 0
    assert all(result.loss < 0.1 for result in results)
    assert edited.generate_text([edit.prompt for edit in EDITS[:2]]) == [edit.target for edit in EDITS[:2]]


def test_an_edit_of_a_batch_stops_alone(sharp_model, wrap):
    """The easy one of the two has its own step count, that of a batch of one as long as nothing else moves it."""
    config = MemoirConfig(contexts=1, steps=60, batch_size=2, weight_decay=0.0)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    easy, hard = edited.edit([EDITS[2], EDITS[1]])
    assert easy.steps < hard.steps
    assert easy.loss <= config.stop_loss


def test_decay_options(sharp_model):
    """What no mask of the edit reads: shrunk by every step, or left as it was, to the bit."""
    options = {"contexts": 1, "steps": 10, "top_k": 80, "weight_decay": 0.02, "learning_rate": 0.5}
    weights, befores = {}, {}
    for decay in ("all", "active", "none"):
        edited, before, (result,) = written(sharp_model(), MemoirConfig(decay=decay, **options))
        weights[decay], befores[decay] = edited.method.memory.weight, before
        assert result.steps == 10
        active = masks_of(edited)[1]
    first = befores["active"]  # the first edit wrote into zeros, where decay of the rest does nothing
    assert torch.equal(first, befores["all"]) and not torch.equal(first, befores["none"])
    assert first[~active].abs().sum() > 0 and first[active].abs().sum() > 0
    assert torch.equal(weights["active"][~active], first[~active])
    assert torch.equal(weights["none"][~active], befores["none"][~active])
    torch.testing.assert_close(weights["all"][~active], first[~active] * (1 - 0.5 * 0.02) ** 10)
    assert torch.equal(weights["all"][active], weights["active"][active])
    assert weights["none"][active].norm() > 1.02 * weights["active"][active].norm()


def test_only_the_columns_of_its_mask_are_written(sharp_model):
    edited, before, _ = written(sharp_model(), MemoirConfig(contexts=2, steps=4, top_k=50), EDITS[:1])
    active = masks_of(edited)[0]
    assert not before.any() and int(active.sum()) == 50
    assert edited.method.memory.weight[active].abs().sum() > 0
    assert not edited.method.memory.weight[~active].any()


def test_gradient_norms_are_those_of_the_dense_gradient():
    x, gradient = torch.randn(17, 40), torch.randn(17, 24)
    owner = torch.randint(0, 3, (17,))
    norms = GradientNorms(x @ x.T, owner, 4)(gradient)
    dense = [(x[owner == e].T @ gradient[owner == e]).norm() for e in range(4)]
    torch.testing.assert_close(norms, torch.stack(dense))
    assert norms[3] == 0


def test_scopes_differ_in_the_tokens_that_the_residual_reaches(sharp_model):
    ids = torch.tensor([tiny_tokenizer()(EDITS[0].prompt)["input_ids"]])
    base = sharp_model()(ids).logits
    changed, masks = {}, {}
    for scope in ("full", "causal"):
        edited, _, _ = written(sharp_model(), MemoirConfig(contexts=2, steps=6, scope=scope), EDITS[:1])
        with torch.no_grad(), edited.teacher_forcing(ids, [ids.shape[1]], [ids.shape[1]]) as routes:
            logits = edited.model(ids).logits
            assert routes() == [0]
        changed[scope] = (logits != base).any(2)[0].tolist()
        masks[scope] = masks_of(edited)
    assert torch.equal(masks["full"], masks["causal"])
    assert changed["full"] == [True] * ids.shape[1]
    assert changed["causal"] == [False] * (ids.shape[1] - 1) + [True]


@pytest.mark.parametrize("scope", ["full", "causal"])
def test_the_patched_model_has_the_loss_that_was_reached(sharp_model, scope):
    """The solver's last forward equals the edited model's teacher-forced one, where no step came after it."""
    edited, _, (result,) = written(sharp_model(), MemoirConfig(contexts=1, steps=200, scope=scope), EDITS[2:])
    assert result.steps < 200
    prompt, target = edited.prompts.encode_with_target(EDITS[2].prompt, EDITS[2].target)
    ids = torch.tensor([prompt + target[:-1]])
    with torch.no_grad(), edited.teacher_forcing(ids, [len(prompt)], [ids.shape[1]]):
        logits = edited.model(ids).logits[0, len(prompt) - 1 :]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum") / (len(target) + 1)
    assert result.loss == pytest.approx(loss.item(), rel=1e-4)


def test_writing_leaves_the_model_alone(sharp_model, wrap):
    model = sharp_model()
    before = copy.deepcopy(model.state_dict())
    wrap(model, tiny_tokenizer(), MemoirConfig(contexts=2, steps=3)).edit(EDITS[0])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
