"""WISE's fast path against the dense loop as published; its memories, its routing, and what its options do."""

import copy
from types import SimpleNamespace

import pytest
import torch
from cases import same_bits
from dense_wise import DenseWise
from tiny import tiny_tokenizer
from wise_cases import LEARNT, TWENTY, UNRELATED, answer_half, irrelevant

from corrigenda.editing import CorrigendaError, EditedModel, WiseConfig
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.memories.random_bits import random_bits
from corrigenda.editing.methods.wise.margin import Margin
from corrigenda.kernels.reference import unpack_mask


def dense_twin(edited):
    """The dense loop in float64 on the same model, contexts and masks; take the patch off first."""
    method = edited.method

    def mask_of(shard):
        config = edited.config
        if not config.disjoint_masks:
            return below(shard, config.mask_ratio)
        together = config.merge_every // config.save_every
        part = shard % together / together
        upper = min(part + config.mask_ratio, (shard % together + 1) / together)
        return below(shard // together, upper) & ~below(shard // together, part)

    def below(stream, rate):
        bits = random_bits(edited.config.seed, stream, method.width, method.out_width, rate, "cpu")
        return unpack_mask(bits, method.out_width)

    sparing = torch.linalg.inv(dense_second_moment(method)) if edited.config.spared else None
    model = copy.deepcopy(edited.detach()).double()
    return DenseWise(model, edited.prompts, method._contexts, edited.config.layer, edited.config, mask_of, sparing)


def dense_second_moment(method):
    """I + spared C / mean(diag C), float64, for the second moment C of background inputs."""
    config = method.config
    found = method.prompt_features(config.layer, background_prompts()[: config.background_prompts])
    used = torch.cat([prompt.inputs for prompt in found]).double()
    second = used.T @ used / len(used)
    return torch.eye(method.width).double() + config.spared * second / second.diagonal().mean()


def off(actual, expected):
    """Relative error of a tensor."""
    return float((actual - expected.detach()).norm() / expected.detach().norm())


def assert_same(one, other):
    """The same tensors, bit for bit."""
    assert one.keys() == other.keys() and all(same_bits(tensor, other[name]) for name, tensor in one.items())


def decision_of(edited, prompt):
    """Which memory answers a prompt, -1 for none, and the largest distance."""
    edited.answer([prompt], max_new_tokens=1)
    return int(edited.context.decision.route), float(edited.context.decision.score)


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "merge"},
        {"variant": "retrieve", "decay": "all", "weight_decay": 1e-2},
        {"variant": "retrieve", "distance": "raw", "decay": "masked", "weight_decay": 1e-2},
        {"variant": "merge", "disjoint_masks": True, "mask_ratio": 1.0, "merge_density": 1.0, "merge_scale": 1.5},
        {"variant": "retrieve", "disjoint_masks": True, "merge_scale": 2.0},
        {"variant": "merge", **{"margin_weight": 0.3, "spared": 3.0, "background_prompts": 40, "mask_ratio": 1.0}}
        | {"distance_tokens": "prompt", "reduction": "max", "merge_scale": 2.0},
    ],
    ids=[
        *("merge", "retrieve, decay of all", "retrieve, raw, masked decay", "merge, disjoint", "retrieve, disjoint"),
        "merge, as tuned for SmolLM2",
    ],
)
def test_equals_the_dense_loop_over_shards_and_merges(sharp_model, wrap, settings):
    """Twenty edits: shards of three, two of them merged three times, and two edits in the shard in use."""
    config = WiseConfig(save_every=3, merge_every=6, norm_constraint=10.0, **{**LEARNT, **settings})
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    config, results = edited.config, edited.edit(TWENTY)
    asked = [edit.prompt for edit in TWENTY[::3]] + UNRELATED
    answer_half(edited, asked)
    decided = [decision_of(edited, prompt) for prompt in asked]
    dense = dense_twin(edited)
    for number, (edit, result) in enumerate(zip(TWENTY, results)):
        losses = dense.edit(edit, irrelevant(number))
        assert result.loss == pytest.approx(losses[-1], rel=1e-3, abs=1e-4)
        assert result.steps == len(losses)
    memory = edited.method.memory
    if config.variant == "merge":
        weights = [dense.merged, dense.side]
        assert float(memory.thresholds[0]) == pytest.approx(config.act_ratio * dense.minimum, rel=1e-3)
    else:
        weights = [weight for weight, _ in dense.finished] + [dense.side]
        minima = [minimum for _, minimum in dense.finished] + [dense.minimum]
        assert memory.thresholds.tolist() == pytest.approx([config.act_ratio * m for m in minima], rel=1e-3)
    assert [(shard.first, shard.end) for shard in memory.shards][-1] == (18, 20)
    for shard, weight in zip(memory.shards, weights, strict=True):
        assert off(shard.delta.T.double(), weight - dense.frozen) < 2e-3
    for prompt, (route, distance) in zip(asked, decided):
        answer, far = dense.route(tiny_tokenizer()(prompt)["input_ids"])
        assert distance == pytest.approx(max(far.values()) if route < 0 else far[id(answer)], rel=1e-3)
        assert answer is (None if route < 0 else weights[route])
    assert len({route for route, _ in decided}) > 1 and -1 in {route for route, _ in decided}


