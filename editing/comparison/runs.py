"""One run of a comparison: a stream of edits by one method, scored after so and so many, into a file of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..edits.edit import Edit
from ..methods.config import EditingConfig
from ..methods.registry import config_for
from ..model.edited_model import EditedModel
from ..scores.evaluate import Evaluator
from ..scores.report import commit, versions, write_json
from ..store.codec import fingerprint_of
from .plan import Plan, Run

_LONGEST_ANSWER = 16
"""Tokens by which the answers to protected questions are compared."""


def result_path(folder: Path, run: Run) -> Path:
    """Where a run's result is."""
    return folder / f"{run.name}.json"


def is_done(path: Path, plan: Plan, run: Run) -> bool:
    """Whether a file holds this run of this plan, to its end."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("asked") == _asked(plan, run) and found.get("complete") is True


def _asked(plan: Plan, run: Run) -> dict[str, Any]:
    """What makes a run this one, as JSON gives it back."""
    edits = None if plan.edits is None else str(plan.edits)
    asked: dict[str, Any] = {
        "model": plan.model,
        "edits": edits,
        "template": plan.template,
        "at": list(plan.at_of(run)),
    }
    asked |= {"protected": plan.protected} if plan.protected != "told" else {}
    asked |= {"scored": plan.scored} if plan.scored is not None else {}
    return json.loads(json.dumps({**asked, "method": run.method, "set": dict(run.settings)}, default=str))


def write_run(
    plan: Plan, run: Run, edits: Sequence[Edit], path: Path, base: tuple[Any, Any], tell: Callable[[str], None]
) -> None:
    """Write the edits and score them at each number of them; the file holds what was measured so far.

    A stream goes on from one number to the next, but where that would cut a batch of edits that depend on each other
    in two: the next number is then of a stream of its own. Seconds are of the thread on a CPU, which other work hardly
    lengthens, and of the clock where there is a GPU. base: the plan's model and its tokenizer, which are as they were
    afterwards. tell: takes a line for the user, once for each number of edits.
    """
    _forget_peak()
    config = config_for(run.method, **run.settings)
    told = edits if plan.protected == "told" else [dataclasses.replace(edit, protected=()) for edit in edits]
    result: dict[str, Any] = {}
    for stops in _streams(plan.at_of(run), config):
        edited = EditedModel.wrap(*base, config, template=plan.template, name=plan.model)
        try:
            result = result or _described(plan, run, edited)
            asked = {stop: _spread(edits[:stop], plan.scored) for stop in stops}
            for stop, mark in _marks(edited, told, asked):
                result["after"][str(stop)] = mark
                result["complete"] = stop == plan.at_of(run)[-1]
                write_json(path, result)
                tell(_line(run.name, stop, mark))
        finally:
            edited.detach()


def _streams(at: Sequence[int], config: EditingConfig) -> list[list[int]]:
    """The numbers of edits to score at, those of one stream together."""
    streams = [[at[0]]]
    for before, stop in itertools.pairwise(at):
        if before % config.batch_size and config.stands_on_earlier:
            streams.append([])
        streams[-1].append(stop)
    return streams


def _described(plan: Plan, run: Run, edited: EditedModel) -> dict[str, Any]:
    """A result without scores."""
    return {
        "name": run.name,
        "method": run.method,
        "asked": _asked(plan, run),
        "settings": edited.config.to_dict(),
        "device": _device(edited),
        "dtype": str(edited.model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "complete": False,
        "after": {},
    }


def _marks(
    edited: EditedModel, told: Sequence[Edit], asked: Mapping[int, Sequence[Edit]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """One stream: what is measured after each number of edits, of those that are `asked` there."""
    evaluator = Evaluator(edited)
    questions = {edit.id: edit.protected for of_stop in asked.values() for edit in of_stop if edit.protected}
    protected = {name: _texts(edited, texts) for name, texts in questions.items()}
    writing, done, held = 0.0, 0, 0
    for stop in asked:
        start = _seconds()
        written = edited.edit(told[done:stop], keep_unsolved=True)
        writing += _seconds() - start
        held += sum(bool(one.held) for one in written)
        done, start = stop, _seconds()
        scores = evaluator.score(asked[stop]).to_dict()
        stored = edited.store.history.edits.values()
        bytes_written = sum(one.bytes + fingerprint_of(one).nbytes for one in stored)
        yield (
            stop,
            {
                **scores,
                "same_subject": _kept(edited, asked[stop], protected),
                "held": held / stop,
                "seconds_per_edit": writing / stop,
                "edits_per_second": stop / writing if writing else None,
                "seconds_of_scoring": _seconds() - start,
                "bytes_per_edit": bytes_written / stop,
                "peak_megabytes": _peak(),
            },
        )


def _spread(edits: Sequence[Edit], most: int | None) -> Sequence[Edit]:
    """At most so many of the edits, evenly from their whole length."""
    count = len(edits) if most is None else min(most, len(edits))
    return [edits[(2 * i + 1) * len(edits) // (2 * count)] for i in range(count)]


def _line(name: str, count: int, mark: dict[str, Any]) -> str:
    shown = {"free Rel": "free_rel", "free Gen": "free_gen", "Loc": "loc", "same subject": "same_subject"}
    scores = ", ".join(f"{word} {mark[key]:.3f}" for word, key in shown.items() if mark[key] is not None)
    return f"{name}, {count} edits: {scores}; {mark['seconds_per_edit']:.2f} s an edit"


def _texts(edited: EditedModel, prompts: Sequence[str]) -> list[str]:
    return edited.generate_text(prompts, _LONGEST_ANSWER)


def _kept(edited: EditedModel, edits: Sequence[Edit], before: dict[str | None, list[str]]) -> float | None:
    """The share of protected questions that get the answer from before the first edit, word for word."""
    pairs = [
        (text, now)
        for edit in edits
        if edit.id in before
        for text, now in zip(before[edit.id], _texts(edited, edit.protected))
    ]
    return sum(text == now for text, now in pairs) / len(pairs) if pairs else None


def _seconds() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def _device(edited: EditedModel) -> str:
    device = edited.model.get_input_embeddings().weight.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _forget_peak() -> None:
    """Measure the most memory from here on: runs of one process are not each other's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float | None:
    """The most memory that the process, or on a GPU its tensors, have had since, in MB; None where no system tells."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6
    return None
