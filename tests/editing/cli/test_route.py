"""`corrigenda route`: which requests edits would answer, without a model and without answering."""

import json

import pytest
from tiny import save_tiny
from typer.testing import CliRunner

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.cli import app
from corrigenda.editing.edits.fields import FieldError
from corrigenda.editing.model.route import doubtful, grouped, request_of, routed_requests
from corrigenda.editing.store.store import EditStore

pytestmark = pytest.mark.usefixtures("few_background_prompts")

EDITS = [
    Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="krellin"),
]
ASKED = ["Zubrowka has which capital?", "Who founded the Krellin museum?", "Why is the sky blue?"]


@pytest.fixture(scope="module")
def saved(few_background_prompts, tmp_path_factory):
    root = tmp_path_factory.mktemp("route")
    model = save_tiny(root / "model")
    edited = EditedModel.from_pretrained(str(model), config=AssociativeConfig(router="tokens", contexts=1, steps=5))
    edited.edit(EDITS)
    edited.save_pretrained(root / "edits")
    edited.detach()
    return root


def run(*arguments):
    return CliRunner().invoke(app, ["route", *map(str, arguments)])


def test_says_what_each_request_gets(saved, tmp_path):
    (tmp_path / "asked.txt").write_text("\n".join(ASKED))
    result = run(saved / "edits", "--prompts", tmp_path / "asked.txt", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert "2 of 3 requests would get the answer of one of 2 edits." in result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert [one["prompt"] for one in found] == ASKED
    assert [one["id"] for one in found] == ["zubrowka", "krellin", None]
    assert all((one["margin"] >= 0) == (one["id"] is not None) for one in found)
    assert set(found[0]) == {"prompt", "id", "score", "margin", "nearest", "reason"}


def test_it_decides_as_the_model_does(saved):
    model, tokenizer = load_base(str(saved / "model"))
    edited = EditedModel.from_pretrained(model, saved / "edits", tokenizer=tokenizer)
    answers = edited.answer(ASKED, 1)
    store = EditStore.open(saved / "edits")
    found = routed_requests(store, ASKED, str(saved / "model"))
    store.close()
    edited.detach()
    for answer, one in zip(answers, found):
        assert (answer.edit and answer.edit.id) == one.id
        assert answer.provenance.margin == pytest.approx(one.margin, abs=1e-6)


def test_new_edits_are_told_from_those_that_are_written(saved, tmp_path):
    new = [{"prompt": "Why is the sky blue?", "target_new": "It is not", "id": "sky"}]
    new += [{"prompt": "Zubrowka has which capital?", "target_new": "Nebel", "id": "other"}]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, new)))
    (tmp_path / "asked.txt").write_text("\n".join(ASKED))
    files = ("--prompts", tmp_path / "asked.txt", "--edits", tmp_path / "new.jsonl", "--json", tmp_path / "out.json")
    result = run(saved / "edits", *files)
    assert result.exit_code == 0, result.output
    assert "2 that of a new one, 1 of which an edit that is written answers now." in result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(one["id"], one["new"], one["before"]) for one in found] == [
        ("other", True, "zubrowka"),
        ("krellin", False, "krellin"),
        ("sky", True, None),
    ]


def test_doubtful_requests_come_first(saved):
    store = EditStore.open(saved / "edits")
    found = routed_requests(store, [*ASKED, "The capital of Zubrowka is"], str(saved / "model"))
    store.close()
    margins = [abs(one.margin) for one in doubtful(found)]
    assert margins == sorted(margins)
    groups = grouped(found)
    assert list(groups) == ["zubrowka", "krellin"]
    assert [one.margin for one in groups["zubrowka"]] == sorted(one.margin for one in groups["zubrowka"])


def test_reads_chats():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "Who leads it?"}]},
    ]
    assert request_of({"messages": turns}) == "Who leads it?"
    assert request_of({"messages": turns[:3]}) == "Hello"
    assert request_of({"prompt": "Who?"}) == "Who?"
    for wrong in (
        {},
        {"prompt": 3},
        {"messages": 3},
        {"messages": ["Who?"]},
        {"messages": turns[:1]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "user", "content": None}]},
    ):
        with pytest.raises(FieldError):
            request_of(wrong)


def test_what_is_asked_wrongly_is_said_in_one_sentence(saved, tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "one.txt").write_text("Who?\n")
    for arguments, sentence in (
        ((saved / "edits", "--prompts", tmp_path / "none.txt"), "none.txt"),
        (
            (saved / "edits", "--prompts", tmp_path / "asked.jsonl"),
            'the field "messages" has no turn of the role "user"',
        ),
        ((tmp_path, "--prompts", tmp_path / "one.txt"), "no saved edits"),
        ((saved / "edits", "--prompts", tmp_path / "one.txt", "--model", tmp_path / "no"), "no"),
        ((saved / "edits", "--prompts", tmp_path / "one.txt", "--most", "-1"), "at least 0"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert sentence in " ".join(result.output.split())


def test_edits_that_features_find_are_refused(tmp_path):
    from stores import new_store

    store = new_store(tmp_path / "edits", "memoir")
    with pytest.raises(CorrigendaError, match="found by features of the model"):
        routed_requests(store, ["Who?"], "smollm2")
    store.close()


def test_the_margins_are_drawn(saved, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "asked.txt").write_text("\n".join(ASKED))
    drawn = run(saved / "edits", "--prompts", tmp_path / "asked.txt", "--plot", tmp_path / "margins.png")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "margins.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    refused = run(saved / "edits", "--prompts", tmp_path / "asked.txt", "--plot", tmp_path / "margins.txt")
    assert refused.exit_code == 2 and "must be a .png, .pdf or .svg file" in refused.output


def test_a_plot_without_matplotlib_says_what_to_install(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "asked.txt").write_text("Who?")
    refused = run(saved / "edits", "--prompts", tmp_path / "asked.txt", "--plot", tmp_path / "margins.png")
    assert refused.exit_code == 2 and "pip install 'corrigenda[report]'" in " ".join(refused.output.split())


def test_decoys_are_for_edits_that_are_found_by_meaning(saved, tmp_path):
    (tmp_path / "asked.txt").write_text("Who?")
    (tmp_path / "decoys.txt").write_text("who owns it?\n")
    refused = run(saved / "edits", "--prompts", tmp_path / "asked.txt", "--decoys", tmp_path / "decoys.txt")
    assert refused.exit_code == 2 and "Decoys are for edits that are found by meaning" in refused.output
