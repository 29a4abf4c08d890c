"""What stands in for an edit of a stream that does not hold: the last one before it, of the same prompt, that does."""

from __future__ import annotations

from collections.abc import Sequence

from ..edits.edit import Edit
from ..store.history import normalised_prompt
from ..store.store import OnConflict
from .batch import BatchWriter, Outcome
from .resume import Recorded


class Fallbacks:
    """Edits of a stream that are left out for later ones of their prompts, until those are found to hold.

    recorded: what a stream that was broken off has of them.
    """

    def __init__(self, batches: BatchWriter, recorded: Recorded, on_conflict: OnConflict, author: str | None) -> None:
        self._batches = batches
        self._view = batches.view
        self._recorded = recorded
        self._author = author
        self._supersede = on_conflict == "supersede"

    def later(self, later: Sequence[str | None]) -> Sequence[str | None]:
        """For each edit of a batch the id of the one for which it is left out, as far as conflicts are settled so."""
        return later if self._supersede else [None] * len(later)

    def after(self, batch: Sequence[Edit], later: Sequence[str | None], outcome: Outcome) -> Outcome:
        """The outcome of a batch, with that of what is written in the stead of its edits that do not hold."""
        waiting = self._recorded.waiting
        for edit, coming in zip(batch, later):
            if coming is not None:
                waiting.setdefault(normalised_prompt(edit.prompt), []).append(edit)
        for edit in outcome.edits:
            earlier = waiting.pop(normalised_prompt(edit.prompt), [])
            if edit in outcome.unsolved:
                outcome = outcome.and_then(self._write(edit.id, earlier))
        return outcome

    def owed(self) -> Outcome:
        """Write what the stream had still to write, when it was broken off, for edits that do not hold."""
        outcome = Outcome([], [], [], [], [])
        history, owed = self._view.history, self._recorded.owed
        for prompt in list(owed):
            unsolved = history.edits[history.same_prompt(prompt)[-1]].id
            outcome = outcome.and_then(self._write(unsolved, owed.pop(prompt)))
        return outcome

    def _write(self, unsolved: str, earlier: list[Edit]) -> Outcome:
        """Write the last that holds of the edits that an unsolved one was to stand for."""
        outcome = Outcome([], [], [], [], [])
        while earlier and not set(outcome.edits).difference(outcome.unsolved):
            edit = earlier.pop()
            found = self._batches.write(
                [edit], [None], on_conflict="supersede", author=self._author, keep_unsolved=False
            )
            if not found.unsolved:
                told = f'Edit "{edit.id}" is written after all, for "{unsolved}" does not hold.'
                self._view.store.notices.append(told)
            outcome = outcome.and_then(found)
        return outcome