def test_the_clamp_is_the_dense_loops(sharp_model, wrap):
    """One step an edit is clamped alike; of several, only each edit's own steps and the limit are."""
    for steps, edits in ((1, 3), (6, 1)):
        config = WiseConfig(norm_constraint=0.01, decay="all", weight_decay=1e-2, **{**LEARNT, "steps": steps})
        edited = wrap(sharp_model("mistral", seed=3), tiny_tokenizer(), config)
        results = edited.edit(TWENTY[:edits])
        dense = dense_twin(edited)
        for number, (edit, result) in enumerate(zip(TWENTY, results)):
            assert result.loss == pytest.approx(dense.edit(edit, irrelevant(number))[-1], rel=1e-3)
        delta = edited.method.memory.current.delta
        assert off(delta.T.double(), dense.side - dense.frozen) < (1e-4 if steps == 1 else 0.2)
        assert (delta.abs() == 0.01).float().mean() > 0.05 and delta.abs().max() == 0.01


@pytest.mark.parametrize("together", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_disjoint_masks_part_the_entries(sharp_model, wrap, together, share):
    """Of shards that are merged together every entry is one's, or at most one's where the masks are narrower."""
    config = WiseConfig(save_every=1, merge_every=together, disjoint_masks=True, mask_ratio=share, **LEARNT)
    method = wrap(sharp_model(), tiny_tokenizer(), config).method
    for first in (0, together):
        masks = [unpack_mask(method._gradient_mask(first + part), method.out_width) for part in range(together)]
        taken = torch.stack(masks).sum(0)
        assert taken.max() == 1 and (share < 1 or taken.min() == 1)
        for mask in masks:
            assert mask.float().mean().item() == pytest.approx(min(share, 1 / together), rel=0.1)
    assert not same_bits(method._gradient_mask(0), method._gradient_mask(together)) or share == together == 1


def test_merging_disjoint_shards_keeps_every_entry(sharp_model, wrap):
    config = WiseConfig(save_every=2, merge_every=4, disjoint_masks=True, mask_ratio=1.0, merge_density=1.0, **LEARNT)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    apart, memory = [], edited.method.memory
    merge = memory.merge
    memory.merge = lambda *how: (apart.extend(shard.delta for shard in memory.finished), merge(*how))
    edited.edit(TWENTY[:4])
    first, second = apart[-2:]
    assert first.any() and second.any() and not (first * second).any()
    assert same_bits(memory.finished[0].delta, first + second)


def test_a_merge_scale_is_not_taken_twice(sharp_model, wrap):
    """Merged once and again, beside shards that are empty, a memory stays what it was."""
    memory = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(**LEARNT)).method.memory
    memory.writable().normal_()
    own = memory.current.delta.clone()
    memory.count_in([1.0], [torch.zeros(0)])
    memory.finish(1)
    for number in (2, 3):
        memory.merge([1.0] if number == 2 else [0.6, 0.4], "sign", 1.0, 0, 2.0)
        torch.testing.assert_close(memory.finished[0].delta, 2 * own)
        memory.count_in([1.0], [torch.zeros(0)])
        memory.finish(number)


