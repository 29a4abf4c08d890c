"""Generation with edits on SmolLM2: the same tokens in every mode, the same decisions on real prompts."""

import contextlib
import json
import random

import pytest
import torch
from cases import same_bits
from torch import nn

from corrigenda.editing import AssociativeConfig, Edit, load_edits
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.methods.record import Record

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEMPLATE = "Question: {prompt}\\nAnswer:"
EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz", id="zubrowka"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="krellin"),
]
ASKED = ["By whom was the Krellin museum founded?", "What is the capital of France?", EDITS[0].prompt, "Hello!"]
ROUTES = [1, -1, 0, -1]


def padded(edited, prompts):
    """Left-padded ids of wrapped prompts and their mask."""
    rows = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[edited.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generated(edited, prompts, **options):
    """(routes, new tokens up to the end), row by row."""
    inputs = padded(edited, prompts)
    output = edited.generate(**inputs, **{"max_new_tokens": 6, "do_sample": False, **options})
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    end = edited.tokenizer.eos_token_id
    routes = edited.context.routes[: len(prompts)].tolist()
    return routes, [row[: row.index(end) + 1] if end in row else row for row in new]


def test_every_mode_gives_the_same_tokens_and_unrouted_ones_the_base_models_bits(smollm2, wrap):
    model, tokenizer = smollm2
    edited = wrap(model, tokenizer, AssociativeConfig(router="tokens", contexts=1), template=TEMPLATE)
    logits = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    inputs = padded(edited, ASKED)
    edited.detach()
    before = model.generate(**inputs, **logits).logits
    edited = wrap(model, tokenizer, AssociativeConfig(router="tokens", contexts=1), template=TEMPLATE)
    edited.edit(EDITS)
    for ours, theirs in zip(edited.generate(**inputs, **logits).logits, before):
        assert same_bits(ours[1], theirs[1]) and same_bits(ours[3], theirs[3])
        assert not torch.equal(ours[0], theirs[0])
    pairs = [generated(edited, [prompt]) for prompt in ASKED]
    alone = [routes[0] for routes, _ in pairs], [tokens[0] for _, tokens in pairs]
    assert alone[0] == ROUTES
    assert [tokenizer.decode(alone[1][i], skip_special_tokens=True).strip() for i in (0, 2)] == ["Anna Blom", "Lutz"]
    for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}):
        assert generated(edited, ASKED, **options) == alone
    assert generated(edited, ASKED[:1], prompt_lookup_num_tokens=3)[1] == alone[1][:1]
    beams = generated(edited, ASKED[:2], num_beams=3)[1]
    assert [generated(edited, [prompt], num_beams=3)[1][0] for prompt in ASKED[:2]] == beams


@contextlib.contextmanager
def shallow(model, layers):
    """Within: the model without its upper layers, which no decision of a low layer depends on."""
    whole = model.model.layers
    model.model.layers, model.config.num_hidden_layers = nn.ModuleList(list(whole)[:layers]), layers
    try:
        yield model
    finally:
        model.model.layers, model.config.num_hidden_layers = whole, len(whole)


def real_prompts(folder):
    """40 edits' prompts to store; these, 60 rephrasings and 100 questions about something else, shuffled."""
    edits = load_edits(folder / "zsre.jsonl", unique_subject=True, limit=60)
    with (folder / "nq_open.jsonl").open(encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] + "?" for line, _ in zip(lines, range(100))]
    stored = [edit.prompt for edit in edits[:40]]
    asked = stored + [edit.rephrases[0] for edit in edits] + questions
    assert len(asked) == 200
    return stored, random.Random(7).sample(asked, len(asked))


def decisions(edited, prompts, order, batch, **options):
    """(route, score) of each prompt, decided while `generate` reads them in this order and batch size."""
    found = [None] * len(prompts)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = padded(edited, [prompts[i] for i in part])
        with edited._provider.session(inputs["input_ids"], inputs["attention_mask"]) as session:
            edited.model.generate(**inputs, max_new_tokens=1, do_sample=False, **options)
            assert edited.context.routes[: len(part)].tolist() == session.decision.route.tolist()
            for i, route, score in zip(part, session.decision.route.tolist(), session.decision.score.tolist()):
                found[i] = route, score
    return found


@pytest.mark.parametrize("router", ["tokens", "mask"])
def test_decisions_on_200_real_prompts(smollm2, data_folder, wrap, monkeypatch, router):
    model, tokenizer = smollm2
    stored, asked = real_prompts(data_folder)
    if router == "mask":
        monkeypatch.setattr(
            "corrigenda.editing.methods.associative.method.background_prompts",
            lambda: background_prompts()[:100],
        )
    layer = {"tokens": 0, "mask": 2}[router]
    reads = {"router": router, "router_layer": layer if router == "mask" else None}
    config = AssociativeConfig(layer=layer, contexts=1, key_dimensions=None, value_dtype="model", **reads)
    with shallow(model, layer + 2):
        edited = wrap(model, tokenizer, config, template=TEMPLATE)
        edited.method.prepare()
        known = edited.method.fingerprints([Edit(prompt, "-") for prompt in stored])
        rows = {"keys": torch.zeros(1, edited.method.width), "values": torch.zeros(1, edited.method.out_width)}
        edited.method.apply([Record(rows, {}, words) for words in known])
        straight, mixed = list(range(200)), random.Random(8).sample(range(200), 200)
        by_length = sorted(straight, key=lambda i: len(asked[i]))
        alone = decisions(edited, asked, straight, 1)
        others = {
            "batches of 20, mixed lengths": decisions(edited, asked, mixed, 20),
            "static cache, batches of 25 by length": decisions(
                edited, asked, by_length, 25, cache_implementation="static"
            ),
        }
        margins = margins_of(edited, asked) if router == "mask" else [1.0] * 200
        edited.detach()
    routes = [route for route, _ in alone]
    assert 70 <= sum(route >= 0 for route in routes) <= 82
    assert all(routes[asked.index(prompt)] == place for place, prompt in enumerate(stored))
    if router == "tokens":
        assert all(other == alone for other in others.values())
        return
    rounding = 3 / edited.config.top_k  # a bit or three of the mask change hands at the boundary of the top k
    close = [i for i in range(200) if margins[i] <= rounding]
    for name, other in others.items():
        assert max(abs(a[1] - b[1]) for a, b in zip(alone, other)) <= rounding
        differing = [i for i in range(200) if other[i][0] != routes[i]]
        print(f"{name}: {len(differing)} decisions differ, of {len(close)} within rounding of the threshold or a rival")
        assert set(differing) <= set(close)
    assert len(close) <= 20


def margins_of(edited, prompts):
    """How far each prompt's overlap is from where its decision would change, as a share of k."""
    router, method = edited.method.router, edited.method
    masks = router.unpack(method.as_routed(prompts))
    scores = (masks @ router.unpack(router.masks).T / router.top_k).sort(1, descending=True).values
    above = scores[:, 0] - router.threshold
    return torch.where(above < 0, -above, torch.minimum(above, scores[:, 0] - scores[:, 1])).tolist()
