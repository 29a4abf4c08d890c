"""What methods that write by gradient steps share: an edit's rows above the memory, and when an edit has had enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..backbone.decoder import Decoder
from ..backbone.frozen import Features, Row, length_groups, pass_tokens
from ..backbone.repeated import Repeated
from ..backbone.suffix import Suffix, suffix_losses, suffix_of
from .record import Written

_STEP_TOKENS = 192
"""Padded tokens in one pass on a CPU: splits an edit's 11 rows by length, so short contexts do not pay for long."""

_HEAD_TOKENS = 1024
"""Padded tokens whose answers pass the head together on a CPU: their activations are kept until then."""


class EditRows:
    """A batch of edits, each in all its contexts: their loss as a function of what the memory adds at their tokens.

    Rows of like length pass the layers above the memory side by side; tokens stand in the order of those passes.

    inputs `[tokens, D]`   the edited layer's input, in the model's dtype, from each row's start on
    row, owner `[tokens]`  the row (as given) and the edit that a token belongs to
    in_prompt `[tokens]`   whether it is a prompt's token, not a target's
    """

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        rows: Sequence[Row],
        features: Sequence[Features],
        starts: Sequence[int],
        contexts: int,
    ) -> None:
        device = features[0].inputs.device
        groups = list(length_groups([len(row.tokens) for row in rows], pass_tokens(device, _STEP_TOKENS)))
        order = [i for group in groups for i in group]
        self.edits = len(rows) // contexts
        self.inputs = torch.cat([features[i].inputs[starts[i] :] for i in order])
        lengths = torch.tensor([len(features[i].inputs) - starts[i] for i in order], dtype=torch.int64, device="cpu")
        self.row = torch.tensor(order, dtype=torch.int64, device="cpu").repeat_interleave(lengths).to(device)
        self.owner = self.row // contexts
        prompts = [
            torch.arange(starts[i], len(features[i].inputs), dtype=torch.int64, device="cpu") < len(rows[i].prompt)
            for i in order
        ]
        self.in_prompt = torch.cat(prompts).to(device)
        suffixes = [
            suffix_of(
                decoder,
                layer,
                [features[i].hidden for i in group],
                [rows[i] for i in group],
                [starts[i] for i in group],
            )
            for group in groups
        ]
        self._own = [
            (suffix, [(place, i) for place, i in enumerate(group) if i % contexts == 0])
            for suffix, group in zip(suffixes, groups)
        ]
        self._contexts = contexts
        self._passes = list(_together(suffixes, pass_tokens(device, _HEAD_TOKENS)))
        # The published loss divides by one more than the target's tokens, and is a mean over an edit's rows.
        scale = torch.tensor(
            [1 / ((len(rows[i].labels) + 1) * contexts) for i in order], dtype=torch.float32, device="cpu"
        )
        self._scale = scale.to(device)
        self._row_owner = torch.tensor(order, dtype=torch.int64, device=device) // contexts

    def loss_and_gradient(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Each edit's loss `[edits]`, and the gradient of their sum by `delta` `[tokens, d]`, pass after pass."""
        loss = torch.zeros(self.edits, dtype=torch.float32, device=delta.device)
        gradients, row, token = [], 0, 0
        for suffixes, sizes in self._passes:
            parts = [part.detach().requires_grad_() for part in delta[token : token + sum(sizes)].split(sizes)]
            per_row = torch.cat([losses.sum(1) for losses in suffix_losses(suffixes, parts)])
            of_pass = slice(row, row + len(per_row))
            per_row = per_row * self._scale[of_pass]
            gradients += torch.autograd.grad(per_row.sum(), parts)
            loss.index_add_(0, self._row_owner[of_pass], per_row.detach())
            row, token = of_pass.stop, token + sum(sizes)
        return loss, torch.cat(gradients)

    def answered(self, delta: Tensor) -> list[bool]:
        """Whether greedy decoding of each edit's own prompt, in no other context, gives its labels with `delta`."""
        found = [False] * self.edits
        for suffix, own in self._own:
            if own:
                places = torch.tensor([place for place, _ in own], dtype=torch.int64, device=delta.device)
                part = torch.cat([delta[self.row == i] for _, i in own])
                for (_, i), right in zip(own, suffix.select(places).predicted(part).tolist()):
                    found[i // self._contexts] = right
        return found


def _together(suffixes: Sequence[Suffix], budget: int) -> Iterator[tuple[list[Suffix], list[int]]]:
    """Suffixes in turn, as many as have `budget` padded tokens together (one at least), and each one's tokens."""
    taken: list[Suffix] = []
    for suffix in suffixes:
        if taken and sum(s.valid.numel() for s in taken) + suffix.valid.numel() > budget:
            yield taken, [len(s.touched) for s in taken]
            taken = []
        taken.append(suffix)
    if taken:
        yield taken, [len(s.touched) for s in taken]


class StoppingRule:
    """Which edits of a batch go on: one stops when its loss is low and has hardly changed. Kept on the device."""

    def __init__(self, edits: int, stop_loss: float, stop_change: float, device: torch.device) -> None:
        self.stop_loss, self.stop_change = stop_loss, stop_change
        self.running = torch.ones(edits, dtype=torch.bool, device=device)
        self.steps = torch.zeros(edits, dtype=torch.long, device=device)
        self.loss = torch.full((edits,), torch.inf, dtype=torch.float32, device=device)

    def take_in(self, loss: Tensor) -> None:
        """Take in the losses `[edits]` before a step, and count it for those that are to take it."""
        stops = ((loss - self.loss).abs() <= self.stop_change) & (loss <= self.stop_loss)
        self.loss.copy_(torch.where(self.running, loss, self.loss))
        self.running &= ~stops
        self.steps += self.running

    def goes_on(self) -> bool:
        """Whether any edit is to take the step: all that the host waits for."""
        return bool(self.running.any())

    def written(self, answered: Sequence[bool]) -> list[Written]:
        """How each edit ended."""
        return [Written(*found) for found in zip(self.loss.tolist(), self.steps.tolist(), answered)]


def descend(
    look: Callable[[], None],
    step: Callable[[], None],
    steps: int,
    stopping: StoppingRule,
    repeated: Callable[[Callable[[], None]], Repeated],
) -> None:
    """Up to `steps` times `look`, which finds the gradient and tells `stopping` the loss, and then `step` along it.

    A step and the next look are one unit, which `repeated` may turn into one launch.
    """

    def step_and_look() -> None:
        step()
        look()

    look()
    unit = repeated(step_and_look)
    for left in reversed(range(steps)):
        if not stopping.goes_on():
            break
        if left:
            unit()
        else:
            step()
