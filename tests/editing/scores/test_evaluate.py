"""Scores against a slow computation: one prompt at a time, plain forwards, the memory added by a hook written here."""

import copy
import functools
import random
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, Evaluator, Locality, MemoirConfig, WiseConfig
from corrigenda.editing.scores.evaluate import normalised
from corrigenda.kernels.reference import unpack_mask

EDITS = [
    Edit(
        "What is the capital of Zubrowka?",
        "Lutz City",
        id="zubrowka",
        rephrases=("Zubrowka has which capital?", "Say hello!"),  # the second is about nothing that is stored
        localities=(Locality("Why is the sky blue?", "Because of light"), Locality("Who founded the Krellin museum?")),
    ),
    Edit(
        "Who founded the Krellin museum?",
        "Anna Blom",
        id="krellin",
        rephrases=("Who founded the Krellin museum?",),  # the same words: a random model knows no others
        localities=(Locality("The Krellin museum was founded by whom?", "red bricks"),),  # routed, which it should not
    ),
    Edit("What does Kmelt make?", "red bricks and blue tiles", id="kmelt"),
    Edit(
        "Where is the harbour of Ostania?",
        "Vell",
        id="ostania",
        localities=(Locality("nq question: who wrote the book of the sea", "Oto"),),
    ),
]
TEMPLATE = "Question: {prompt}\nAnswer:"
CONFIGS = {
    "associative": AssociativeConfig(router="tokens", contexts=1),
    "memoir": MemoirConfig(contexts=1, steps=12, threshold=0.6),
    "causal memoir": MemoirConfig(contexts=1, steps=12, threshold=0.6, scope="causal", eos=True),
    "wise": WiseConfig(contexts=1, steps=12, learning_rate=0.3, alpha=0.5, beta=8.0, gamma=4.0, save_every=2),
}
every_method = pytest.mark.parametrize("method", CONFIGS)
tokenizer = functools.cache(tiny_tokenizer)


def base_model():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight *= 4
    return model


@functools.cache
def edited_model(method):
    """Holds the first three edits; the fourth is not written."""
    edited = EditedModel.wrap(base_model(), tokenizer(), CONFIGS[method], template=TEMPLATE)
    edited.edit(EDITS[:3])
    return edited


class Slow:
    """An unpatched model of the same weights, asked one sequence at a time."""

    def __init__(self, edited):
        self.edited = edited
        self.model = base_model()
        self.module = self.model.model.layers[edited.config.layer].mlp.down_proj

    def route(self, prompt):
        method = self.edited.method
        if self.edited.config.method == "associative":
            return method.decide([prompt]).route.item()
        taken = []
        handle = self.module.register_forward_pre_hook(lambda _m, args: taken.append(args[0][0]))
        self.model(torch.tensor([prompt]))
        handle.remove()
        if not method.names_edits:
            return self.shard(taken[0])
        router = method.router
        overlap = router.unpack(router.mask(taken[0].mean(0, keepdim=True))) @ router.unpack(router.masks).T
        best, place = (overlap / router.top_k)[0].max(0)
        return place.item() if best >= 0.6 else -1

    def holds(self, route, place):
        if self.edited.method.names_edits:
            return route == place
        shards = self.edited.method.memory.shards
        return route >= 0 and shards[route].first <= place < shards[route].end

    @torch.no_grad()
    def shard(self, x):
        """For WISE-Merge: of two memories over the least threshold, the one that moves the output further."""
        shards, silu = self.edited.method.memory.shards, torch.nn.functional.silu
        base = self.module(x)
        far = [float((silu(base + x @ shard.delta) - silu(base)).norm(dim=1).mean()) for shard in shards]
        best = max(range(len(shards)), key=far.__getitem__)
        least = min(float(shard.minimum) for shard in shards)
        return best if far[best] >= self.edited.config.act_ratio * least else -1

    def added(self, x, route, last, said):
        """What the memory says of inputs `x` `[tokens, D]`: the prompt's, which end at `last`, and those `said`."""
        method, out = self.edited.method, torch.zeros(len(x), self.module.out_features)
        start = 0 if self.edited.config.scope == "full" else last
        if self.edited.config.method == "memoir":
            mask = unpack_mask(method.router.masks[route], x.shape[1])
            out[start:] = (x[start:] * mask) @ method.memory.weight
            return out
        if not method.names_edits:
            return x @ method.memory.shards[route].delta
        _, values = method.memory.rows_of(route)
        edit = self.edited.edits[route]
        target = self.edited.prompts.encode_with_target(edit.prompt, edit.target)[1]
        for row in range(min(len(values), len(said) + 1)):
            if list(said[:row]) == target[:row]:  # the answer has come so far
                out[last + row] = values[row]
        return out

    @torch.no_grad()
    def logits(self, prompt, answer, edited=True):
        route = self.route(prompt) if edited else -1

        def add(_module, args, out):
            return out if route < 0 else out + self.added(args[0][0], route, len(prompt) - 1, answer)

        handle = self.module.register_forward_hook(add)
        logits = self.model(torch.tensor([prompt + answer]), use_cache=False).logits[0]
        handle.remove()
        return logits[len(prompt) - 1 :]

    def forced(self, prompt, answer, edited=True):
        return self.logits(prompt, answer[:-1], edited).argmax(1).tolist()

    def free(self, prompt, limit):
        new = []
        while len(new) < limit and tokenizer().eos_token_id not in new:
            new.append(self.logits(prompt, new)[-1].argmax().item())
        return tokenizer().decode(new, skip_special_tokens=True)


