"""What methods share that change weights: their records, their memory, and passes through what was written so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...backbone.background import background_prompts
from ...backbone.covariance import Covariance, background_covariances, load_covariance
from ...backbone.decoder import Decoder
from ...backbone.frozen import Features, Row, frozen_features, length_groups, pass_tokens
from ...backbone.suffix import suffix_of
from ...edits.edit import Edit
from ...edits.prompts import PromptFormat
from ...errors import CorrigendaError
from ...memories.weight_changes import WeightChanges
from ..gated import GatedMethod
from ..record import Record, check_tensors
from .config import WeightsConfig
from .subject import lookup_tokens, subject_row
from .values import ValueProblem


class WeightMethod(GatedMethod):
    """W = W0 + sum: an edit is products x^T h, one at each of its sites, kept by themselves.

    A record has for each of its sites "<site>.x" `[rank, D]` and "<site>.h" `[rank, d]` (`record_shapes`, of each
    site). The memory is the sum of the recorded products of the edits that are in: taking an edit out leaves, bit for
    bit, what a rebuild from the others' records gives. What later edits were solved beside stays in them: they stood on
    the model as it was, that edit included. Only solving them anew (`undo --resolve`) takes that out too.
    """

    record_shapes: ClassVar = {"x": ("rank", "D"), "h": ("rank", "d")}
    bakeable: ClassVar[bool] = True
    """Whether the sum answers every request, as plain weights would."""
    display: ClassVar[str]
    """What sentences call the method."""
    config: Any
    memory: WeightChanges

    def __init__(self, decoder: Decoder, prompts: PromptFormat, config: WeightsConfig) -> None:
        super().__init__(decoder, prompts, config)
        self.modules = self.edited_modules()
        self.shapes = {site: _widths(site, module) for site, module in self.modules.items()}
        devices = {site: next(module.parameters()).device for site, module in self.modules.items()}
        if len(set(devices.values())) > 1:
            places = ", ".join(sorted(map(str, set(devices.values()))))
            raise CorrigendaError(
                f"The layers that {self.display} changes are on several devices ({places}): load the model on one, or "
                "choose layers on one."
            )
        self.memory = self.new_memory(devices)
        self._covariances: dict[int, Covariance] = {}

    def new_memory(self, devices: Mapping[str, torch.device]) -> WeightChanges:
        """A memory without edits, of `self.shapes` on these devices."""
        return WeightChanges(self.shapes, devices)

    def edited_modules(self) -> dict[str, nn.Module]:
        """The linear maps that edits change, by their names below the decoder's layers."""
        return {down_proj(layer): self.decoder.down_proj(layer) for layer in self.edited_layers()}

    def edited_layers(self) -> Sequence[int]:
        """The layers whose down-projection edits change, ascending."""
        return [self.layer]

    def sites(self) -> dict[str, nn.Module]:
        return self.modules

    # Solving

    def asked(self, edits: Sequence[Edit], contexts: Sequence[str], layer: int) -> list[ValueProblem]:
        """The edits as their values are found at a layer, through the weights as they are in this pass.

        The norm is of the layer's hidden state at the lookup; ROME, whose value is the FFN's output, puts its own.
        """
        rows = [self.rows(edit, contexts) for edit in edits]
        lookups = [lookup_tokens(self.display, self.prompts, edit, contexts, own) for edit, own in zip(edits, rows)]
        subjects = [subject_row(self.prompts, edit) for edit in edits]
        features = self.features_now(
            layer, [*(row.tokens for own in rows for row in own), *(subject for subject, _ in subjects)]
        )
        found = []
        for e, (own, at, (subject, last)) in enumerate(zip(rows, lookups, subjects)):
            of_rows = features[e * len(contexts) : (e + 1) * len(contexts)]
            of_subject = features[len(edits) * len(contexts) + e].hidden[: last + 1]
            norm = of_rows[0].hidden[at[0]].float().norm()
            found.append(ValueProblem(own, at, of_rows, subject[: last + 1], of_subject, norm))
        return found

    def features_now(self, layer: int, rows: Sequence[Sequence[int]]) -> list[Features]:
        """Token rows at a layer, through the weights as they are in this pass: nothing is known beforehand."""
        return frozen_features(self.decoder, layer, rows)

    @torch.no_grad()
    def answered(self, rows: Sequence[Row]) -> list[bool]:
        """Whether greedy decoding of each row's prompt gives its labels, through the weights as they are."""
        features = self.features_now(self.layer, [row.tokens for row in rows])
        found = [False] * len(rows)
        for group in length_groups([len(row.tokens) for row in rows], pass_tokens(self.device, 320)):
            part = [rows[i] for i in group]
            starts = [len(row.prompt) - 1 for row in part]
            suffix = suffix_of(self.decoder, self.layer, [features[i].hidden for i in group], part, starts)
            nothing = torch.zeros(len(suffix.touched), self.out_width, dtype=torch.float32, device=self.device)
            for i, right in zip(group, suffix.predicted(nothing).tolist()):
                found[i] = right
        return found

    def covariance(self, layer: int) -> Tensor:
        """fp64 `[D, D]`: the second moment of the layer's keys that the configuration names, of the base model."""
        if layer not in self._covariances:
            tokenizer, source = self.prompts.tokenizer, self.config.covariance
            if source == "background":
                layers = list(self.edited_layers())
                found = background_covariances(self.decoder, tokenizer, layers, background_prompts())
                self._covariances |= found
            else:
                self._covariances[layer] = load_covariance(source, layer, self.decoder, tokenizer)
        return self._covariances[layer].matrix

    def record(self, edit: Edit, tensors: dict[str, Tensor], **numbers: float) -> Record:
        (known,) = self.fingerprints([edit])
        return Record(tensors, numbers, torch.as_tensor(known, dtype=torch.int32, device="cpu"))

    # Records

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self.add(self.memory, record)
        self.make_known(records)

    def add(self, memory: WeightChanges, record: Record) -> None:
        """Write one edit into the memory, or into a copy of it."""
        for site in self.modules:
            if f"{site}.x" in record.tensors:
                memory.add(site, record.tensors[f"{site}.x"], record.tensors[f"{site}.h"])

    @classmethod
    def check_shapes(cls, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Of each site; `sizes` are those of down-projections, and of other sites' only `check` knows."""
        of_site = by_site(tensors)
        if not of_site:
            raise CorrigendaError("it has no tensors")
        for site, own in of_site.items():
            check_tensors(own, cls.shapes_of(own), sizes if site.endswith(".down_proj") else {})

    @classmethod
    def shapes_of(cls, own: Mapping[str, Tensor]) -> Mapping[str, tuple[str, ...]]:
        """The shapes of one site's tensors, by their kinds."""
        return cls.record_shapes

    def check(self, record: Record) -> None:
        self.check_shapes(record.tensors, {})
        for site, own in by_site(record.tensors).items():
            if site not in self.shapes:
                raise CorrigendaError(f'its tensors are of "{site}", which is not edited')
            check_tensors(own, self.shapes_of(own), dict(zip("Dd", self.shapes[site])))
        if not self.router.fits(record.fingerprint):
            raise CorrigendaError("its fingerprint is not one of this router's")

    def learn_background(self) -> None:
        """Nothing: keys are not taken from a background, and a gate's is the project's text."""


def by_site(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A record's tensors "<site>.<kind>" by site and kind."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, kind = name.rpartition(".")
        found.setdefault(site, {})[kind] = tensor
    return found


def down_proj(layer: int) -> str:
    """What a layer's down-projection is called as a site."""
    return f"{layer}.mlp.down_proj"


def _widths(site: str, module: nn.Module) -> tuple[int, int]:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    raise CorrigendaError(
        f"{site} is a {type(module).__name__}, which does not tell its width; load the model without this quantisation."
    )
