"""Streams that people bring: ids that repeat between files and runs, and many records of one prompt."""

from __future__ import annotations

import json

import pytest
import stores
from command_line import TEMPLATE, given, works, write_records
from tiny import save_tiny, tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit
from corrigenda.editing.edits.identifiers import numbered_ids
from corrigenda.editing.model import saving
from corrigenda.editing.model.answers import Answer
from corrigenda.editing.store.matching import matched

pytestmark = pytest.mark.usefixtures("few_background_prompts")

CONFIG = AssociativeConfig(router="tokens", contexts=2, steps=3, batch_size=2)
PLACES = "Tallow", "Wick", "Marn", "Voss"


def seat(place: str, id: str | None = "66", target: str = "Varna") -> Edit:
    return Edit(f"Where is the seat of {place}?", f"{target} {place}", id=id)


def asking(count: int, id: str = "n") -> list[Edit]:
    """As many edits of one prompt, each with another target."""
    return [Edit("Who leads Vantrello Foods?", f"Ines {n}", id=f"{id}{n}") for n in range(count)]


@pytest.fixture
def model(wrap):
    return wrap(tiny_model(), tiny_tokenizer(), CONFIG)


@pytest.fixture
def solved(model, monkeypatch):
    """The ids of the edits that were solved."""
    found, solve = [], model.method.solve

    def watched(edits):
        found.extend(edit.id for edit in edits)
        return solve(edits)

    monkeypatch.setattr(model.method, "solve", watched)
    return found


def ids(model) -> list[str]:
    return [edit.id for edit in model.edits]


class TestIds:
    def test_numbers_after_an_id(self) -> None:
        for name in ("66", "66#2", "66#31"):
            assert [found for found, _ in zip(numbered_ids(name), range(3))] == ["66", "66#2", "66#3"]

    @pytest.mark.parametrize("given", [list, iter])
    def test_in_one_stream(self, model, given) -> None:
        model.edit(given([seat("Tallow"), seat("Wick"), seat("Marn", "66#2"), seat("Voss")]))
        assert ids(model) == ["66", "66#3", "66#2", "66#4"] if given is list else ["66", "66#2", "66#3", "66#4"]
        assert len(model.store.notices) == (2 if given is list else 3)
        assert model.store.notices[0].endswith("""": that id is another edit's.""")

    def test_between_streams(self, model) -> None:
        for place in PLACES:
            model.edit([seat(place)])
        assert ids(model) == ["66", "66#2", "66#3", "66#4"]
        assert model.store.notices == [
            f'Edit "66" is written as "66#{n}": that id is another edit\'s.' for n in (2, 3, 4)
        ]
        assert model.answer([seat("Marn").prompt])[0].edit.id == "66#3"

    def test_an_id_is_free_again_once_its_edit_is_out_and_no_number_is_used_twice(self, model) -> None:
        model.edit([seat("Tallow"), seat("Wick")])
        model.undo(["66", "66#2"])
        model.edit([seat("Marn"), seat("Voss")])
        assert ids(model) == ["66", "66#3"]

    def test_a_stream_that_goes_on_knows_its_own(self, model, load_edited, tmp_path) -> None:
        folder, files = (
            tmp_path / "edits",
            [[seat(place) for place in PLACES[:2]], [seat(place) for place in PLACES[2:]]],
        )
        for file in files:
            model.edit(file, store=folder, resume=True)
        assert ids(model) == ["66", "66#2", "66#3", "66#4"]
        count = model.store.ledger.count
        for file in files:
            assert model.edit(file, resume=True) == []
        assert model.store.ledger.count == count
        model.undo("66#3")
        assert model.edit(files[1], resume=True) == []  # what was undone stays so
        assert ids(model) == ["66", "66#2", "66#4"]

    def test_an_id_is_bounded_when_it_is_written(self, model) -> None:
        model.edit(seat("Tallow", "x" * 256))
        with pytest.raises(CorrigendaError, match='"id" has 257 characters, more than 256'):
            model.edit(seat("Wick", "x" * 257))

    def test_two_files_of_one_name_and_two_of_standard_input(self, tmp_path, tiny) -> None:
        options = ("--model", tiny, "--steps", 3, "--template", TEMPLATE, "--out", tmp_path / "edits")
        records = [{"prompt": seat(place).prompt, "target": "Varna"} for place in PLACES]
        for number, record in enumerate(records[:2]):
            folder = tmp_path / str(number)
            folder.mkdir()
            file = write_records(folder / "train.jsonl", record)
            screen = works("edit", *options, "--edits", file, *(["--resume"] if number else []))
        assert 'Edit "train-00001" is written as "train-00001#2": that id is another edit\'s.' in screen
        for record in records[2:]:
            result = given(json.dumps(record), "edit", *options, "--edits", "-", "--resume")
            assert result.exit_code == 0
        assert "0 of 1 edits were recorded before." in result.output
        kept = [(edit.id, edit.prompt) for edit in saving.read(tmp_path / "edits").edits]
        names = ["train-00001", "train-00001#2", "stdin-00001", "stdin-00001#2"]
        assert kept == list(zip(names, [record["prompt"] for record in records]))
        result = given(json.dumps(records[3]), "edit", *options, "--edits", "-", "--resume")
        assert "1 of 1 edits were recorded before." in result.output
        for number in range(2):
            scores = tmp_path / "scores.json"
            works(
                "eval",
                "--model",
                tiny,
                "--edits-dir",
                tmp_path / "edits",
                "--edits",
                tmp_path / str(number) / "train.jsonl",
                "--json",
                scores,
            )
            assert json.loads(scores.read_text())["routed"] == 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


