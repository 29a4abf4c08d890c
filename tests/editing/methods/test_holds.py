"""An edit is asked before it is written: what does not hold is solved anew, and else left out and named."""

import json
from dataclasses import replace

import pytest
import torch
from command_line import corrigenda, works
from tiny import save_tiny, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel, MemoirConfig, WiseConfig
from corrigenda.editing.store.check import problems
from corrigenda.editing.store.exchange import exported, merge
from corrigenda.editing.store.store import EditStore, compact

EASY = Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka")
HARD = Edit("The road from Ostania leads", "over nine hills, past the old mill, to seven stones by the sea", id="road")
OTHER = Edit("The painter of Grebz was", "Oto", id="grebz")
QUICK = AssociativeConfig(router="tokens", contexts=1, steps=40, retries=0, formats="own")
"""Enough for EASY and OTHER; from HARD one step is kept, by `too_few_steps`."""

pytestmark = pytest.mark.usefixtures("few_background_prompts")


def answered(edited, edit, route=0):
    """Whether the patched model's own forward has every token of the target first, and its end where it is learnt."""
    prompt, target = edited.prompts.encode_with_target(edit.prompt, edit.target)
    target = [*target, edited.prompts.eos] if edited.config.eos else target
    ids = torch.tensor([prompt + target[:-1]])
    with torch.no_grad(), edited.teacher_forcing(ids, [len(prompt)], [ids.shape[1]]) as routes:
        logits = edited.model(ids).logits[0, len(prompt) - 1 :]
        assert routes() == [route]
    return logits.argmax(-1).tolist() == target


@pytest.fixture
def too_few_steps(monkeypatch):
    """Edits of more than eight answer positions get one step of almost no length, however often they are tried."""
    from corrigenda.editing.methods.associative.method import Associative

    inner = Associative._solve

    def solve(self, problems, retry):
        config = self.config
        long = any(len(problem.values) > 8 for problem in problems)
        if long:
            assert len(problems) == 1
            self.config = replace(config, steps=1, relative_rate=1e-6, start_norm=1e-6)
            for problem in problems:
                problem.scaled.data.mul_(1e-6)
        try:
            inner(self, problems, retry)
        finally:
            self.config = config

    monkeypatch.setattr(Associative, "_solve", solve)
    monkeypatch.setattr("corrigenda.editing.methods.associative.method._STEP_TOKENS", 1)


@pytest.mark.parametrize("gain", [1.0, 2.0, 30.0])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_held_is_what_the_patched_model_answers(sharp_model, wrap, steps, gain):
    config = AssociativeConfig(router="tokens", contexts=2, steps=steps, retries=0, gain=gain, threshold=0.0)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    edits = [EASY, HARD, OTHER]
    written = edited.edit(edits, keep_unsolved=True)
    assert [result.held for result in written] == [answered(edited, edit, i) for i, edit in enumerate(edits)]
    if steps == 40:
        assert all(result.held for result in written)
    if (steps, gain) == (1, 1.0):
        assert not written[1].held and HARD in written.failing


@pytest.mark.parametrize(
    "config",
    [
        *(MemoirConfig(contexts=2, steps=steps, top_k=60, learning_rate=1.0, threshold=0.0) for steps in (2, 40)),
        MemoirConfig(contexts=2, steps=40, top_k=60, learning_rate=1.0, threshold=0.0, record_rank=1, batch_size=2),
        *(
            WiseConfig(contexts=2, steps=steps, learning_rate=0.5, act_ratio=0.0, save_every=9, merge_every=None)
            for steps in (1, 30)
        ),
        WiseConfig(
            contexts=2,
            steps=30,
            learning_rate=0.5,
            act_ratio=0.0,
            save_every=9,
            merge_every=None,
            record_rank=1,
            batch_size=2,
        ),
    ],
    ids=lambda config: f"{config.method}-{config.steps}-{config.record_rank}",
)
def test_held_of_methods_that_share_a_memory(sharp_model, wrap, config):
    """After one batch alone: later edits disturb earlier ones."""
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    edits = [EASY, HARD][: config.batch_size]
    written = edited.edit(edits)
    shared = not edited.method.names_edits
    held = [answered(edited, edit, 0 if shared else i) for i, edit in enumerate(edits)]
    assert [result.held for result in written] == held
    assert edited.edits == edits and written.unsolved == []
    assert [edit.id for edit in written.failing] == [edit.id for edit, holds in zip(edits, held) if not holds]