@pytest.mark.parametrize(
    "settings",
    [{"variant": "merge"}, {"variant": "retrieve"}, {"variant": "merge", "disjoint_masks": True, "merge_scale": 1.5}],
    ids=["merge", "retrieve", "merge, disjoint"],
)
def test_undo_over_shards_is_a_rebuild(sharp_model, wrap, tmp_path, settings):
    """Edits out of finished, merged and unfinished shards; redo gives the bits back, undo of all the base model's."""
    config = WiseConfig(save_every=2, merge_every=4, decay="all", weight_decay=1e-3, **{**LEARNT, **settings})
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    ids = torch.tensor([irrelevant(5)])
    before = edited.model(ids).logits
    edited.edit(TWENTY[:7])
    whole, names = edited.method.state(), [edit.id for edit in edited.edits]

    def rebuilt():
        edited.save_pretrained(folder := tmp_path / str(len(list(tmp_path.iterdir()))))
        again = EditedModel.from_pretrained(sharp_model(), folder, tokenizer=tiny_tokenizer())
        assert_same(again.method.state(), edited.method.state())
        again.detach()

    rebuilt()
    for out in (names[:1], names[1:2], names[3:4], names[4:5], names[:2], names[2:6]):
        edited.undo(out)
        rebuilt()
        edited.redo(out)
        assert_same(edited.method.state(), whole)
    edited.undo(names[3])
    edited.edit(TWENTY[7:9])
    edited.redo(names[3])
    rebuilt()
    edited.undo([edit.id for edit in edited.edits])
    with torch.no_grad(), edited.teacher_forcing(ids, [ids.shape[1]], [ids.shape[1]]):
        assert same_bits(before, edited.model(ids).logits)
    assert not edited.method.memory.current.delta.any() and len(edited.method.memory.shards) == 1


def test_a_shard_keeps_its_mask_and_ends_where_it_ended(sharp_model, wrap):
    config = WiseConfig(save_every=2, merge_every=None, **{**LEARNT, "steps": 2})
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    edited.edit(TWENTY[:5])
    names = [edit.id for edit in edited.edits]

    def shards():
        return [(shard.number, shard.first, shard.end) for shard in edited.method.memory.shards]

    def written(shard):
        bits = random_bits(config.seed, shard.number, 160, 64, edited.config.mask_ratio, "cpu")
        return bool((shard.delta != 0).any()) and not (shard.delta != 0)[~unpack_mask(bits, 64)].any()

    assert shards() == [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    assert all(map(written, edited.method.memory.shards))
    edited.undo(names[0])
    assert shards() == [(0, 0, 1), (1, 1, 3), (2, 3, 4)]
    edited.undo(names[1:4])
    assert shards() == [(2, 0, 1)] and written(edited.method.memory.current)
    edited.undo(names[4])
    edited.redo(names[2:4])
    assert shards() == [(1, 0, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "merge"},
        {"variant": "retrieve", "replay": True},
        {"variant": "merge", "disjoint_masks": True, "mask_ratio": 0.7, "merge_scale": 1.5},
    ],
    ids=["merge", "retrieve", "merge, disjoint"],
)
def test_saved_memories_answer_and_go_on_alike(sharp_model, wrap, tmp_path, settings):
    config = WiseConfig(save_every=2, merge_every=4, **{**LEARNT, **settings})
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    edited.edit(TWENTY[:7])
    edited.save_pretrained(tmp_path / "saved")
    again = EditedModel.from_pretrained(sharp_model(), tmp_path / "saved", tokenizer=tiny_tokenizer())
    assert again.config == edited.config
    asked = [edit.prompt for edit in TWENTY[:7]] + UNRELATED
    assert again.answer(asked) == edited.answer(asked)
    edited.edit(TWENTY[7:9])
    again.edit(TWENTY[7:9])
    for one, other in zip(edited.method.memory.shards, again.method.memory.shards, strict=True):
        assert same_bits(one.delta, other.delta) and one.first == other.first and one.minimum == other.minimum