class TestOnePrompt:
    @pytest.mark.parametrize("count", [2, 5])
    def test_only_the_last_is_solved_and_each_other_is_named_once(self, model, solved, count) -> None:
        stream = asking(count)
        results = model.edit([*stream, seat("Tallow", "seat")])
        assert ids(model) == [f"n{count - 1}", "seat"] == solved
        assert model.store.notices == [
            f'Edit "{edit.id}" is left out: "n{count - 1}", which is about the same fact, comes later in the stream.'
            for edit in stream[:-1]
        ]
        assert len(results) == 2 and results.declined == [(edit, f"n{count - 1}") for edit in stream[:-1]]
        assert model.store.history.declined_as("n0").kept == f"n{count - 1}"

    def test_of_a_stream_that_is_not_known_before_those_of_one_batch(self, model, solved) -> None:
        model.edit(iter(asking(4)))
        assert solved == ["n1", "n3"] and ids(model) == ["n3"]
        assert len(model.store.notices) == 3

    def test_who_is_asked_gets_one_notice_for_each(self, model, solved) -> None:
        """The function's word counts, so that nothing can be left out before."""
        model.edit(asking(4), on_conflict=lambda edit, rival: "supersede")
        assert ids(model) == ["n3"] and len(solved) == 4
        assert model.store.notices == [
            f'Edit "n{n + 1}" supersedes "n{n}", which is about the same fact.' for n in range(3)
        ]

    def test_the_first_stays_where_conflicts_keep_it(self, model, solved) -> None:
        model.edit(asking(4), on_conflict="keep")
        assert ids(model) == ["n0"] == solved and len(model.store.notices) == 3

    def test_what_was_left_out_counts_as_recorded(self, model, load_edited, tmp_path) -> None:
        stream, passed = asking(5), []

        def stop(progress):
            if progress.passed == 2:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            model.edit(stream, store=tmp_path / "edits", on_progress=stop)
        model.detach()
        resumed = load_edited(tmp_path / "edits")
        resumed.edit(stream, store=tmp_path / "edits", resume=True, on_progress=lambda p: passed.append(p.passed))
        assert passed == [4, 5] and ids(resumed) == ["n4"]
        assert resumed.edit(stream, resume=True) == []

    def test_a_list_with_something_else_is_refused_before_anything_is_written(self, model) -> None:
        with pytest.raises(CorrigendaError, match=r"not an object: `load_edits` makes them of records\.$"):
            model.edit([seat("Tallow"), seat("Wick"), {"prompt": "p", "target": "t"}])
        assert model.store is None