def test_what_does_not_hold_is_solved_anew(sharp_model, wrap):
    config = AssociativeConfig(router="tokens", contexts=1, steps=6, gain=1.0, start_norm=0.01, retries=0)
    once = wrap(sharp_model(), tiny_tokenizer(), config).edit([HARD, OTHER])
    assert not once[0].held
    edited = wrap(sharp_model(), tiny_tokenizer(), replace(config, retries=3))
    again = edited.edit([HARD, OTHER])
    assert again[0].held and again[0].steps > 6 and answered(edited, HARD)
    if once[1].held:  # what holds is left as it is
        assert again[1] == pytest.approx(once[1], rel=1e-4)


def test_an_unsolved_edit_is_recorded_named_and_not_applied(sharp_model, wrap, too_few_steps, tmp_path):
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    never = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    written = edited.edit([EASY, HARD, OTHER], store=tmp_path / "edits")
    never.edit([EASY, OTHER])
    assert [result.held for result in written] == [True, False, True]
    assert (written.unsolved, written.failing) == ([HARD], [])
    assert edited.edits == [EASY, OTHER]
    (notice,) = edited.store.notices
    assert notice.startswith('Edit "road" is left out: its own prompt does not get its target (loss ')
    for name, tensor in edited.method.state().items():
        assert torch.equal(tensor, never.method.state()[name]), name
    assert edited.answer([HARD.prompt], 4)[0].edit is None
    history = edited.store.history
    assert list(history.statuses().values()) == ["applied", "unsolved", "applied"]
    assert problems(tmp_path / "edits") == []
    assert len(exported(edited.store)) == 2

    assert edited.edit([EASY, HARD, OTHER], resume=True) == []  # it is recorded
    assert edited.undo(["road"]).edits == []
    assert [stored.id for stored in edited.redo(since="2020").edits] == []
    assert edited.redo("road").edits[0].id == "road"  # by its id it goes in, though it does not hold
    assert edited.edits == [EASY, HARD, OTHER]
    edited.undo("road")
    assert list(edited.store.history.statuses().values()) == ["applied", "undone", "applied"]


def test_what_is_read_again_is_what_was_written(sharp_model, wrap, too_few_steps, tmp_path):
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    edited.edit([EASY, HARD, OTHER], store=tmp_path / "edits")
    again = EditedModel.from_pretrained(sharp_model(), tmp_path / "edits", tokenizer=tiny_tokenizer())
    assert again.edits == [EASY, OTHER]
    for name, tensor in edited.method.state().items():
        assert torch.equal(tensor, again.method.state()[name]), name
    again.detach()


def test_an_unsolved_edit_supersedes_nothing(sharp_model, wrap, too_few_steps):
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    old = Edit(HARD.prompt, "north", id="old")
    edited.edit([EASY, old])
    before = {name: tensor.clone() for name, tensor in edited.method.state().items()}
    written = edited.edit([HARD, OTHER])
    assert [edit.id for edit in edited.edits] == ["zubrowka", "old", "grebz"]
    assert written.unsolved == [HARD]
    assert edited.generate_text([HARD.prompt], 4) == ["north"]
    edited.undo("grebz")
    for name, tensor in edited.method.state().items():
        assert torch.equal(tensor, before[name]), name
    edited.redo("road")
    assert [edit.id for edit in edited.edits] == ["zubrowka", "road"]


