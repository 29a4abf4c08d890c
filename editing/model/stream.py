"""A stream of edits on its way into the store: in batches, each with an id, and which of them need not be solved."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..edits.edit import Edit, kind_of
from ..edits.identifiers import DistinctIds
from ..errors import CorrigendaError
from ..shown import name
from ..store.history import normalised_prompt
from .view import MemoryView

Batch = tuple[list[Edit], list[str | None], list[str]]
"""Edits with ids; for each the id of a later one of its prompt; and sentences on what was renamed."""


def prepared(
    stream: Iterable[Edit], whole: bool, view: MemoryView, lock: contextlib.AbstractContextManager[Any]
) -> Iterator[Batch]:
    """Batches with ids, the ids of later edits of the same prompts, and sentences; `whole`: take all in at once.

    lock: under which no edit is written.
    """
    size = view.method.config.batch_size
    for part in [list(_checked(stream))] if whole else _batches(stream, size):
        with lock:
            edits, sentences = named(part, view)
        later = superseded(edits)
        for start in range(0, len(edits), size):
            yield edits[start : start + size], later[start : start + size], sentences
            sentences = []


def named(edits: Sequence[Edit], view: MemoryView) -> tuple[list[Edit], list[str]]:
    """The edits with an id for each that no edit in the memory has, and a sentence on each that could not keep its own.

    Records without an id are numbered after their file: those of two files `train.json` have the same.
    """
    history = view.history
    own = {edit.id for edit in edits}
    ids = DistinctIds(
        lambda name: name in own or history.find(name) is not None or history.declined_as(name) is not None
    )
    found, sentences = [], []
    for number, edit in enumerate(edits, start=len(history.edits) + len(history.declined)):
        if edit.id is not None:
            name("id", edit.id)
        if edit.id is None:
            edit = replace(edit, id=ids.first(f"edit-{n:05d}" for n in itertools.count(number)))
        elif edit.id in ids or view.holds(history.find(edit.id, wanted=True)):
            another = ids.another(edit.id)
            sentences.append(f'Edit "{edit.id}" is written as "{another}": that id is another edit\'s.')
            edit = replace(edit, id=another)
        else:
            ids.own(edit.id)
        found.append(edit)
    return found, sentences


def superseded(edits: Sequence[Edit]) -> list[str | None]:
    """For each edit the id of the last one with its prompt; None where it is that one itself."""
    prompts = [normalised_prompt(edit.prompt) for edit in edits]
    last = {prompt: edit.id for prompt, edit in zip(prompts, edits)}
    return [None if last[prompt] == edit.id else last[prompt] for prompt, edit in zip(prompts, edits)]


def _checked(edits: Iterable[Edit]) -> Iterator[Edit]:
    for edit in edits:
        if not isinstance(edit, Edit):
            raise CorrigendaError(f"edit takes Edit objects, not {kind_of(edit)}: `load_edits` makes them of records.")
        yield edit


def _batches(edits: Iterable[Edit], size: int) -> Iterator[list[Edit]]:
    batch: list[Edit] = []
    for edit in _checked(edits):
        batch.append(edit)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
