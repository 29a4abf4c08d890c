"""GRACE (arXiv 2211.11031): a codebook at one layer; the nearest key within its radius says what the layer puts out."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row, length_groups, pass_tokens
from ...backbone.patch import Patch
from ...backbone.suffix import suffix_of
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...memories.values import ReplacedOutputs
from ...routers.context import RoutingContext
from ...routers.nearest import NearestKeyRouter
from ..method import Method
from ..record import Record, Solved, Written
from .config import GraceConfig
from .defaults import resolved

_STEP_TOKENS = 320
"""Tokens in one optimisation pass on a CPU, as for associative edits."""


class Grace(Method):
    """Adam on one output of the layer, at the last prompt token, by the cross-entropy of the target.

    The key is the layer's input there. The value takes the place of the layer's output, and what comes after the
    prompt sees it through the layers above. An edit whose key joins that of an earlier one with the same label goes on
    from its value, and is what both say from then on; within a batch it starts anew.

    The record of an edit is its value; key and label are its fingerprint, from which the router finds again which keys
    were joined and parted, of the edits that are in.
    """

    record_shapes: ClassVar = {"value": ("d",)}
    keeps_unsolved = True
    uses_contexts = False
    config: GraceConfig
    memory: ReplacedOutputs
    router: NearestKeyRouter

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: GraceConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.memory = ReplacedOutputs(self.out_width, self.device, once=config.mode == "serving")
        self.router = NearestKeyRouter(self.width, config.radius, self.device)

    def tap(self, patch: Patch, context: RoutingContext) -> None:
        """The router sees the layer's inputs: once in a pass of prompts, or in every pass."""
        published = self.config.mode == "published"

        def observe(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            self.router.see(args[0], context, each=published)

        patch.pre_hook(self.decoder.down_proj(self.layer), observe)

    def as_routed(self, prompts: Sequence[str]) -> Tensor:
        """fp32 `[prompts, D]`: the keys of prompts."""
        return torch.stack([prompt.inputs[-1] for prompt in self.prompt_features(self.layer, prompts)]).float()

    def fingerprints(self, edits: Sequence[Edit]) -> list[Tensor]:
        rows = [self.rows(edit, [""])[0] for edit in edits]
        return self._known_by(self.as_routed([edit.prompt for edit in edits]), rows)

    def _known_by(self, keys: Tensor, rows: Sequence[Row]) -> list[Tensor]:
        labels = torch.tensor([self._label(row) for row in rows], dtype=torch.float32, device=keys.device)
        return self.router.fingerprints_of(torch.cat([keys, labels[:, None]], 1))

    def _label(self, row: Row) -> float:
        """What stands for a target: the mean of its row's labels, -100 for each prompt token; or its tokens' hash."""
        if self.config.labels == "mean":
            return (sum(row.labels) - 100 * len(row.prompt)) / (len(row.prompt) + len(row.labels))
        return float(zlib.crc32(repr(row.labels).encode()) % (1 << 24))

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        self.prepare()
        rows = [self.rows(edit, [""])[0] for edit in edits]
        features = self.features([row.tokens for row in rows])
        keys = torch.stack([f.inputs[len(row.prompt) - 1] for f, row in zip(features, rows)])
        with torch.no_grad():
            outputs = self.decoder.down_proj(self.layer)(keys).float()
        known = self._known_by(keys.float(), rows)
        values = torch.stack([self._start(*each) for each in zip(edits, known, outputs)])
        written: dict[int, Written] = {}
        for group in length_groups([len(row.tokens) for row in rows], pass_tokens(self.device, _STEP_TOKENS)):
            hidden, own = [features[e].hidden for e in group], [rows[e] for e in group]
            values[group], found = self._solved(hidden, own, outputs[group], values[group])
            written |= dict(zip(group, found))
        return [Solved(written[e], Record({"value": values[e].clone()}, {}, known[e])) for e in range(len(edits))]

    def _solved(
        self, hidden: Sequence[Tensor], rows: Sequence[Row], outputs: Tensor, start: Tensor
    ) -> tuple[Tensor, list[Written]]:
        """The values `[edits, d]` of edits side by side, in the place of `outputs`, and how each one's ended."""
        steps = self.config.steps
        suffix = suffix_of(self.decoder, self.layer, hidden, rows, [len(row.prompt) - 1 for row in rows])
        counts = torch.tensor([len(row.labels) for row in rows], dtype=torch.int64, device=self.device)
        first = counts.cumsum(0) - counts
        values = start.clone().requires_grad_()

        def losses(added: Tensor) -> Tensor:
            return suffix.losses(added).sum(1) / counts

        def added() -> Tensor:
            """`[tokens, d]`: what values add to the layer's own outputs, at the last prompt tokens."""
            return values.new_zeros(int(counts.sum()), values.shape[1]).index_add(0, first, values - outputs)

        optimizer = torch.optim.Adam([values], lr=self.config.learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            losses(added()).sum().backward()
            optimizer.step()
        with torch.no_grad():
            found = zip(losses(added()).tolist(), suffix.predicted(added()).tolist())
            return values.detach(), [Written(loss, steps, held) for loss, held in found]

    def _start(self, edit: Edit, known: Tensor, output: Tensor) -> Tensor:
        """fp32 `[d]`: the value of the row that the edit joins; else uniform in [0, 1), or the layer's own output."""
        said = known.view(torch.float32)
        row = self.router.reach(said[: self.width].to(self.device), float(said[self.width])).joins
        if row >= 0:
            return self.memory.values[self.router.edit_of(row)].clone()
        if self.config.start == "warm":
            return output.clone()
        # An edit's own draw, whatever is written beside it.
        seed = zlib.crc32(f"{self.config.seed} {edit.prompt} {edit.target}".encode())
        return torch.rand(
            self.out_width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu"
        ).to(self.device)

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.memory.append(record.tensors["value"])
        self.make_known(records)

    def holds(self, route: int, edit: int) -> bool:
        """A row that several edits joined answers for all of them, whose targets are the same."""
        rows = self.router.row_of
        return 0 <= route < len(rows) and 0 <= edit < len(rows) and rows[route] == rows[edit]

    def reserve(self, edits: int, rows: int, prompt_tokens: int) -> None:
        super().reserve(edits, rows, prompt_tokens)
        self.memory.reserve(edits)
