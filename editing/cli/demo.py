"""The demo: a model's answers before its edits, after them, in a new process, and with one of them taken out."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..backbone.background import background_prompts
from ..edits.demo_facts import OTHER_QUESTION
from ..edits.edit import Edit
from ..errors import CorrigendaError
from ..methods.config import CONFIG_NAME, EditingConfig
from ..model.answers import Answer
from ..model.card import CARD_NAME, is_generated
from ..model.edited_model import EditedModel
from ..scores.evaluate import Evaluator, normalised
from ..scores.report import scores_table, write_json
from ..shown import one_line, shortened
from ..store.files import HEAD_NAME, LEDGER_NAME, is_ledger
from ..store.migrate import EDITS_NAME, MANIFEST_NAME, TENSORS_NAME
from .inputs import check_out as check_new
from .panels import MachineOptions
from .run import load, result_of, score
from .stream import StoppedError, write_stream

SCORES_NAME = "scores.json"
NEW_TOKENS = 24
OTHER = "Something else about it"
SHOWN_EDITS, SHOWN_OTHERS, SHOWN_UNRELATED = 5, 2, 3
_ASKED_FOR_EACH_SHOWN = 2
_OURS = {LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm", HEAD_NAME, SCORES_NAME}
_WRITTEN_BY = "corrigenda demo"
_FORMERLY_OURS = {MANIFEST_NAME, EDITS_NAME, TENSORS_NAME, CONFIG_NAME, SCORES_NAME}


class Question(NamedTuple):
    """One prompt that the demo asks before and after; `edit` is the one it is about, if any."""

    section: str
    prompt: str
    edit: Edit | None


class AnsweredQuestion(NamedTuple):
    """A question with the unedited model's answer and the edited one's."""

    question: Question
    before: Answer
    after: Answer

    @property
    def right(self) -> bool:
        """Whether the new answer is the correction, or the old answer where nothing was corrected."""
        edit = self.question.edit
        return normalised(self.after.text) == normalised(self.before.text if edit is None else edit.target)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise where the demo could not save; with `overwrite` an earlier demo's folder is as good as a new one."""
    if not (overwrite and _is_earlier_demo(out)):
        if overwrite and out.is_dir() and any(out.iterdir()):
            raise CorrigendaError(f"The folder {out} is not an earlier demo's alone: it is not overwritten.")
        check_new(out)