@pytest.mark.parametrize("size", [1, 4])
def test_what_an_unsolved_edit_of_a_stream_was_to_supersede_is_written(
    sharp_model, wrap, too_few_steps, size, tmp_path
):
    """As it would stay, had it come in a stream before."""
    first, second = (Edit(HARD.prompt, target, id=target) for target in ("south", "north"))
    far = Edit(HARD.prompt, HARD.target + " and back", id="far")
    edited = wrap(sharp_model(), tiny_tokenizer(), replace(QUICK, batch_size=size))
    told = []
    written = edited.edit([first, EASY, second, far, HARD, OTHER], store=tmp_path / "edits", on_progress=told.append)
    assert {edit.id for edit in edited.edits} == {"zubrowka", "north", "grebz"}
    assert edited.generate_text([HARD.prompt], 4) == ["north"]
    assert written.unsolved == [HARD, far] and written.declined == [(first, "road")]
    assert 'Edit "north" is written after all, for "road" does not hold.' in edited.store.notices
    assert told[-1].passed == 6 and sum(len(one.edits) for one in told) == len(written) == 5
    statuses = edited.store.history.statuses()
    kept = {stored.id: statuses[seq] for seq, stored in edited.store.history.edits.items()}
    assert kept == {
        "zubrowka": "applied",
        "road": "unsolved",
        "far": "unsolved",
        "north": "applied",
        "grebz": "applied",
    }
    assert problems(tmp_path / "edits") == []
    again = EditedModel.from_pretrained(sharp_model(), tmp_path / "edits", tokenizer=tiny_tokenizer())
    assert {edit.id for edit in again.edits} == {"zubrowka", "north", "grebz"}
    assert edited.edit([first, EASY, second, far, HARD, OTHER], resume=True) == []


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("moment", ["before the last", "before the fallback"])
def test_what_a_kill_kept_from_being_written_is_written_when_the_stream_goes_on(
    sharp_model, wrap, too_few_steps, tmp_path, monkeypatch, moment
):
    """The earlier edit was recorded as left out for one that then did not hold."""
    stream = [Edit(HARD.prompt, "north", id="north"), EASY, HARD, OTHER]
    edited = wrap(sharp_model(), tiny_tokenizer(), replace(QUICK, batch_size=1))

    def killed(*args):
        raise Killed

    def told(progress):
        if progress.edits == [EASY] and moment == "before the last":
            raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr("corrigenda.editing.model.fallback.Fallbacks._write", killed)
        edited.edit(stream, store=tmp_path / "edits", on_progress=told)
    edited.detach()
    again = EditedModel.from_pretrained(sharp_model(), tmp_path / "edits", tokenizer=tiny_tokenizer())
    again.edit(stream, store=tmp_path / "edits", resume=True)
    assert {edit.id for edit in again.edits} == {"north", "zubrowka", "grebz"}
    assert again.generate_text([HARD.prompt], 4) == ["north"]
    assert again.edit(stream, resume=True) == []
    again.detach()


def test_no_neighbour_answers_for_an_unsolved_edit(sharp_model, wrap, too_few_steps):
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    edited.edit(Edit("The road from Ostania to Grebz leads", "west", id="neighbour"))
    assert edited.answer([HARD.prompt], 2)[0].edit.id == "neighbour"
    edited.edit(HARD)
    (answer,) = edited.answer([HARD.prompt], 2)
    assert answer.edit is None and answer.provenance.withdrawn == "road"


def test_kept_unsolved_edits_are_in_the_memory(sharp_model, wrap, too_few_steps):
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    written = edited.edit([EASY, HARD], keep_unsolved=True)
    assert (written.unsolved, written.failing) == ([], [HARD])
    assert edited.edits == [EASY, HARD]
    assert "written all the same" in edited.store.notices[0]


