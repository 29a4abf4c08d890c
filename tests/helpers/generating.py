"""A tiny model that carries three edits, and what it generates: in one batch, and one prompt at a time."""

import functools

import torch
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, MemoirConfig, WiseConfig

EDITS = [
    Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="krellin"),
    Edit("Kmelt is famous for its", "red bricks", id="kmelt"),
]
UNROUTED = ["Why is the sky blue?", "Name three sorts of cheese and a wine that goes well with one of them.", "Hm"]
PROMPTS = [EDITS[0].prompt, UNROUTED[0], EDITS[2].prompt, UNROUTED[1], EDITS[1].prompt, UNROUTED[2]]

CONFIGS = {
    "associative": AssociativeConfig(router="tokens", contexts=1, steps=60),
    "mask router": AssociativeConfig(contexts=1, steps=60, router="mask", router_layer=1),
    "memoir": MemoirConfig(contexts=1, steps=30, eos=True, batch_size=3),
    "causal memoir": MemoirConfig(contexts=1, steps=30, eos=True, batch_size=3, scope="causal"),
    "wise": WiseConfig(
        contexts=1,
        steps=40,
        learning_rate=2.0,
        margin_weight=0.1,
        alpha=0.5,
        beta=4.0,
        gamma=2.0,
        mask_ratio=1.0,
        spared=30.0,
        norm_constraint=10.0,
        reduction="max",
        distance_tokens="prompt",
        act_ratio=0.7,
        eos=True,
    ),
}


def expected_routes(method):
    """For PROMPTS: the edit's place, or the one memory that WISE's edits share."""
    return [0, -1, 0, -1, 0, -1] if method == "wise" else [0, -1, 2, -1, 1, -1]


tokenizer = functools.cache(tiny_tokenizer)


def base_model(kind):
    model = tiny_model(kind, seed=5 if kind == "mistral" else 0)
    with torch.no_grad():
        model.model.norm.weight *= 4
    return model


@functools.cache
def edited_model(kind, method):
    """Shared by the tests: what writes more edits or detaches makes its own."""
    edited = EditedModel.wrap(base_model(kind), tokenizer(), CONFIGS[method])
    edited.edit(EDITS)
    return edited


@functools.cache
def unedited_model(kind):
    return base_model(kind)


def padded(prompts, tokenizer=tokenizer, extra=0):
    """Left-padded ids and their mask, `extra` columns wider than need be."""
    rows = [tokenizer()(prompt)["input_ids"] for prompt in prompts]
    width = max(map(len, rows)) + extra
    pad = tokenizer().pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generated(edited, inputs, **options):
    """(routes, new tokens without what follows the end) of a `generate` call."""
    options = {"max_new_tokens": 10, "do_sample": False, **options}
    output = edited.generate(**inputs, **options)
    routes = edited.context.routes[: len(output)].tolist()
    end = edited.tokenizer.eos_token_id
    new = [row[inputs["input_ids"].shape[1] :].tolist() for row in output]
    return routes[: len(new)], [row[: row.index(end) + 1] if end in row else row for row in new]


def alone(edited, prompts=PROMPTS, tokenizer=tokenizer, **options):
    """The same, one prompt at a time and unpadded."""
    pairs = [generated(edited, padded([prompt], tokenizer), **options) for prompt in prompts]
    return [routes[0] for routes, _ in pairs], [tokens[0] for _, tokens in pairs]


@functools.cache
def alone_greedily(kind, method):
    return alone(edited_model(kind, method))
