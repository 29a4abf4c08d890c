"""Sense finetuning against its formulas in float64: which senses are chosen, what they learn, and what is read."""

from __future__ import annotations

import copy
import random
import zlib

import pytest
import torch
import torch.nn.functional as F
from stores import refusal
from tiny import tiny_backpack, tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.backbone.frozen import Row
from corrigenda.editing.memories.token_vectors import TokenVectors
from corrigenda.editing.methods.sense.config import SenseConfig, TokenVectorConfig
from corrigenda.editing.methods.sense.method import _digits, _numbers

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
]
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def slow_logits(model, ids, added):
    """A Backpack by its definition, position by position; `added[token]` `[senses, d]` is added to a token's senses."""
    inner, count = model.model, model.config.senses
    states = []
    handle = inner.norm.register_forward_hook(lambda _m, _a, out: states.append(out[0]))
    inner(torch.tensor([ids]))
    handle.remove()
    asks, answers = (part(states[0]).view(len(ids), count, -1) for part in (inner.asks, inner.answers))
    senses = inner.senses(inner.embed_tokens(torch.tensor(ids))).view(len(ids), count, -1)
    senses = torch.stack([s + added[t] if t in added else s for s, t in zip(senses, ids)])
    rows, weights = [], []
    for t in range(len(ids)):
        alpha = torch.stack(
            [(asks[t, n] @ answers[: t + 1, n].T / asks.shape[-1] ** 0.5).softmax(0) for n in range(count)]
        )
        rows.append(sum(alpha[n] @ senses[: t + 1, n] for n in range(count)))
        weights.append(alpha)
    return model.lm_head(torch.stack(rows)), weights


def test_a_backpack_is_its_definition_also_padded_and_in_generation():
    model = tiny_backpack().double()
    ids = [5, 90, 33, 5, 17]
    expected, _ = slow_logits(model, ids, {})
    torch.testing.assert_close(model(torch.tensor([ids])).logits[0], expected)
    padded, mask = torch.tensor([[0, 0, *ids]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2, 3, 4]])
    found = model(padded, attention_mask=mask, position_ids=positions).logits[0, 2:]
    torch.testing.assert_close(found, expected)
    new = model.generate(padded, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False)[0, 7:]
    for token in new.tolist():
        logits, _ = slow_logits(model, ids, {})
        logits[-1, model.config.eos_token_id] = -torch.inf
        assert int(logits[-1].argmax()) == token
        ids = [*ids, token]


def dense(edited, edits, senses):
    """Vectors `{token: [senses, d]}` after the published training in float64, one edit after the other."""
    method, config = edited.method, edited.config
    model = copy.deepcopy(edited.detach()).double().requires_grad_(False)
    texts, width = method.background(), method.vector_width // senses
    total = {}
    for edit in edits:
        prompt, target = edited.prompts.encode_with_target(edit.prompt, edit.target)
        row = Row(tuple(prompt), tuple(target))
        chosen = method.choose(row)
        tokens, free = chosen.tokens.tolist(), chosen.free.double().view(-1, senses, width)
        vectors = torch.zeros_like(free).requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=config.learning_rate, betas=(0.9, 0.995))
        draw = random.Random(zlib.crc32(f"{config.seed} {edit.prompt} {edit.target}".encode()))

        def with_own(own, total=total, tokens=tokens):
            added = dict(total)
            for place, token in enumerate(tokens):
                added[token] = total.get(token, 0) + own[place]
            return added

        for _ in range(config.steps):
            text = list(draw.choice(texts))
            before = slow_logits(model, text, total)[0].log_softmax(-1).detach()
            added = with_own(vectors * free)
            logits = slow_logits(model, list(row.tokens), added)[0][len(prompt) - 1 :]
            drift = F.kl_div(
                slow_logits(model, text, added)[0].log_softmax(-1), before, log_target=True, reduction="sum"
            )
            optimizer.zero_grad()
            (F.cross_entropy(logits, torch.tensor(target)) + config.kl_weight * drift).backward()
            optimizer.step()
        total = {token: value.detach() for token, value in with_own(vectors * free).items()}
    return total


def test_equals_the_formulas_in_float64(wrap):
    config = SenseConfig(steps=4, most=5, background_weight=1.0, background_prompts=4)
    edited = wrap(tiny_backpack(), tiny_tokenizer(), config)
    edited.edit(EDITS, keep_unsolved=True)
    state = edited.method.memory.state()
    expected = dense(edited, EDITS, 4)
    assert state["memory.tokens"].tolist() == sorted(expected)
    for token, vector in zip(state["memory.tokens"].tolist(), state["memory.vectors"]):
        torch.testing.assert_close(vector.view(4, -1).double(), expected[token], rtol=1e-3, atol=2e-5)


