"""The rule by which edits are found: stores record it, and where another one opens them that is said, and migrated."""

import logging
import shutil
import warnings

import pytest
from command_line import refused, works
from forged import entries_of
from meaning import needs_encoder
from tiny import save_tiny, tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, Locality
from corrigenda.editing.model import batch, recorded_rule
from corrigenda.editing.model.rerouting import rerouted
from corrigenda.editing.model.route import routed_requests
from corrigenda.editing.model.why import nearest_edits
from corrigenda.editing.routers.meaning.rule import rule_identity
from corrigenda.editing.store.check import problems
from corrigenda.editing.store.exchange import merge
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import Catalogue, ServingSettings

pytestmark = [
    needs_encoder,
    pytest.mark.usefixtures("few_background_prompts"),
]

EDITS = [
    Edit(
        "Who is the chief executive of Vantrello Foods?",
        "Ada",
        subject="Vantrello Foods",
        rephrases=("Who runs Vantrello Foods?", "What do cows drink?"),
        protected=("How many people work for Vantrello Foods?",),
        localities=(Locality("Who founded Kmelt?"),),
        id="leader",
    ),
    Edit("In which city is Vantrello Foods based?", "Oslo", subject="Vantrello Foods", id="seat"),
]
CONFIG = AssociativeConfig(contexts=1, steps=2, router="meaning")
OTHER = "were written with another rule for finding edits than this version's"
UNSAID = "do not say with which rule for finding edits they were written"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def write(folder, edits=EDITS, config=CONFIG, name=None):
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    edited.name = name
    edited.edit(edits, keep_unsolved=True)
    edited.save_pretrained(folder)
    edited.detach()
    return folder


@pytest.fixture(scope="module")
def saved(model, few_background_prompts, tmp_path_factory):
    return write(tmp_path_factory.mktemp("rule") / "edits", name=str(model))


@pytest.fixture
def unsaid(model, tmp_path, monkeypatch):
    """A folder of a version that did not record its rule."""
    with monkeypatch.context() as patched:
        patched.setattr(batch, "said_of_rule", lambda method: {})
        return write(tmp_path / "unsaid", name=str(model))


@pytest.fixture
def later(monkeypatch):
    """This version has become a later one, with another rule."""
    monkeypatch.setattr(recorded_rule, "rule_identity", lambda: "99-later")


def rule_in(folder):
    store = EditStore.open(folder)
    store.close()
    return store.history.rule


def test_a_store_says_with_which_rule_it_was_written(saved, load_edited):
    assert rule_in(saved) == rule_identity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_edited(saved)
    assert [body.get("rule") for kind, body in entries_of(saved) if kind == "ground"] == [rule_identity()]


def test_edits_that_tokens_find_have_no_such_rule(tmp_path, later):
    folder = write(tmp_path / "tokens", EDITS[1:], AssociativeConfig(contexts=1, steps=2, router="tokens"))
    assert rule_in(folder) is None
    assert "rule" not in works("verify", folder)


def test_another_rule_is_said_where_a_folder_is_opened(saved, load_edited, later, model, caplog):
    with pytest.warns(UserWarning, match=OTHER) as said:
        load_edited(saved)
    # Python 3.13 warns of what earlier tests left to the garbage collector.
    (sentence,) = (str(one.message) for one in said if one.category is not ResourceWarning)
    assert f"`corrigenda migrate {saved}`" in sentence
    store = EditStore.open(saved)
    assert nearest_edits(store, "Who runs Vantrello Foods?", str(model))["edit"] == "leader"
    routed_requests(store, ["Who runs Vantrello Foods?"], str(model))
    store.close()
    assert len(store.notices) == 2 and all(OTHER in notice for notice in store.notices)
    for command in (("verify", saved), ("why", saved, "Who runs Vantrello Foods?")):
        assert OTHER in " ".join(works(*command).split())
    assert problems(saved) == []
    with caplog.at_level(logging.WARNING, "corrigenda"):
        catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": saved}))
        catalogue.read([(None, saved)])
    assert [OTHER in record.message for record in caplog.records] == [True]


def test_found_by_tokens_no_rule_counts(saved, later):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EditedModel.from_pretrained(tiny_model(), saved, tokenizer=tiny_tokenizer(), router="tokens").detach()


def test_a_folder_that_says_no_rule_is_opened_and_that_is_said(unsaid, load_edited):
    assert rule_in(unsaid) is None
    with pytest.warns(UserWarning, match=UNSAID) as said:
        load_edited(unsaid)
    assert len([one for one in said if one.category is not ResourceWarning]) == 1


def test_migrate_says_what_is_decided_otherwise_and_records_the_rule(unsaid, load_edited):
    before = entries_of(unsaid)
    screen = " ".join(works("migrate", unsaid).split())
    assert "The rephrasing of \"leader\", 'What do cows drink?', gets the base model's answer." in screen
    assert "of 6 questions of its edits all but 1 are decided as they say" in screen
    after = entries_of(unsaid)
    assert after[: len(before)] == before and [kind for kind, _ in after[len(before) :]] == ["note"]
    assert rule_in(unsaid) == rule_identity() and problems(unsaid) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_edited(unsaid)
    assert "there is nothing to migrate" in refused("migrate", unsaid)


def test_of_another_rule_edits_are_written_anew_for_this_one(saved, later, model, tmp_path):
    store = EditStore.open(saved)
    assert rerouted(store, "meaning", tmp_path / "anew", str(model)) == 2
    store.close()
    assert rule_in(tmp_path / "anew") == rule_identity()


def test_a_merge_of_two_rules_says_so_and_a_first_one_brings_its_own(saved, unsaid, tmp_path):
    other = EditStore.open(saved)
    into = EditStore.open(unsaid, write=True)
    merge(into, other)
    assert into.history.rule is None and sum("another rule for finding" in notice for notice in into.notices) == 1
    empty = shutil.copytree(write(tmp_path / "empty", []), tmp_path / "copy")
    first = EditStore.open(empty, write=True)
    merge(first, other)
    assert first.history.rule == rule_identity() and not first.notices
    for store in (other, into, first):
        store.close()
