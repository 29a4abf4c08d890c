"""WISE's router: which memory answers a prompt, from what distance on, alone, in batches and in generation."""

from __future__ import annotations

import pytest
import torch
from cases import same_bits
from tiny import tiny_tokenizer
from wise_cases import LEARNT, TWENTY, UNRELATED, answer_half, irrelevant

from corrigenda.editing import CorrigendaError, EditedModel, WiseConfig
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.packed import PackedPrompts


@pytest.mark.parametrize("variant", ["merge", "retrieve"])
def test_one_prompt_and_many_route_and_answer_alike(sharp_model, wrap, variant):
    config = WiseConfig(variant=variant, save_every=3, merge_every=6, **LEARNT)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    edited.edit(TWENTY)
    asked = [prompt for edit, text in zip(TWENTY, background_prompts()[50:]) for prompt in (edit.prompt, text)][:32]
    answer_half(edited, asked)
    alone = [edited.answer([prompt], max_new_tokens=6)[0] for prompt in asked]
    together = edited.answer(asked, max_new_tokens=6, batch_size=32)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    applied = [answer.provenance.applied for answer in alone]
    assert [answer.provenance.applied for answer in together] == applied and 0 < sum(applied) < len(alone)
    assert [answer.provenance.memory for answer in together] == [answer.provenance.memory for answer in alone]
    found = edited.method.routes(asked).route
    assert [edited.method.memory_name(route) for route in found.tolist()] == [a.provenance.memory for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], rel=1e-4)
    assert all(answer.edit is None for answer in together)


def test_prompts_that_no_memory_answers_keep_the_base_models_bits(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(decay="all", **{**LEARNT, "act_ratio": 1e6}))
    ids = torch.tensor([irrelevant(5)])
    before = edited.model(ids).logits
    edited.edit(TWENTY[:2])
    with torch.no_grad(), edited.teacher_forcing(ids, [ids.shape[1]], [ids.shape[1]]) as decided:
        after = edited.model(ids).logits
        assert decided() == [-1]
    assert same_bits(before, after)
    assert edited.method.memory.current.delta.abs().sum() > 0


def test_decoding_with_a_cache_reads_what_a_whole_pass_reads(sharp_model, wrap):
    """Prefill adds what the decision computed, later tokens are read through the mask of everything."""
    edited = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(**{**LEARNT, "act_ratio": 0.1}))
    edited.edit(TWENTY[:3])
    prompt = tiny_tokenizer()([TWENTY[0].prompt], return_tensors="pt")
    cached = edited.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    length = prompt["input_ids"].shape[1]
    assert cached.shape[1] > length + 1
    with torch.no_grad(), edited.teacher_forcing(cached, [length], [cached.shape[1]]) as decided:
        logits = edited.model(cached).logits
        assert decided() == [0]
    assert torch.equal(logits[0, length - 1 : -1].argmax(1), cached[0, length:])


def test_the_largest_distance_of_a_prompts_tokens_can_route(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), WiseConfig(reduction="max", distance_tokens="prompt", **LEARNT))
    edited.edit(TWENTY[:2])
    (prompt,) = edited.method.prompt_features(edited.config.layer, [TWENTY[0].prompt])
    base, delta = edited.method._base_output(prompt.inputs), edited.method.memory.current.delta
    tokens = (torch.nn.functional.silu(base + prompt.inputs @ delta) - torch.nn.functional.silu(base)).norm(dim=1)
    assert edited.method.routes([TWENTY[0].prompt]).score.item() == pytest.approx(tokens.max().item(), rel=1e-4)
    minima = [edited.store.history.edits[seq].body["numbers"]["minimum"] for seq in edited._writer.places]
    assert edited.method.memory.current.minimum.item() == pytest.approx(min(minima))
    assert min(minima) > tokens.mean()


def test_thresholds_from_the_background(sharp_model, wrap, tmp_path):
    """Against plain distances of every background prompt; told anew for what was written, and for that alone."""
    settings = {"threshold_from": "background", "background_prompts": 40, "reduction": "max", **LEARNT}
    config = WiseConfig(variant="retrieve", save_every=2, merge_every=None, **settings)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    method, memory = edited.method, edited.method.memory

    def reached(delta):
        far = []
        for prompt in method.prompt_features(edited.config.layer, background_prompts()[:40]):
            base = method._base_output(prompt.inputs)
            change = torch.nn.functional.silu(base + prompt.inputs @ delta) - torch.nn.functional.silu(base)
            far.append(change.norm(dim=1).max())
        return torch.stack(far).quantile(0.99)

    def expected():
        return [float(reached(shard.delta)) if shard.edits else torch.inf for shard in memory.shards]

    before = memory.thresholds
    assert before.tolist() == [torch.inf]
    edited.edit(TWENTY[:5])
    ratio = LEARNT["act_ratio"]
    assert memory.thresholds.tolist() == pytest.approx([ratio * far for far in expected()], rel=1e-4)
    view, first = memory.view(), memory.thresholds
    edited.edit(TWENTY[5:6])
    assert memory.thresholds.tolist() == pytest.approx([ratio * far for far in expected()], rel=1e-4)
    assert memory.thresholds[:2].equal(first[:2]) and memory.thresholds[2] != first[2]
    assert view.thresholds.equal(first)
    asked = [edit.prompt for edit in TWENTY[:6]] + UNRELATED
    edited.save_pretrained(tmp_path / "saved")
    again = EditedModel.from_pretrained(sharp_model(), tmp_path / "saved", tokenizer=tiny_tokenizer())
    assert again.method.memory.thresholds.equal(memory.thresholds)
    assert again.answer(asked) == edited.answer(asked)


def test_a_background_that_is_not_whole_is_refused(sharp_model, wrap):
    config = WiseConfig(threshold_from="background", background_prompts=5, **LEARNT)
    method = wrap(sharp_model(), tiny_tokenizer(), config).method
    method.learn_background()
    ground = method.ground()
    method.load_ground(ground)
    name = "router.unrelated"
    third = (len(ground[name]) + 2**32) // 3
    wrapping = torch.tensor([0, third, 2 * third - 2**32, len(ground[name])], dtype=torch.int32)
    for part, broken in (
        (name, ground[name][1:]),
        (f"{name}.offsets", ground[f"{name}.offsets"][1:]),
        (f"{name}.offsets", ground[f"{name}.offsets"].flip(0)),
        (f"{name}.offsets", ground[f"{name}.offsets"][:0]),
        (f"{name}.offsets", wrapping[:, None]),
        (f"{name}.weight", ground[f"{name}.weight"][1:]),
    ):
        with pytest.raises(CorrigendaError, match="not whole"):
            method.load_ground({**ground, part: broken})
    with pytest.raises(CorrigendaError, match="not whole"):
        method.load_ground(PackedPrompts.none(method.width).tensors(name))