def test_the_senses_are_chosen_by_their_weights_where_it_answers(wrap):
    config = SenseConfig(most=6, background_weight=2.0, background_prompts=3)
    edited = wrap(tiny_backpack(), tiny_tokenizer(), config)
    row, model = Row((5, 90, 33, 5, 17), (44, 2, 61)), tiny_backpack().requires_grad_(False)
    _, weights = slow_logits(model, list(row.tokens), {})
    own, background, positions = {}, {}, 0
    for ids, sums, first in [
        (list(row.tokens), own, 4),
        *((list(t), background, 0) for t in edited.method.background()),
    ]:
        _, weights = slow_logits(model, ids, {})
        positions += len(ids) if sums is background else 0
        for t in range(first, len(ids)):
            for s in range(t + 1):
                for n in range(4):
                    sums[ids[s], n] = sums.get((ids[s], n), 0.0) + float(weights[t][n, s])
    rank = {key: value - 2.0 * background.get(key, 0.0) / positions for key, value in own.items() if value > 0}
    best = sorted(rank, key=rank.get, reverse=True)[:6]
    chosen = edited.method.choose(row)
    found = {
        (token, sense)
        for token, free in zip(chosen.tokens.tolist(), chosen.free.view(-1, 4, 64))
        for sense in range(4)
        if free[sense].all()
    }
    assert found == set(best) and int(chosen.free.sum()) == 6 * 64


def test_the_form_for_llama_learns_and_is_read_as_its_formulas_say(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), TokenVectorConfig(layer=1, steps=4, background_prompts=4))
    edited.edit(EDITS, keep_unsolved=True)
    state = edited.method.memory.state()
    by_token = dict(zip(state["memory.tokens"].tolist(), state["memory.vectors"].double()))
    ids = edited.prompts.encode("Who founded the capital of Zubrowka?")
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = edited.generate(torch.tensor([ids]), **options)
    model = copy.deepcopy(edited.detach()).double()
    sequence = list(ids)

    def hook(_m, _a, out):
        return torch.stack([o + by_token[t] if t in by_token else o for o, t in zip(out[0], sequence)])[None]

    model.model.layers[1].mlp.down_proj.register_forward_hook(hook)
    for step, logits in enumerate(found.logits):
        expected = model(torch.tensor([sequence]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[0].double(), expected, rtol=1e-3, atol=1e-3)
        sequence.append(int(found.sequences[0, len(ids) + step]))
    assert any(t in by_token for t in ids)


def test_learning_lowers_the_loss_and_spares_the_background(wrap):
    losses = {}
    for weight in (0.0, 50.0):
        config = TokenVectorConfig(layer=2, steps=30, kl_weight=weight, background_prompts=4, learning_rate=0.2)
        edited = wrap(tiny_model(), tiny_tokenizer(), config)
        (written,) = edited.edit(EDITS[0], keep_unsolved=True)
        losses[weight] = written.loss
        edited.detach()
    edited = wrap(tiny_model(), tiny_tokenizer(), TokenVectorConfig(layer=2, steps=1, learning_rate=1e-9))
    (before,) = edited.edit(EDITS[0], keep_unsolved=True)
    assert losses[0.0] < 0.85 * before.loss and losses[0.0] < losses[50.0] - 0.1


def test_a_model_without_senses_is_refused_with_what_there_is(wrap):
    with refusal("LlamaForCausalLM", "token-vectors"):
        wrap(tiny_model(), tiny_tokenizer(), SenseConfig())


def test_vectors_of_several_edits_are_summed_and_a_view_keeps_its_own():
    memory = TokenVectors(50, 3, torch.device("cpu"))
    memory.add(torch.tensor([7, 9]), torch.ones(2, 3))
    view = memory.view()
    memory.add(torch.tensor([9, 30]), torch.full((2, 3), 2.0))
    x = out = torch.zeros(4, 3)
    memory.ids = view.ids = torch.tensor([9, 7, 1, 30])
    route = torch.tensor([0, 0, 0, -1], dtype=torch.int32)
    for one, expected in ((memory, [3.0, 1.0, 0.0, 0.0]), (view, [1.0, 1.0, 0.0, 0.0])):
        own = out.clone()
        one.read_(own, x, route, route.bool())
        assert own[:, 0].tolist() == expected
    memory.reset()
    assert memory.state()["memory.tokens"].numel() == 0 and len(view.state()["memory.tokens"]) == 2


def test_token_ids_go_through_a_record():
    tokens = torch.tensor([0, 1023, 1024, 49151, 128255])
    assert _numbers(_digits(tokens)).tolist() == tokens.tolist()


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"most": 0}, {"learning_rate": 0.0}, {"kl_weight": -1.0}):
        with refusal(next(iter(wrong))):
            SenseConfig(**wrong)