def test_a_batch_keeps_to_its_shards(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(batch_size=5, save_every=3, merge_every=None, **LEARNT))
    results = edited.edit(TWENTY[:8])
    assert len(results) == 8
    assert [(shard.first, shard.end) for shard in edited.method.memory.shards] == [(0, 3), (3, 6), (6, 8)]


def test_the_first_edit_of_a_batch_of_one_is_that_of_the_published_algorithm(sharp_model, wrap):
    """A batch is joint SGD: with its other edit's part gone after one step, what is left is the first edit's."""
    config = WiseConfig(batch_size=2, **{**LEARNT, "steps": 1})
    both = wrap(sharp_model(), tiny_tokenizer(), config)
    both.edit(TWENTY[:2])
    deltas = []
    for edit, number in zip(TWENTY, range(2)):
        one = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(**{**LEARNT, "steps": 1}))
        one.method._irrelevant = one.method._irrelevant[number:]
        one.edit(edit)
        deltas.append(one.method.memory.current.delta)
    torch.testing.assert_close(both.method.memory.current.delta, deltas[0] + deltas[1])


def test_replay_keeps_earlier_edits_out_of_the_shard_in_use(sharp_model, wrap):
    far = {}
    learnt = {**LEARNT, "learning_rate": 0.1, "steps": 12, "beta": 1.0, "gamma": 0.5}
    for replay in (False, True):
        config = WiseConfig(variant="retrieve", save_every=4, merge_every=None, replay=replay, **learnt)
        edited = wrap(sharp_model(), tiny_tokenizer(), config)
        edited.edit(TWENTY[:7])
        found = edited.method.prompt_features(edited.config.layer, [edit.prompt for edit in TWENTY[:4]])
        x = torch.cat([prompt.inputs for prompt in found])
        far[replay] = float((x @ edited.method.memory.current.delta).norm(dim=1).mean())
        assert [len(tokens) > 0 for tokens in edited.method.memory.history] == [replay] * 7
    assert far[True] < 0.9 * far[False]


def test_directions_that_background_prompts_use_are_spared(sharp_model, wrap):
    """The preconditioner against its dense form; and edits then move unrelated prompts less, for their own distance."""
    far = {}
    for spared in (0.0, 30.0):
        config = WiseConfig(spared=spared, background_prompts=40, mask_ratio=1.0, **{**LEARNT, "norm_constraint": 10.0})
        edited = wrap(sharp_model(), tiny_tokenizer(), config)
        method = edited.method
        found = method.prompt_features(edited.config.layer, background_prompts()[:40])
        used, x = torch.cat([prompt.inputs for prompt in found]), found[0].inputs
        expected = torch.linalg.solve(dense_second_moment(method), x.double().T).T
        torch.testing.assert_close(method._written_along(x).double(), expected, rtol=1e-3, atol=1e-5)
        (solved,) = method.solve(TWENTY[:1])
        update = solved.record.tensors["x"].T @ solved.record.tensors["h"]
        own = method.prompt_features(edited.config.layer, [TWENTY[0].prompt])[0].inputs
        far[spared] = float((used @ update).norm(dim=1).mean() / (own @ update).norm(dim=1).mean())
    assert far[30.0] < 0.8 * far[0.0]


