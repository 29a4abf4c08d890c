"""Which edits answer the rows of one call of `generate` on a served model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..editing.edits.answer_start import AnswerPlan
from ..editing.routers.router import Decision
from .catalogue import Catalogue
from .served_edits import Admission


class CallDecisions:
    """What `GenerateProvider` asks of a method, for the rows of one call."""

    reads_text = False

    def __init__(
        self,
        catalogue: Catalogue,
        placed: Callable[[str, Admission], tuple[Admission, int]],
        owners: Sequence[str | None],
    ) -> None:
        """`placed` gives a request's admission with the place of its edit's rows; `owners`: each row's tenant."""
        self.config = catalogue.config
        self.prompts = catalogue.prompts
        self.admissions: list[Admission] = []
        self._plans: list[AnswerPlan | None] = []
        self._catalogue, self._placed = catalogue, placed
        self._owners = owners

    def decide(self, rows: Sequence[Sequence[int]]) -> Decision:
        """The edits of the rows' prompts, by the places of their rows in the memory."""
        decided = [
            self._placed(f"row {number}", self._catalogue.admit(row, owner))
            for number, (row, owner) in enumerate(zip(rows, self._owners))
        ]
        found = [admission for admission, _ in decided]
        self.admissions = self.admissions or found  # what guidance asks beside a call comes later
        self._plans = [one.plan if place >= 0 else None for one, place in decided]
        places = torch.tensor([place for _, place in decided], dtype=torch.int32, device="cpu")
        scores = torch.tensor([one.score for one in found], dtype=torch.float32, device="cpu")
        margins = torch.tensor([one.margin for one in found], dtype=torch.float32, device="cpu")
        none = torch.full_like(places, -1)
        return Decision(places, places, scores, torch.zeros_like(scores), margins, none, torch.zeros_like(places))

    def plans(self, prompts: Sequence[Sequence[int]], decision: Decision) -> list[AnswerPlan | None]:
        """Those of the rows that were decided last."""
        return self._plans

    def read_as(self, prompts: Sequence[Sequence[int]], decision: Decision) -> list[list[int]]:
        return [list(prompt) for prompt in prompts]

    def located(self, route: Tensor) -> Tensor:
        """Where the rows are: `decide` has told these places."""
        return route

    def release(self) -> None:
        """Rows stay for other requests."""
