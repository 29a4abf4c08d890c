"""MELO (arXiv 2312.11795): dynamic LoRA blocks; a cluster index on an earlier layer says which of them acts."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...backbone.decoder import Decoder
from ...backbone.frozen import Row
from ...backbone.outputs import outputs_of
from ...backbone.patch import Patch
from ...backbone.suffix import suffix_of
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.adapters import LowRankAdapters, adapted
from ...routers.clusters import ClusterRouter
from ...routers.context import RoutingContext
from ..method import Method
from ..record import Record, Solved, Written, check_tensors
from ..weights.method import by_site
from .config import MeloConfig
from .defaults import resolved


class Melo(Method):
    """Adam on one block, by the cross-entropy of the targets of its batch; the layers below it are passed once.

    A block is one adapter of rank r at each adapted map, y += scale * up^T down x, its `down` drawn as LoRA's, its `up`
    from zero. A record has the block of its batch, "<site>.x" and "<site>.h" with the scale in it; its fingerprint is
    key and label, from which the router finds again which keys open clusters, join and part them. Taking out one edit
    of a block leaves the block as it was learnt, for the others of its batch.
    """

    record_shapes: ClassVar = {"x": ("rank", "D"), "h": ("rank", "d")}
    keeps_unsolved = True
    uses_contexts = False
    config: MeloConfig
    memory: LowRankAdapters
    router: ClusterRouter

    resolved = staticmethod(resolved)

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: MeloConfig) -> None:
        super().__init__(decoder, prompts, config)
        layers = range(config.layer + 1, config.layer + 1 + config.adapted_layers)
        self.modules = {f"{layer}.mlp.up_proj": decoder.layers[layer].mlp.up_proj for layer in layers}
        shapes = {site: (module.in_features, module.out_features) for site, module in self.modules.items()}
        devices = {site: next(module.parameters()).device for site, module in self.modules.items()}
        self.memory = LowRankAdapters(shapes, config.rank, devices)
        self.router = ClusterRouter(self.width, config.radius, self.device)

    def sites(self) -> dict[str, nn.Module]:
        return self.modules

    @property
    def key_module(self) -> nn.Module:
        """The map whose outputs are keys."""
        return self.decoder.layers[self.layer].mlp.up_proj

    def tap(self, patch: Patch, context: RoutingContext) -> None:
        """The router sees what its map puts out: once in a pass of prompts, or in every pass."""
        published = self.config.mode == "published"

        def observe(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> None:
            self.router.see(out, context, each=published)

        patch.hook(self.key_module, observe)

    def as_routed(self, prompts: Sequence[str]) -> Tensor:
        """fp32 `[prompts, D]`: the keys of requests."""
        return self._keys([self.prompts.encode(self.prompts.wrap(prompt)) for prompt in prompts])

    def _keys(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack([out[-1] for out in outputs_of(self.decoder, self.key_module, rows)]).float()

    def fingerprints(self, edits: Sequence[Edit]) -> list[Tensor]:
        return self._known_by([self.rows(edit, [""])[0] for edit in edits])

    def _known_by(self, rows: Sequence[Row]) -> list[Tensor]:
        seen_label = self.config.mode == "published"
        keys = self._keys([(*row.prompt, *row.labels) if seen_label else row.prompt for row in rows])
        labels = torch.tensor([self._label(row) for row in rows], dtype=torch.float32, device=keys.device)
        return self.router.fingerprints_of(torch.cat([keys, labels[:, None]], 1))

    def _label(self, row: Row) -> float:
        if self.config.labels == "sum":
            return float(sum(row.labels))
        return float(zlib.crc32(repr(row.labels).encode()) % (1 << 24))

    def solve(self, edits: Sequence[Edit]) -> list[Solved]:
        self.prepare()
        rows = [self.rows(edit, [""])[0] for edit in edits]
        pairs = self._start(edits)
        hidden = [features.hidden for features in self.features([row.tokens for row in rows])]
        suffix = suffix_of(self.decoder, self.layer, hidden, rows, [0] * len(rows))
        nothing = torch.zeros(len(suffix.touched), self.out_width, dtype=torch.float32, device=self.device)
        counts = torch.tensor([len(row.labels) for row in rows], dtype=torch.int64, device=self.device)
        learnt = [part for pair in pairs.values() for part in pair]
        optimizer = torch.optim.Adam(learnt, lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.config.halve_every, 0.5)
        for _ in range(self.config.steps):
            optimizer.zero_grad()
            with adapted(self.modules, self._scaled(pairs)):
                (suffix.losses(nothing).sum() / counts.sum()).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad(), adapted(self.modules, self._scaled(pairs)):
            losses = (suffix.losses(nothing).sum(1) / counts).tolist()
            held = suffix.predicted(nothing).tolist()
            scaled = self._scaled(pairs)
        tensors = {f"{site}.x": down.detach() for site, (down, _) in scaled.items()}
        tensors |= {f"{site}.h": up.detach() for site, (_, up) in scaled.items()}
        return [
            Solved(Written(loss, self.config.steps, holds), Record(tensors, {}, known))
            for loss, holds, known in zip(losses, held, self._known_by(rows))
        ]

    def _start(self, edits: Sequence[Edit]) -> dict[str, tuple[Tensor, Tensor]]:
        """A block as LoRA begins: down by Kaiming's rule, up zero. Its draw is the batch's own."""
        said = " ".join(f"{edit.prompt} {edit.target}" for edit in edits)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.config.seed} {said}".encode()))
        pairs = {}
        for site, module in self.modules.items():
            device = next(module.parameters()).device
            down = torch.empty(self.config.rank, module.in_features, dtype=torch.float32, device="cpu")
            down.uniform_(-1 / math.sqrt(module.in_features), 1 / math.sqrt(module.in_features), generator=generator)
            up = torch.zeros(self.config.rank, module.out_features, dtype=torch.float32, device=device)
            pairs[site] = down.to(device).requires_grad_(), up.requires_grad_()
        return pairs

    def _scaled(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        return {site: (down, self.config.scale * up) for site, (down, up) in pairs.items()}

    def apply(self, records: Sequence[Record]) -> None:
        """A batch's records hold the same block: it is stored once."""
        if not records:
            return
        of_site = by_site(records[0].tensors)
        self.memory.append({site: (own["x"], own["h"]) for site, own in of_site.items()}, len(records))
        self.make_known(records)

    @classmethod
    def check_shapes(cls, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Of each site; `sizes` are those of down-projections, whose inputs are as wide as what adapters put out."""
        of_site = by_site(tensors)
        if not of_site:
            raise CorrigendaError("it has no tensors")
        for own in of_site.values():
            check_tensors(own, cls.record_shapes, {"D": sizes["d"], "d": sizes["D"]} if sizes else {})

    def check(self, record: Record) -> None:
        self.check_shapes(record.tensors, {"D": self.width, "d": self.out_width})
        found = by_site(record.tensors)
        ranks = {len(own["x"]) for own in found.values()}
        if found.keys() != self.modules.keys() or ranks != {self.config.rank}:
            raise CorrigendaError(f"its block is not one of rank {self.config.rank} at {', '.join(self.modules)}")
        if not self.router.fits(record.fingerprint):
            raise CorrigendaError("its fingerprint is not one of this router's")
