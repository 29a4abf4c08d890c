"""UltraEdit (arXiv 2505.14679): what the gradients of a batch say, written into a few layers by one linear solve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...backbone.hooked import hooked
from ...backbone.suffix import suffix_of
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ..record import Record, Solved, Written
from ..weights.method import WeightMethod
from ..weights.solving import dual_ridge
from .config import UltraEditConfig
from .defaults import resolved
from .statistics import RunningStatistics


class _Seen(NamedTuple):
    """What one pass saw at the answer tokens of one edit: by site the inputs x and the output's gradients g."""

    x: dict[str, Tensor]
    g: dict[str, Tensor]
    loss: float


class UltraEdit(WeightMethod):
    """One pass forth and back; then, for each linear map with inputs K `[n, D]` at the batch's n answer tokens,

        V = -lr |x^|^2 g^,    W += ((K^T K + I)^-1 K^T V)^T = (K^T (K K^T + I)^-1 V)^T

    where [x^ | g^] are inputs and gradients less their mean, by their deviation, over all edits so far (statistics that
    maps of one shape share). The left form is published, as wide as the layer; the right one has n unknowns. The
    record has each answer token's x and g too, of which the statistics are made again: of the edits that are in.
    """

    record_shapes: ClassVar = {"x": ("rank", "D"), "h": ("rank", "d"), "g": ("rank", "d")}
    display: ClassVar = "UltraEdit"
    config: UltraEditConfig

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: UltraEditConfig) -> None:
        super().__init__(decoder, prompts, config)
        self._statistics = self._none()

    def edited_modules(self) -> dict[str, nn.Module]:
        return {
            f"{layer}.mlp.{name}": getattr(self.decoder.layers[layer].mlp, name) for layer, name in self.config.places
        }

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        rows = [self.rows(edit, [""])[0] for edit in edits]
        memory, statistics = self.memory.copy(), self._copy()
        with memory.applied(self.modules):
            seen: dict[int, _Seen] = {}
            for part in self._microbatches([len(row.tokens) for row in rows]):
                found = self._look([rows[i] for i in part])
                seen |= dict(zip(part, found))
                self._take(statistics, [one.x for one in found], [one.g for one in found])
            tensors = self._values([seen[i] for i in range(len(rows))], statistics)
            records = [self.record(edit, own, length=len(row.tokens)) for edit, own, row in zip(edits, tensors, rows)]
            for record in records:
                self.add(memory, record)
            held = self.answered(rows)
        return [Solved(Written(seen[i].loss, 1, held[i]), record) for i, record in enumerate(records)]

    def _microbatches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """The edits of a batch by their lengths, some at a time."""
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        yield from (order[i : i + self.config.microbatch] for i in range(0, len(order), self.config.microbatch))

    def _look(self, rows: Sequence[Row]) -> list[_Seen]:
        """One pass of a microbatch: the mean cross-entropy of all its answer tokens, forth and back.

        Later answer tokens are all that an answer token's output reaches: the prompts' keys and values are kept.
        """
        below = self.config.places[0][0] - 1
        features = self.features_now(below, [row.tokens for row in rows])
        starts = [len(row.prompt) - 1 for row in rows]
        suffix = suffix_of(self.decoder, below, [f.hidden for f in features], rows, starts)
        nothing = torch.zeros(len(suffix.touched), features[0].hidden.shape[1], dtype=torch.float32, device=self.device)
        taken: dict[str, tuple[Tensor, Tensor]] = {}

        def take(site: str, x: Tensor, out: Tensor) -> None:
            out.retain_grad()
            taken[site] = x.detach(), out

        with hooked(self.modules, take):
            losses = suffix.losses(nothing.requires_grad_())
        (losses.sum() / len(suffix.asked)).backward()
        asked = [(suffix.valid[i] & (suffix.labels[i] != -100)).nonzero()[:, 0] for i in range(len(rows))]
        return [
            _Seen(
                {site: x.view(*suffix.valid.shape, -1)[i, at].float() for site, (x, _) in taken.items()},
                {site: out.grad.view(*suffix.valid.shape, -1)[i, at].float() for site, (_, out) in taken.items()},
                float(losses[i].sum().detach()) / len(rows[i].labels),
            )
            for i, at in enumerate(asked)
        ]

    @torch.no_grad()
    def _values(self, seen: Sequence[_Seen], statistics: dict[tuple[int, int], RunningStatistics]) -> list[dict]:
        """Each edit's tensors, of one solve a linear map."""
        tensors: list[dict[str, Tensor]] = [{} for _ in seen]
        counts = [len(next(iter(one.x.values()))) for one in seen]
        for site in self.modules:
            keys, gradients = (torch.cat([part[site] for part in parts]) for parts in zip(*((s.x, s.g) for s in seen)))
            rows = statistics[self.shapes[site]].normalised(torch.cat([keys, gradients], 1))
            x, g = rows.split(list(self.shapes[site]), 1)
            values = -self.config.learning_rate * x.square().sum(1, keepdim=True) * g
            solved = dual_ridge(keys, values)
            for own, *parts in zip(tensors, keys.split(counts), solved.split(counts), gradients.split(counts)):
                own |= {f"{site}.{kind}": part.clone() for kind, part in zip("xhg", parts)}
        return tensors

    # Statistics

    def _none(self) -> dict[tuple[int, int], RunningStatistics]:
        return {shape: RunningStatistics(sum(shape), self.device) for shape in self.shapes.values()}

    def _copy(self) -> dict[tuple[int, int], RunningStatistics]:
        return {shape: statistics.copy() for shape, statistics in self._statistics.items()}

    def _take(
        self,
        statistics: dict[tuple[int, int], RunningStatistics],
        x: Sequence[dict[str, Tensor]],
        g: Sequence[dict[str, Tensor]],
    ) -> None:
        """Take in a microbatch, module after module."""
        for site, shape in self.shapes.items():
            rows = [torch.cat([of_x[site], of_g[site]], 1) for of_x, of_g in zip(x, g)]
            statistics[shape].take(torch.cat(rows))

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        for part in self._microbatches([int(record.numbers["length"]) for record in records]):
            x, g = (
                [{site: records[i].tensors[f"{site}.{kind}"].to(self.device) for site in self.modules} for i in part]
                for kind in "xg"
            )
            self._take(self._statistics, x, g)

    def reset(self) -> None:
        super().reset()
        self._statistics = self._none()
