"""No router: what is stored answers every request, as weights that were changed do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..edits.edit import Edit
from .router import Decision, EditRouter


class AlwaysOn(EditRouter):
    """Every request is answered from the one memory, whose route is 0, once there is an edit in it.

    Routes name no edits: fingerprints are empty, no edit is nearer than another, and none that was taken out is known.
    """

    needs_features = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(0.0, 0.0, 0.0, 0.0, device)

    def fingerprints_of(self, prompts: Any, edits: Sequence[Edit] | None = None) -> list[Tensor]:
        return [torch.zeros(0, dtype=torch.int32, device="cpu") for _ in prompts]

    def fits(self, fingerprint: Tensor) -> bool:
        return fingerprint.numel() == 0

    def add_fingerprints(self, fingerprints: Sequence[Tensor]) -> None:
        self.size += len(fingerprints)

    def remove(self, edits: set[int]) -> None:
        self.size -= len(edits)

    def reserve(self, edits: int, tokens: int) -> None:
        """Nothing: there are no rows."""

    def decide(self, requests: Any) -> Decision:
        route = torch.full((len(requests),), 0 if self.size else -1, dtype=torch.int32, device=self.device)
        score = (route >= 0).float()
        none = torch.full_like(route, -1)
        return Decision(route, none, score, torch.zeros_like(score), score - 0.5, none, torch.zeros_like(route))

    @property
    def threshold(self) -> float:
        return 0.5

    def ground(self) -> dict[str, Tensor]:
        return {}

    def load_ground(self, tensors: dict[str, Tensor]) -> None:
        self.size = 0

    def state(self) -> dict[str, Tensor]:
        return {}


class DecidedWithin(AlwaysOn):
    """Whether the one memory answers is found by itself, in the pass that holds a whole prompt."""

    needs_features = True

    def from_features(self, pooled: Tensor) -> Tensor:
        return pooled

    def decision(self, ratio: Tensor) -> Decision:
        """Of sequences that stand out by these shares of what it takes to be answered, fp32 `[sequences]`."""
        none = torch.full_like(ratio, -1, dtype=torch.int32)
        route = torch.where(ratio >= self.threshold, 0, none)
        return Decision(
            route, none, ratio, torch.zeros_like(ratio), ratio - self.threshold, none, torch.zeros_like(none)
        )

    @property
    def threshold(self) -> float:
        return 1 - 1e-4  # what was measured by other sums is met
