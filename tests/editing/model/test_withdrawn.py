"""Undone edits stay known to the router: their questions get the base model's answer, not a neighbour's."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace

import pytest
import stores
import torch
from cases import normal, property_test
from every_config import CONFIGS, EDITS, bits, ids, same
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.routers.context import RoutingContext
from corrigenda.editing.routers.masks import MaskRouter
from corrigenda.editing.routers.router import Withdrawn, decide
from corrigenda.editing.routers.tokens import TokenRouter
from corrigenda.editing.store import check
from corrigenda.editing.store.codec import withdrawn_of
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.ledger import New
from corrigenda.editing.store.store import EditStore, compact

pytestmark = pytest.mark.usefixtures("few_background_prompts")
tokenizer = functools.cache(tiny_tokenizer)

# Decisions


@property_test
@given(
    st.lists(st.tuples(*[st.integers(-1, 3)] * 2, *[st.integers(0, 8)] * 3), max_size=8),
    st.lists(st.sampled_from((2, 4, 6, 10)), min_size=4, max_size=4),
)
def test_what_is_held_back(rows, undone):
    """In eighths, which are exact: an edit that matches as well as the withdrawn one is applied."""
    nearest, index, score, runner_up, withdrawn_score = (torch.tensor([row[i] for row in rows]) for i in range(5))
    index = index.clamp(min=0).int()
    before = decide(nearest.int(), score / 8, runner_up / 8, 0.25, 0.5)
    written = torch.tensor([5, 3, 9, 1 << 62])
    withdrawn = Withdrawn(list("abcd"), torch.zeros(4, 1), torch.tensor(undone), written)
    after = withdrawn.hold_back(before, index, withdrawn_score / 8)
    for i, (route, at, other, best) in enumerate(
        zip(*(t.tolist() for t in (before.route, index, withdrawn_score, score)))
    ):
        held = route >= 0 and other > best and written[route] < undone[at]
        assert after.route[i] == (-1 if held else route) and after.withdrawn[i] == (at if held else -1)
        assert after.margin[i] == ((best - other) / 8 if held else before.margin[i])
        assert (after.route[i] >= 0) == (after.margin[i] >= 0 and nearest[i] >= 0)
    assert after[1:4] == before[1:4] and [part.dtype for part in after] == [part.dtype for part in before]


NEIGHBOUR, ASKED = (
    "In which year did the tug Vellorinsk enter service?",
    "In which year did the tug Krellin enter service?",
)
STORED = ["The capital of Zubrowka is", NEIGHBOUR, "Kmelt is famous for its"]
QUERIES = [ASKED, *STORED, "When did the tug Krellin enter service?", "Why is the sky blue?", ""]


def token_router(stored=STORED):
    router = TokenRouter(tokenizer(), background_prompts()[:40])
    router.add(stored)
    return router


def withdraw(router, *texts, undone=9):
    """The stored edits were written at 0, 1, 2 and so on."""
    rows = [torch.tensor(router.known_by(text), dtype=torch.int32) for text in texts]
    router.withdraw(list(texts), rows, [undone] * len(texts), range(router.size))


def test_a_withdrawn_question_is_not_routed_and_nothing_else_changes():
    router = token_router()
    state, threshold, before = router.state(), router.threshold, router.decide(QUERIES)
    assert before.route.tolist()[:5] == [1, 0, 1, 2, 1]
    withdraw(router, "Who leads Vantrello Foods?", ASKED)
    after = router.decide(QUERIES)
    assert after.route.tolist() == [-1, 0, 1, 2, -1, -1, -1]
    assert after.withdrawn.tolist() == [1, -1, -1, -1, 1, -1, -1] and after.margin[0] == after.score[0] - 1
    assert all(torch.equal(a, b) for a, b in zip(after[1:4], before[1:4]))
    assert router.threshold == threshold
    same(state, router.state())
    router.add(["Which language does Bram Oterdahl speak?"])
    assert router.decide(QUERIES[:1]).withdrawn.tolist() == [1]
    withdraw(router)
    fresh = token_router([*STORED, "Which language does Bram Oterdahl speak?"])
    assert router.withdrawn is None
    assert all(torch.equal(a, b) for a, b in zip(router.decide(QUERIES), fresh.decide(QUERIES)))


def test_only_edits_that_were_there_before_are_held_back():
    router = token_router()
    for undone, route in ((1, 1), (2, -1)):
        withdraw(router, ASKED, undone=undone)
        assert router.decide([ASKED]).route.tolist() == [route]
    router.add([QUERIES[4], "Who leads Vantrello Foods?"])
    assert router.decide([ASKED]).route.tolist() == [3]


def test_an_applied_edit_keeps_its_question_beside_a_withdrawn_one_of_the_same_words():
    router = token_router()
    withdraw(router, "Enter service in which year did the tug Vellorinsk?")
    assert router.fingerprint(NEIGHBOUR) == router.fingerprint(router.withdrawn.ids[0])
    assert router.decide([NEIGHBOUR]).route.tolist() == [1]


def test_of_equals_the_last_undone_counts():
    router = token_router()
    row = torch.tensor(router.known_by(ASKED), dtype=torch.int32)
    router.withdraw(["late", "early"], [row, row], [3, 0], range(3))
    assert router.decide([ASKED]).withdrawn.tolist() == [0]


def test_a_view_keeps_what_was_withdrawn_and_removing_forgets_it():
    router = token_router()
    withdraw(router, ASKED)
    view = router.view()
    router.remove({0})
    assert router.decide([ASKED]).route.tolist() == [0] and view.decide([ASKED]).route.tolist() == [-1]
    withdraw(router, ASKED)
    router.load_ground(router.ground())
    assert router.withdrawn is None


def test_a_fingerprint_of_another_router_is_refused():
    router = token_router()
    for row in ([5, 3], [3, 3], [-1, 4], [router.vocabulary]):
        with pytest.raises(CorrigendaError, match='undone edit "x" is not one of this router'):
            router.withdraw(["x"], [torch.tensor(row, dtype=torch.int32)], [1], [])
    with pytest.raises(CorrigendaError, match='undone edit "x" is not one of this router'):
        MaskRouter(64, 10).withdraw(["x"], [torch.zeros(3, dtype=torch.int32)], [1], [])


def test_a_mask_router_holds_back_too_also_within_a_pass():
    width, features = 512, normal(6, 512, seed=3)
    router = MaskRouter(width, 146, threshold=0.4)
    router.add(router.mask(features[:3]))
    asked = torch.stack([features[1] + 0.2 * features[4], features[1], features[1] + 1.5 * features[4], features[2]])
    before = router.decide(router.mask(asked))
    assert before.route.tolist() == [1, 1, 1, 2]
    router.withdraw(["x", "y"], list(router.mask(torch.stack([features[5], asked[2]]))), [3, 3], range(3))
    context = RoutingContext(torch.device("cpu"))
    context.start(torch.full((4,), -1))
    context.fill(*[torch.ones(4, 1, dtype=torch.bool)] * 2, torch.ones(4, 1), deciding=True)
    router.observe(asked[:, None], context)
    assert context.routes.tolist() == [1, 1, -1, 2] and context.decision.withdrawn.tolist() == [-1, -1, 1, -1]
    assert all(torch.equal(a, b) for a, b in zip(context.decision[1:4], before[1:4]))
    view = router.view()
    router.remove({0})
    assert router.withdrawn is None and view.decide(view.mask(asked)).route.tolist() == [1, 1, -1, 2]


# The ledger


def marked(store):
    """Ids of the withdrawn edits, with those that each can hold back."""
    order = store.history.applied()
    names, fingerprints, undone = withdrawn_of(store.history, order)
    assert len(fingerprints) == len(names)
    return {name: [store.history.edits[s].id for s in order if s < entry] for name, entry in zip(names, undone)}


def undo(store, *names):
    return store.undo(store.selected(names))


def test_which_edits_are_withdrawn(tmp_path):
    store = stores.new_store(tmp_path / "edits")
    stores.add(store, *map(stores.edit, "abc"))
    assert marked(store) == {}
    undo(store, "b")
    stores.add(store, stores.edit("d"))
    undo(store, "a")
    assert marked(store) == {"a": ["c", "d"], "b": ["c"]} and list(marked(store)) == ["a", "b"]
    assert store.history.withdrawn([]).keys() == {3, 4}  # whatever is applied
    compact(store, forget_undone=True)
    assert list(marked(store)) == ["a", "b"]
    store.close()
    assert check.problems(tmp_path / "edits") == []
    store = EditStore.open(tmp_path / "edits", write=True)
    assert list(marked(store)) == ["a", "b"]
    undo(store, "c")
    store.redo(store.selected("c"))
    assert list(marked(store)) == ["a", "b"]
    undo(store, "c", "d")
    assert list(marked(store)) == ["d", "c", "a", "b"]
    store.close()


def test_an_edit_undone_again_is_withdrawn_from_then_on():
    store = stores.new_store()
    stores.add(store, *map(stores.edit, "ab"))
    undo(store, "a")
    stores.add(store, stores.edit("c"))
    assert marked(store) == {"a": ["b"]}
    store.redo(store.selected("a"))
    undo(store, "a")
    assert marked(store) == {"a": ["b", "c"]}


def test_an_undone_edit_of_a_fact_that_has_another_is_not_withdrawn():
    store = stores.new_store()
    (first,) = stores.add(store, stores.edit("a"))
    (second,) = stores.add(store, replace(stores.edit("a"), id="a2"), supersedes=[[first]])
    stores.add(store, replace(stores.edit("a"), id="a3"), supersedes=[[first, second]])
    assert marked(store) == {}
    undo(store, "a2")  # a3 stands
    assert marked(store) == {} and store.history.applied() == [second + 1]
    undo(store, "a3")  # a is in again
    assert marked(store) == {} and store.history.applied() == [first]
    undo(store, "a")
    assert list(marked(store)) == ["a", "a3", "a2"]
    store.redo(store.selected(["a2"]))
    assert marked(store) == {}


def test_a_lost_edit_is_not_withdrawn_and_a_fingerprint_is_checked(tmp_path):
    store = stores.new_store(tmp_path / "edits")
    stores.add(store, *map(stores.edit, "ab"))
    undo(store, "a")
    store.append([New("lost", {"edits": [3]})], dropping=[3])
    assert store.history.statuses()[3] == "lost" and marked(store) == {}
    undo(store, "b")
    compact(store, forget_undone=True)
    store.history.edits[4].fingerprint = b"\xff" * 4
    assert any("fingerprint" in problem for problem in check._tensors(store.ledger, store.history))
    store.close()


# The memory

TAKEN = Edit("What is the capital of Zubrowka?", "Lutz City", id="taken", rephrases=("Zubrowka has which capital?",))
OTHER = Edit("What is the anthem of Zubrowka?", "The long road", id="other")
METHODS = {
    "associative": CONFIGS["associative"],
    # A tiny model's features are little alike: at this threshold every prompt is some edit's.
    "mask router": replace(CONFIGS["mask router"], threshold=0.1),
    "memoir": replace(CONFIGS["memoir"], threshold=0.1),
}
every_router = pytest.mark.parametrize("method", list(METHODS))


@pytest.fixture
def edited(wrap):
    def build(method="associative", edits=(EDITS[1], OTHER, TAKEN), **options):
        model = wrap(tiny_model(), tiny_tokenizer(), METHODS[method])
        model.edit(edits, **options)
        return model

    return build


def asked(model, prompt=TAKEN.prompt):
    (answer,) = model.answer([prompt], 4)
    return answer


@every_router
def test_the_question_of_an_undone_edit_gets_the_base_models_answer(edited, load_edited, tmp_path, method):
    model = edited(method, [])
    base = asked(model).text
    model.edit([EDITS[1], OTHER, TAKEN], store=tmp_path / "edits")
    whole, answer = bits(model), asked(model).text
    with model.pin():
        model.undo("taken")
        assert asked(model).edit == TAKEN and asked(model).text == answer
    source = asked(model).provenance
    assert source.withdrawn == "taken" and not source.applied and source.margin < 0
    assert asked(model).text == base and asked(model, OTHER.prompt).edit == OTHER
    assert source.nearest in (EDITS[1], OTHER) and source.to_dict()["withdrawn"] == "taken"
    ids_of = torch.tensor([model.prompts.encode(TAKEN.prompt)])
    with model.teacher_forcing(ids_of, [ids_of.shape[1]], [ids_of.shape[1]]) as routes, torch.no_grad():
        model.model(ids_of)
        assert routes() == [-1] and model.sources(1) == [source]

    again = load_edited(tmp_path / "edits")
    assert asked(again).provenance == source and asked(again).text == base
    same(bits(again), bits(model))
    with model.pin():
        model.redo("taken")
        assert asked(model).provenance == source
    assert asked(model).text == answer and asked(model).provenance.withdrawn is None
    same(whole, bits(model))
    assert again.refresh() and asked(again).edit == TAKEN

    without = edited(method, [EDITS[1], OTHER])  # the neighbour would have answered
    assert asked(without).edit in (EDITS[1], OTHER)


def test_a_new_edit_of_the_same_fact_in_other_words_answers(edited):
    model = edited()
    model.undo("taken")
    assert asked(model).provenance.withdrawn == "taken"
    model.edit(Edit(TAKEN.rephrases[0], "Nebelsbad", id="new"))
    assert ids(model) == ["b", "other", "new"] and asked(model).edit.id == "new"
    model.undo("b")
    assert asked(model).edit.id == "new" and asked(model, OTHER.prompt).edit == OTHER
    model.undo("new")  # which asks the same in other words: now both are
    assert asked(model).provenance.withdrawn == "taken"
    assert asked(model, TAKEN.rephrases[0]).provenance.withdrawn == "new"


def test_an_edit_that_an_undone_one_had_superseded_answers(edited):
    newer = Edit("what is the capital of Zubrowka", "Nebelsbad", id="newer")
    model = edited(edits=[TAKEN, OTHER])
    model.edit(newer)
    model.undo("newer")
    assert asked(model).edit == TAKEN and asked(model).provenance.withdrawn is None
    model.undo("taken")
    assert asked(model).provenance.withdrawn == "taken"
    model.redo("newer")
    assert asked(model).edit == newer and model.method.router.withdrawn is None


def test_a_new_edit_in_the_same_words_takes_the_mark_off(edited):
    model = edited()
    model.undo("taken")
    model.edit(Edit("what is the capital of Zubrowka", "Nebelsbad", id="new"))
    assert model.method.router.withdrawn is None and asked(model).edit.id == "new"


def test_a_failed_write_and_all_undone(edited, monkeypatch):
    model = edited()
    model.undo("taken")
    monkeypatch.setattr(model.method, "solve", lambda edits: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.edit(replace(OTHER, id="again"))
    assert asked(model).provenance.withdrawn == "taken"
    model.undo(["b", "other"])
    assert asked(model).edit is None and asked(model).provenance.withdrawn is None
    assert model.method.router.withdrawn.ids == ["other", "b", "taken"]


def test_merging_brings_edits_that_are_not_held_back(edited, load_edited, tmp_path):
    one = edited(edits=[EDITS[1], TAKEN], store=tmp_path / "one")
    one.undo("taken")
    one.detach()
    edited(edits=[EDITS[1], OTHER], store=tmp_path / "two").detach()
    for into, other in (("one", "two"), ("two", "one")):
        shutil.copytree(tmp_path / into, tmp_path / f"into {into}")
        target, source = EditStore.open(tmp_path / f"into {into}", write=True), EditStore.open(tmp_path / other)
        merge(target, source)
        target.close(), source.close()
        found = asked(load_edited(tmp_path / f"into {into}"))
        assert found.edit == OTHER and found.provenance.withdrawn is None


def test_wise_knows_no_withdrawn_edits(wrap):
    model = wrap(tiny_model(), tiny_tokenizer(), CONFIGS["wise"])
    model.edit([OTHER, TAKEN])
    model.undo("taken")
    assert asked(model).provenance.withdrawn is None and not hasattr(model.method.router, "withdrawn")


@pytest.mark.model
@pytest.mark.slow
def test_on_the_real_model(smollm2, wrap):
    """Two questions of one kind about two things with names that share tokens."""
    model, tokenizer = smollm2
    other = Edit("The year F16 Timberwolf entered service was what?", "1911", id="other")
    taken = Edit("The year C14 Timberwolf entered service was what?", "1923", id="taken")
    edited = wrap(
        model, tokenizer, AssociativeConfig(router="tokens", contexts=2), template="Question: {prompt}\\nAnswer:"
    )
    (before,) = edited.generate_text([taken.prompt], 8)
    edited.edit([other, taken])
    assert edited.generate_text([taken.prompt, other.prompt], 8) == ["1923", "1911"]
    edited.undo("taken")
    answer, kept = edited.answer([taken.prompt, other.prompt], 8)
    assert answer.text == before and answer.provenance.withdrawn == "taken" and kept.text == "1911"
    edited.method.router.withdraw([], [], [], [])
    assert edited.generate_text([taken.prompt], 8) != [before]