class TestEval:
    def test_records_are_found_by_what_they_say(self, tmp_path) -> None:
        store = stores.new_store(tmp_path / "edits")
        first, *_ = stores.add(store, *[Edit(f"p{n}", "t", id=f"{n}") for n in range(3)])
        stores.add(store, Edit("p0", "u", id="newer"), supersedes=[[first]])
        store.undo(store.selected(["2"]))
        asked = [
            Edit("p0", "t", id="0"),  # superseded
            Edit("P0?", "t", id="x"),  # the same, under another id
            Edit("p0", "v", id="y"),  # of a fact that has another target by now
            Edit("p0", "u", id="1"),  # in effect, under another's id
            Edit("p1", "t", id="1"),
            Edit("p2", "t", id="2"),  # undone
            Edit("p3", "t", id="1"),  # not there, under another's id
        ]
        edits, superseded, missing = matched(asked, store.history)
        assert [(edit.prompt, edit.id) for edit in edits] == [
            ("p0", "newer"),
            ("p1", "1"),
            ("p2", None),
            ("p3", None),
        ]
        assert (superseded, missing) == (3, 2)

    def test_the_command_counts_and_scores_those_in_effect(self, tmp_path, tiny) -> None:
        records = [{"id": edit.id, "prompt": edit.prompt, "target": edit.target} for edit in asking(4)]
        file = write_records(tmp_path / "facts.jsonl", *records, {"prompt": seat("Wick").prompt, "target": "Varna"})
        options = ("--model", tiny, "--edits", file)
        screen = works("edit", *options, "--out", tmp_path / "edits", "--template", TEMPLATE)
        assert "Wrote 2 edits" in screen
        assert f"3 were left out: `corrigenda log {tmp_path / 'edits'} --status declined` has them." in screen
        scores = tmp_path / "scores.json"
        screen = works("eval", *options, "--edits-dir", tmp_path / "edits", "--json", scores)
        assert f"3 of 5 edits of the file are superseded, and not scored, in {tmp_path / 'edits'}." in screen
        found = json.loads(scores.read_text())
        assert (found["n"], found["rel"], found["settings"]["superseded"]) == (2, 1.0, 3)


class TestTargetsAsTheyStand:
    @pytest.mark.parametrize("chat", [False, True])
    @pytest.mark.parametrize(
        ("target", "answer"),
        [
            ("\n\treturn 1", "\n\treturn 1"),
            ("first\n\n  second\n", "first\n\n  second\n"),
            ("\tcell", "\tcell"),
            ("  twice", "  twice"),
            (" Rome", "Rome"),
        ],
    )
    def test_line_breaks_and_indentation_are_learnt_and_answered(self, wrap, target, answer, chat) -> None:
        config = AssociativeConfig(router="tokens", contexts=2, steps=40)
        model = wrap(tiny_model(), tiny_tokenizer(), config, chat_template=chat)
        prompt = "What stands in the file of the Krellin museum?"
        model.edit(Edit(prompt, target, id="x"))
        (found,) = model.answer([prompt])
        assert found.edit.target == target and found.text == answer
        assert model.evaluate().free_rel == 1

    def test_an_empty_answer_equals_no_target(self, wrap, monkeypatch) -> None:
        model = wrap(tiny_model(), tiny_tokenizer(), CONFIG)
        model.edit(Edit("What is the first word of the book?", "The", id="x"))
        nothing = [Answer("", None, 0.0)]
        monkeypatch.setattr(model, "answer_ids", lambda *_: nothing)
        assert model.evaluate().free_rel == 0