def _is_earlier_demo(folder: Path) -> bool:
    """Whether a folder holds saved edits and nothing that this demo did not put there, by the demo's own word."""
    try:
        scores = json.loads((folder / SCORES_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(scores, dict) or scores.get("written_by") != _WRITTEN_BY:
        return False
    names = {path.name for path in folder.iterdir()} - ({CARD_NAME} if is_generated(folder / CARD_NAME) else set())
    return (is_ledger(folder / LEDGER_NAME) and names <= _OURS) or (MANIFEST_NAME in names and names <= _FORMERLY_OURS)


def run(
    console: Console,
    model: str,
    edits: Sequence[Edit],
    out: Path,
    *,
    config: EditingConfig,
    template: str,
    overwrite: bool,
    threads: int | None,
    source: dict[str, Any],
) -> None:
    """Ask, edit, ask again, score, save, ask once more in a new process, and take one edit out."""
    edited = load(console, model, MachineOptions(threads), config=config, template=template)
    questions = choose(edits)
    console.print()
    _step(console, 1, f"Asking {model} {len(questions)} questions, as it is.")
    before = _ask(console, edited, questions)
    _step(console, 2, f"Writing {len(edits)} corrections, one stream ({config.method}).")
    stream = write_stream(edited, edits, console)
    if isinstance(stream.ended_by, StoppedError):
        raise KeyboardInterrupt
    if stream.ended_by is not None:
        raise stream.ended_by
    console.print(f"   {stream.done} edits in {stream.seconds:.1f} s: {stream.rate:.2f} edits/s.")
    _step(console, 3, "Asking again, in free generation:")
    after = _ask(console, edited, questions)
    shown = choose_shown([AnsweredQuestion(*row) for row in zip(questions, before, after)])
    console.print(answers_table(shown))
    if not config.eos:
        console.print(
            f"As published, {config.method} does not learn where an answer ends, so answers run on: `corrigenda edit "
            "--eos` teaches it.",
            soft_wrap=True,
        )
    evaluator = Evaluator(edited)
    scores = score(console, evaluator, edits)
    console.print(scores_table(scores, f"Scores of all {scores.n} edits after the stream (0 to 1)"))
    _save(edited, out, overwrite)
    result = result_of(edited, scores, stream.seconds, "writing", {"model": model, **source})
    write_json(out / SCORES_NAME, {"written_by": _WRITTEN_BY, **result, **stream.counts()})
    _step(console, 4, f"Saved in {out}, with {out / SCORES_NAME}. Loading it in a new process:")
    with console.status("Asking in a new process"):
        again = reloaded_answers(model, out, [question.prompt for question in questions], threads)
    same = sum(found["text"] == answer.text for found, answer in zip(again, after))
    for question, found in [(q, f) for q, f in zip(questions, again) if q in [row.question for row in shown]][::3]:
        console.print(Text(f"   {shortened(question.prompt, 60)}  →  {shortened(found['text'], 40)}"), soft_wrap=True)
    if same != len(after):
        raise CorrigendaError(f"Only {same} of {len(after)} answers are the same after the reload.")
    console.print(f"   All {same} answers are the same as before the reload.", style="green")
    _undo(console, edited, next(row for row in shown if row.question.edit is not None))


def _step(console: Console, number: int, text: str) -> None:
    """Say what comes next."""
    console.print(Text.assemble((f"{number}.", "bold"), f" {text}"), soft_wrap=True)


def _undo(console: Console, edited: EditedModel, row: AnsweredQuestion) -> None:
    """Take the edit of one shown question out of the model in memory (not of what was saved), and ask it again."""
    question = row.question
    _step(console, 5, f"Taking one edit out again ({question.edit.id}):")
    try:
        edited.remove(question.edit.id)
    except CorrigendaError as error:
        console.print(Text(f"   {one_line(str(error))}"), soft_wrap=True)
        return
    answer = _ask(console, edited, [question])[0]
    same = "the unedited model's" if answer.text == row.before.text else "not the unedited model's"
    console.print(
        Text(f"   {shortened(question.prompt, 60)}  →  {shortened(answer.text, 40) or '(nothing)'}  ({same})"),
        soft_wrap=True,
    )


def choose(edits: Sequence[Edit]) -> list[Question]:
    """Edits from all over the stream: their prompts, one rephrasing and another question of each; unrelated ones."""
    count = SHOWN_EDITS * _ASKED_FOR_EACH_SHOWN
    asked = edits[:: max(1, len(edits) // count)][:count]
    local = dict.fromkeys(locality.prompt for edit in edits for locality in edit.localities)
    unrelated = list(local or background_prompts())[: SHOWN_UNRELATED * _ASKED_FOR_EACH_SHOWN]
    return [
        *(Question("As written", edit.prompt, edit) for edit in asked),
        *(Question("In other words", edit.rephrases[0], edit) for edit in asked if edit.rephrases),
        *(Question(OTHER, edit.metadata[OTHER_QUESTION], None) for edit in asked if OTHER_QUESTION in edit.metadata),
        *(Question("Unrelated", prompt, None) for prompt in unrelated),
    ]


def choose_shown(asked: Sequence[AnsweredQuestion]) -> list[AnsweredQuestion]:
    """A handful of what was asked; by preference what the unedited model has anything to say to.

    Whether the new answer is right plays no part in the choice.
    """
    talkative = sorted(asked, key=lambda row: not row.before.text)
    edits = [row.question.edit for row in talkative if row.question.section == "As written"][:SHOWN_EDITS]
    rest = [row for row in talkative if row.question.edit is None]
    other = [row for row in rest if row.question.section == OTHER][:SHOWN_OTHERS]
    unrelated = [row for row in rest if row.question.section != OTHER][:SHOWN_UNRELATED]
    return [row for row in asked if row in other or row in unrelated or row.question.edit in edits]


def _ask(console: Console, edited: EditedModel, questions: Sequence[Question]) -> list[Answer]:
    with console.status(f"Answering {len(questions)} questions"):
        return edited.answer([question.prompt for question in questions], NEW_TOKENS)


def answers_table(shown: Sequence[AnsweredQuestion]) -> Table:
    """Every question with its answers; green where the new answer is right, red where it is not."""
    table = Table(caption="Long answers are cut; (nothing): the model ended at once.", caption_justify="left")
    for heading in ("question", "before", "after", "correction applied"):
        table.add_column(heading)
    section = None
    for row in shown:
        if row.question.section != section:
            section = row.question.section
            table.add_section()
            table.add_row(Text(section, "bold"))
        table.add_row(
            Text(row.question.prompt),
            Text(_shown(row.before), "dim"),
            Text(_shown(row.after), "green" if row.right else "red"),
            Text(row.after.edit.target if row.after.edit else row.after.provenance.memory or "none"),
        )
    return table


def _shown(answer: Answer) -> str:
    return shortened(answer.text, 60) or "(nothing)"


def _save(edited: EditedModel, out: Path, overwrite: bool) -> None:
    if overwrite and out.is_dir() and _is_earlier_demo(out):
        for path in out.iterdir():
            path.unlink()
    edited.save_pretrained(out.resolve())


def reloaded_answers(model: str, out: Path, prompts: Sequence[str], threads: int | None) -> list[dict[str, Any]]:
    """What `corrigenda generate` answers in a process of its own, from the saved folder."""
    with tempfile.TemporaryDirectory() as folder:
        asked, found = Path(folder, "prompts.jsonl"), Path(folder, "answers.json")
        asked.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "corrigenda.editing.cli", "generate", "--model", model]
        command += ["--edits-dir", str(out), "--prompts", str(asked), "--json", str(found)]
        command += ["--max-new-tokens", str(NEW_TOKENS)]
        command += [] if threads is None else ["--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("Error: ")
            raise CorrigendaError(f"The saved edits could not be used in a new process: {reason}")
        return json.loads(found.read_text(encoding="utf-8"))