def share(found, wanted):
    assert len(found) == len(wanted)
    return sum(f == w for f, w in zip(found, wanted)) / len(wanted)


def mean(values):
    return sum(values) / len(values)


def slow_scores(slow, edits):
    """rel, gen, loc, free_rel, free_gen, routed, routed_gen, misfires."""
    encode = slow.edited.prompts.encode_with_target
    own = {edit.id: place for place, edit in enumerate(slow.edited.edits)}
    rows = {name: [] for name in ("rel", "gen", "loc", "free_rel", "free_gen", "routed", "routed_gen", "misfires")}
    for edit in edits:
        for texts, forced, free, routed in (
            ([edit.prompt], "rel", "free_rel", "routed"),
            (edit.rephrases, "gen", "free_gen", "routed_gen"),
        ):
            asked = [encode(text, edit.target) for text in texts]
            if not asked:
                continue
            rows[forced].append(mean([share(slow.forced(*pair), pair[1]) for pair in asked]))
            rows[routed].append(mean([slow.holds(slow.route(prompt), own.get(edit.id, -2)) for prompt, _ in asked]))
            texts = [slow.free(prompt, len(answer) + 4) for prompt, answer in asked]
            rows[free].append(mean([normalised(text) == normalised(edit.target) for text in texts]))
        if edit.localities:
            asked = [encode(locality.prompt, locality.answer or "x") for locality in edit.localities]
            asked = [(p, a if edit.localities[i].answer else [0]) for i, (p, a) in enumerate(asked)]
            rows["loc"].append(mean([share(slow.forced(*pair), slow.forced(*pair, edited=False)) for pair in asked]))
            rows["misfires"].append(mean([slow.route(prompt) >= 0 for prompt, _ in asked]))
    return {name: mean(values) for name, values in rows.items()}


@every_method
def test_scores_equal_the_slow_ones(method):
    edited = edited_model(method)
    scores = Evaluator(edited).score(EDITS).to_dict()
    assert scores.pop("n") == 4
    assert scores == pytest.approx(slow_scores(Slow(edited), EDITS))
    assert 0 < scores["routed"] <= 0.75 and (method == "wise" or scores["routed"] == 0.75)
    assert 0 < scores["rel"] < 1 and 0 < scores["gen"] < 1
    if method == "associative":
        # By hand: of the prompts, those written are answered; of the rephrasings, those that are routed.
        assert scores["free_rel"] == 0.75 and scores["free_gen"] == scores["routed_gen"]
        # The first edit's second locality prompt and the second edit's only one are answered by an edit.
        assert scores["routed_gen"] == mean([0.5, 1]) and scores["misfires"] == pytest.approx(mean([0.5, 1, 0]))


def test_locality_is_against_the_unedited_model_not_the_answer():
    edited = edited_model("associative")
    unrouted = Locality("Why is the sky blue?", "no model would ever say this")
    taken = Locality(EDITS[0].prompt, EDITS[0].target)  # the edited model gives the answer, the unedited one does not
    for locality, expected in ((unrouted, 1.0), (replace(unrouted, answer=None), 1.0), (taken, 0.0)):
        scores = edited.evaluate([Edit("Any?", "thing", localities=(locality,))], free=False)
        assert scores.loc == expected
        assert scores.misfires == float(locality is taken)


def test_the_unedited_answers_are_those_from_before_the_edits(wrap):
    edited = wrap(base_model(), tokenizer(), CONFIGS["associative"], template=TEMPLATE)
    evaluator = Evaluator(edited, free=False)
    assert evaluator.score(EDITS).loc == 1.0
    edited.edit(EDITS[:3])
    kept, fresh = evaluator.score(EDITS), Evaluator(edited, free=False).score(EDITS)
    assert kept == fresh and kept.loc < 1