def test_the_command_line_names_them_and_ends_with_status_3(too_few_steps, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = save_tiny(tmp_path / "model")
    file = tmp_path / "facts.jsonl"
    file.write_text(
        "".join(json.dumps({"id": e.id, "prompt": e.prompt, "target": e.target}) + "\n" for e in (EASY, HARD))
    )
    options = ("edit", "--model", model, "--edits", file, "--json", tmp_path / "scores.json", "--batch-size", 2)
    ended = corrigenda(*options, "--out", tmp_path / "out")
    assert ended.exit_code == 3, ended.output
    screen = " ".join(ended.stdout.split())
    assert 'Edit "road" is left out: its own prompt does not get its target' in screen
    assert "Wrote 1 edit in" in screen and screen.endswith("Of 2 edits, 1 holds; not road.")
    result = json.loads((tmp_path / "scores.json").read_text())
    assert (result["n"], result["held"], result["unsolved"], result["failing"]) == (1, 1, ["road"], [])
    listed = json.loads(works("log", tmp_path / "out", "--status", "unsolved", "--json"))
    assert [(row["id"], row["held"]) for row in listed] == [("road", False)]
    assert "All 4 entries hold; 1 edit in effect." in works("verify", tmp_path / "out")
    found = json.loads(works("why", tmp_path / "out", HARD.prompt, "--model", model, "--json"))
    assert (found["edit"], found["undone"]["id"]) == (None, "road")
    said = " ".join(works("why", tmp_path / "out", HARD.prompt, "--model", model).split())
    assert 'Of the edits that were left out as unsolved, "road" comes nearest: its score is 1.000.' in said
    resumed = corrigenda(*options, "--out", tmp_path / "out", "--resume")
    assert resumed.exit_code == 0 and "2 of 2 edits were recorded before." in " ".join(resumed.stdout.split())
    assert "Put in again 1 edit: road." in works("redo", tmp_path / "out", "road")

    kept = corrigenda(*options, "--out", tmp_path / "kept", "--keep-unsolved")
    assert kept.exit_code == 3 and "is written all the same" in " ".join(kept.stdout.split())
    result = json.loads((tmp_path / "scores.json").read_text())
    assert (result["n"], result["held"], result["unsolved"], result["failing"]) == (2, 1, [], ["road"])


def test_a_merge_takes_what_holds_and_leaves_unsolved_ones_out(sharp_model, wrap, too_few_steps, tmp_path):
    for name, edits in (("one", [EASY, HARD]), ("two", [HARD, OTHER])):
        writer = wrap(sharp_model(), tiny_tokenizer(), QUICK)
        writer.edit(edits, store=tmp_path / name)
        writer.close()
    one, two = EditStore.open(tmp_path / "one", write=True), EditStore.open(tmp_path / "two")
    merged = merge(one, two)
    assert merged.added == ["grebz"] and merged.out == {}
    assert list(one.history.statuses().values()) == ["applied", "unsolved", "applied"]
    two.close()
    kept = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    kept.edit(HARD, store=tmp_path / "three", keep_unsolved=True)
    kept.close()
    three = EditStore.open(tmp_path / "three")
    assert merge(one, three).out == {"road": "unsolved"}
    assert "does not hold, and a merge leaves it out" in one.notices[-1]
    assert compact(one, forget_undone=True) == ["road"]
    with pytest.raises(CorrigendaError, match="no longer kept"):
        one.redo(one.selected(["road"], wanted=False))
    one.close()
    three.close()


def test_an_edit_that_its_own_prompt_does_not_find_is_named(sharp_model, wrap):
    """A router by tokens knows neither order nor count."""
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    first, second = (
        Edit(f"Who lives at {n} Elm Road?", name, id=name) for n, name in (("1 1 2", "Ona"), ("1 2 2", "Oto"))
    )
    edited.edit([first, OTHER])
    assert edited.store.notices == []
    edited.edit([second])
    (answer,) = edited.answer([second.prompt], 2)
    assert answer.edit.id == "Ona"
    assert edited.store.notices == ['Edit "Oto" is written, but its own prompt does not find it: "Ona" answers that.']


@pytest.mark.parametrize("target", ["<|im_end|>", "Lutz<|im_end|>City", " <|im_start|>"])
def test_a_target_with_a_special_token_is_refused(sharp_model, wrap, target):
    """Decoding leaves it out: "Lutz" would be all that anybody sees of an edit that holds by its tokens."""
    edited = wrap(sharp_model(), tiny_tokenizer(), QUICK)
    with pytest.raises(CorrigendaError, match=r"The target of edit 'x' holds '<\|im_.*' .* without it\."):
        edited.edit(Edit(EASY.prompt, target, id="x"))
    assert edited.store is None