def test_the_margin_loss_by_hand(sharp_model, wrap):
    """Two edits of two rows, two irrelevant prompts each, and two replayed edits."""
    config = WiseConfig(variant="retrieve", replay=True, **{**LEARNT, "margin_weight": 0.5, "irrelevant_prompts": 2})
    config = wrap(sharp_model(), tiny_tokenizer(), config).config
    lengths = [2, 3, 1, 2, 3, 2, 1, 2, 3, 1]
    row = torch.arange(10).repeat_interleave(torch.tensor(lengths))
    batch = SimpleNamespace(row=row[:8], owner=row[:8] // 2, edits=2, in_prompt=torch.ones(8, dtype=torch.bool))
    base, side = torch.randn(20, 64), torch.randn(20, 64)
    margin = Margin(base, batch, lengths[4:], True, config)
    loss, gradient, edited = margin(side)
    silu, distances = torch.nn.functional.silu, []
    for b, s in zip(base.split(lengths), side.split(lengths)):
        distances.append(float((silu(b + s) - silu(b)).norm(dim=1).mean()))

    def positive(values):
        above = [value for value in values if value > 0]
        return sum(above) / max(1, len(above))

    for e in (0, 1):
        own, other = distances[2 * e : 2 * e + 2], distances[4 + 2 * e : 6 + 2 * e]
        parts = [d - config.alpha for d in other], [config.beta - d for d in own]
        parts = *parts, [config.gamma - (d - sum(other) / 2) for d in own]
        replayed = positive([config.beta - distances[9]]) + positive([distances[8] - config.alpha])
        assert loss[e].item() == pytest.approx(0.5 * (sum(map(positive, parts)) + replayed / 2), rel=1e-4)
        assert edited[e].item() == pytest.approx(sum(own) / 2, rel=1e-4)
    assert gradient.shape == side.shape
    running = torch.tensor([True, False])
    goes_on = [True, True, False, False, True, True, False, False, True, True]
    assert margin.goes_on(running).tolist() == [goes_on[r] for r in row.tolist()]


@pytest.mark.parametrize(
    "changed",
    [
        {"variant": "both"},
        {"scope": "causal"},
        {"threshold": 0.4},
        {"decay": "some"},
        {"merge": "soup"},
        {"merge_every": 7, "save_every": 3},
        {"mask_ratio": 0.0},
        {"steps": 0},
        {"replay": True},
        {"margin_weight": -1},
        {"spared": "much"},
        {"act_ratio": "0.9"},
        {"act_ratio": float("nan")},
        {"norm_constraint": None},
        {"mask_ratio": "half"},
        {"seed": "x"},
        {"seed": 2**64},
        {"learning_rate": 10**400},
        {"disjoint_masks": 1},
        {"eos": "yes"},
        {"reduction": "sum"},
        {"threshold_from": "both"},
        {"merge_scale": 0},
        {"disjoint_masks": True, "merge_every": None},
    ],
)
def test_settings_that_cannot_be_are_named(changed):
    with pytest.raises(CorrigendaError, match=f"`{next(iter(changed))}` must be"):
        WiseConfig(**changed)


def test_records_that_are_not_wises_are_refused(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(**{**LEARNT, "steps": 1}))
    (solved,) = edited.method.solve(TWENTY[:1])
    assert not edited.method.memory.current.delta.any()
    record = solved.record
    edited.method.check(record)
    for name, value in (("alpha", 2.0), ("minimum", -1.0), ("minimum", 10**400), ("shard", 0.5), ("closes", 2)):
        with pytest.raises(CorrigendaError):
            edited.method.check(record._replace(numbers={**record.numbers, name: value}))
    with pytest.raises(CorrigendaError, match="replayed"):
        edited.method.check(record._replace(fingerprint=torch.tensor([1], dtype=torch.int32)))


def test_a_learning_rate_that_is_too_high_is_named(sharp_model, wrap):
    edited = wrap(
        sharp_model(), tiny_tokenizer(), WiseConfig(**{**LEARNT, "learning_rate": 1e30}, norm_constraint=1e30)
    )
    with pytest.raises(CorrigendaError, match="too high"):
        edited.edit(TWENTY[:1])
    assert edited.edits == []