def test_growing_streams_compare_like_with_like_in_bf16(wrap):
    # In bf16 an argmax depends on what else is in a pass: the unedited model must have had the very same passes.
    words = ["sea", "book", "red", "blue", "wrote", "founded", "museum", "capital", "light", "harbour", "of", "what"]
    chance = random.Random(0)

    def asked(number):
        prompts = [" ".join(chance.choices(words, k=chance.randint(2, 12))) + f" {number}?" for _ in range(3)]
        return tuple(Locality(prompt, " ".join(chance.choices(words, k=5))) for prompt in prompts)

    edits = [Edit(f"What is {number}?", "thing", localities=asked(number)) for number in range(30)]
    edited = wrap(base_model().bfloat16(), tokenizer(), CONFIGS["associative"], template=TEMPLATE)
    evaluator = Evaluator(edited, free=False)
    assert [evaluator.score(edits[:stop]).loc for stop in (3, 7, 15, 30)] == [1.0] * 4


def test_web_texts_go_on_without_a_space_and_without_the_template():
    edited = edited_model("associative")
    metadata = {"locality_kind": "web-text"}
    seen = []
    handle = edited.decoder.body.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    locality = Locality("The quick brown fox jum", "ps over the dog")
    scores = edited.evaluate([Edit("Any?", "thing", localities=(locality,), metadata=metadata)], free=False)
    handle.remove()
    assert scores.loc == 1.0
    text = tokenizer().decode(seen[-1][0])
    assert text == tokenizer().decode(tokenizer()(locality.prompt + locality.answer)["input_ids"][:-1])


@every_method
def test_batches_make_no_difference(method, monkeypatch):
    edited = edited_model(method)
    scores = edited.evaluate(EDITS)
    for size in (1, 3):
        assert edited.evaluate(EDITS, batch_size=size) == scores
    monkeypatch.setattr("corrigenda.editing.scores.evaluate._TOKENS", 1)
    assert edited.evaluate(EDITS) == scores
    assert edited.evaluate(EDITS[::-1]) == scores
    alone = [edited.evaluate([edit]) for edit in EDITS]
    assert mean([single.rel for single in alone]) == pytest.approx(scores.rel)
    assert mean([single.free_rel for single in alone]) == pytest.approx(scores.free_rel)


def test_scoring_changes_nothing():
    edited = edited_model("associative")
    before = copy.deepcopy(edited.method.state())
    assert edited.evaluate(EDITS) == edited.evaluate(EDITS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in edited.method.state().items())


def test_what_no_record_has_is_none():
    scores = edited_model("associative").evaluate([EDITS[2]], free=False)
    assert (scores.gen, scores.loc, scores.free_rel, scores.free_gen, scores.misfires) == (None,) * 5
    assert scores.n == 1 and scores.rel == 1.0
    empty = edited_model("associative").evaluate([])
    assert empty.n == 0 and empty.rel is None and empty.free_rel is None


def test_edits_that_came_without_an_id_are_known_again(wrap):
    edits = [replace(edit, id=None) for edit in EDITS[:3]]
    edited = wrap(base_model(), tokenizer(), CONFIGS["associative"], template=TEMPLATE)
    edited.edit(edits)
    assert edited.evaluate(edits, free=False) == edited.evaluate(free=False)
    assert edited.evaluate(edits, free=False).routed == 1.0


def test_immediate_scores_are_each_batchs_own(wrap):
    config = replace(CONFIGS["memoir"], batch_size=1)
    edited = wrap(base_model(), tokenizer(), config, template=TEMPLATE)
    evaluator = Evaluator(edited)
    assert evaluator.immediate_scores() is None
    edited.edit(EDITS[:3], score_each=evaluator)
    again = wrap(base_model(), tokenizer(), config, template=TEMPLATE)
    expected = []
    for edit in EDITS[:3]:
        again.edit(edit)
        expected.append(again.evaluate([edit]))
    assert evaluator.immediate == expected
    scores = evaluator.immediate_scores()
    assert scores.n == 3
    assert scores.rel == pytest.approx(mean([single.rel for single in expected]))
    assert scores.gen == pytest.approx(mean([single.gen for single in expected if single.gen is not None]))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Lutz City.", "lutz city"),
        ("  a  cat,\nAN owl and the   dog ", "cat owl and dog"),
        ("theatre", "theatre"),
        ("St. John's", "st johns"),
        ("U.S.A.", "usa"),
        ("Ångström", "ångström"),
        ("The", "the"),
        ("the.", "the"),
        ("An a", "an a"),
        ("?!", "?!"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_normalised_as_in_squad(text, expected):
    assert normalised(text) == expected
