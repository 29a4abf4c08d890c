"""Adam on the values of edits that are solved side by side, each stopping alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .config import AssociativeConfig
from .problem import SideBySide

_EPSILON = 1e-8
"""Adam's, beside the square root of the second moment."""


class Descent:
    """The steps of several edits. `look` finds losses and gradients, `step` goes along them.

    Both read and write tensors that stay where they are and wait for no value of theirs, so that the two can be one
    launch: a mask leaves an edit that is done as it is. The host asks for `reached`.
    """

    def __init__(self, part: SideBySide, config: AssociativeConfig, rate: float, first_is_taken: bool) -> None:
        """`rate` in units of `Problem.scaled`; `first_is_taken`: a first step whatever the loss."""
        self.part = part
        self._config, self._rate = config, rate
        device = part.suffix.hidden.device
        self._values = [problem.scaled for problem in part.problems]
        for value in self._values:
            value.grad = torch.zeros_like(value)  # written in place ever after
        self._first_moment = [torch.zeros_like(value) for value in self._values]
        self._second_moment = [torch.zeros_like(value) for value in self._values]
        self._taken = torch.zeros((), dtype=torch.float64, device=device)
        self._loss = torch.full((len(self._values),), torch.inf, dtype=torch.float32, device=device)
        self._going = torch.ones(len(self._values), dtype=torch.bool, device=device)
        lowest = -torch.inf if first_is_taken else config.stop_loss
        self._limit = torch.full((), lowest, dtype=torch.float32, device=device)

    def look(self) -> None:
        """Losses, which edits go on, and the gradient of those."""
        loss = self.part.means(self.part.token_losses())
        self._loss.copy_(torch.where(self._going, loss.detach(), self._loss))
        self._going &= loss.detach() > self._limit
        for value in self._values:
            value.grad.zero_()
        torch.where(self._going, loss, 0.0).sum().backward()

    @torch.no_grad()
    def step(self) -> None:
        """Adam (arXiv 1412.6980, algorithm 1), for the edits that go on."""
        first, second = self._config.adam_beta1, self._config.adam_beta2
        self._taken += 1
        self._limit.fill_(self._config.stop_loss)
        of_first, of_second = 1 - first**self._taken, 1 - second**self._taken
        for value, mean, square, goes in zip(
            self._values, self._first_moment, self._second_moment, self._going.unbind()
        ):
            mean.lerp_(value.grad, 1 - first)
            square.mul_(second).addcmul_(value.grad, value.grad, value=1 - second)
            change = (mean / of_first).div_((square / of_second).sqrt_().add_(_EPSILON))
            value.sub_(torch.where(goes, self._rate * change, 0.0))

    def step_and_look(self) -> None:
        self.step()
        self.look()

    def reached(self) -> tuple[list[float], list[bool]]:
        """Each edit's loss when it was last looked at, and whether it goes on: all that the host waits for."""
        loss, going = torch.stack([self._loss, self._going.float()]).tolist()
        return loss, [bool(goes) for goes in going]

    def select(self, kept: Sequence[int]) -> Descent:
        """Some of them, by their places in ascending order, as they are; `look` comes next."""
        part = object.__new__(Descent)
        part.part = self.part.select(kept)
        part._config, part._rate = self._config, self._rate
        for name in ("_values", "_first_moment", "_second_moment"):
            whole = getattr(self, name)
            setattr(part, name, [whole[i] for i in kept])
        at = torch.tensor(kept, dtype=torch.int64, device=self._going.device)
        part._taken, part._limit = self._taken.clone(), self._limit.clone()
        part._loss, part._going = self._loss[at], self._going[at]
        return part
