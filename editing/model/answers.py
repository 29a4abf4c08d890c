"""What comes back from an edited model: answers with their provenance, and how a stream stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..edits.edit import Edit
from ..edits.template import is_laid_out
from ..methods.method import Method
from ..methods.record import Written
from ..routers.router import Decision


@dataclass(frozen=True)
class Provenance:
    """Which edit was applied to a sequence, if any, and how clearly.

    edit       the applied edit, or None
    score      how well the best-matching edit fits the prompt, 0 to 1; for WISE, the distance that routes
    margin     how far that stands above `needed`; below 0 nothing was
    nearest    the best-matching edit that is in the memory, applied or not; None where there is none
    memory     the applied memory, where several edits share one and none of them is named
    withdrawn  the id of the undone edit that kept `nearest` from being applied: it matches better, by -margin
    reason     what else kept `nearest` from it, said of the prompt: 'asks for something like "height"', of a router by
               meaning; or that no token of the edit's answer could follow it
    """

    edit: Edit | None
    score: float
    margin: float
    nearest: Edit | None
    memory: str | None = None
    withdrawn: str | None = None
    reason: str | None = None

    @property
    def needed(self) -> float:
        """The score that it took to be applied.

        The threshold and a share of the next best score; or, where an undone edit matches better, that one's score.
        """
        return self.score - self.margin

    @property
    def applied(self) -> bool:
        """Whether the answer is an edit's."""
        return self.edit is not None or self.memory is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `edit` and `nearest` are ids."""
        return {
            "edit": None if self.edit is None else self.edit.id,
            "edit_prompt": None if self.edit is None else self.edit.prompt,
            "score": round(self.score, 6),
            "needed": round(self.needed, 6),
            "margin": round(self.margin, 6),
            "nearest": None if self.nearest is None else self.nearest.id,
            **({} if self.memory is None else {"memory": self.memory}),
            **({} if self.withdrawn is None else {"withdrawn": self.withdrawn}),
            **({} if self.reason is None else {"reason": self.reason}),
        }


@dataclass(frozen=True)
class Answer:
    """A generated continuation, and the stored edit that was applied to it, if any."""

    text: str
    edit: Edit | None
    score: float
    provenance: Provenance | None = None


def laid_out(text: str, edit: Edit | None) -> str:
    """A continuation without white space at its ends, but for what its edit's target has there."""
    if edit is None or edit.target == edit.target.strip():
        return text.strip()
    text = text if is_laid_out(edit.target) else text.lstrip()
    return text if edit.target[-1].isspace() else text.rstrip()


class Declined(NamedTuple):
    """An edit that was not written, and the id of the stored edit that stands: both are about the same fact."""

    edit: Edit
    rival: str


class WrittenEdits(list[Written]):
    """How each edit of a stream came out, in order.

    unsolved  the edits among them that did not hold and are not in the memory
    failing   those that did not hold and are in the memory all the same
    declined  edits that were not solved, for the sake of stored ones
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsolved: list[Edit] = []
        self.failing: list[Edit] = []
        self.declined: list[Declined] = []


@dataclass(frozen=True)
class Progress:
    """Where a stream of edits stands: how many are solved, in how many seconds, and the last batch's outcome.

    passed    how many edits of the stream are behind it, those included that were not written
    unsolved  edits of the last batch that did not hold and are left out of the memory
    failing   those that did not hold and are in the memory
    declined  edits of the last batch that were not written, for the sake of stored ones which it names
    """

    done: int
    seconds: float
    edits: Sequence[Edit]
    written: Sequence[Written]
    passed: int = 0
    declined: Sequence[Declined] = field(default=())
    unsolved: Sequence[Edit] = field(default=())
    failing: Sequence[Edit] = field(default=())

    @property
    def loss(self) -> float:
        return sum(result.loss for result in self.written) / max(1, len(self.written))


def provenance_of(decision: Decision, method: Method, edits: Sequence[Edit]) -> list[Provenance]:
    """One for each row of a decision; `edits` by the router's places."""

    def edit(place: int) -> Edit | None:
        return edits[place] if method.names_edits and 0 <= place < len(edits) else None

    def undone(place: int) -> str | None:
        return method.router.withdrawn.ids[place] if place >= 0 else None

    def reason(route: int, against: int) -> str | None:
        return method.router.in_words(against) if route < 0 and against else None

    return [
        Provenance(
            edit(route),
            score,
            margin,
            edit(nearest),
            method.memory_name(route),
            undone(withdrawn),
            reason(route, against),
        )
        for route, nearest, score, _, margin, withdrawn, against in zip(*(part.tolist() for part in decision))
    ]
