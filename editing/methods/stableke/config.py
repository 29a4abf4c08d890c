"""The settings of StableKE; the paper's are not in its repository, so all of them are ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import is_whole
from ..documented import documented
from ..lora.config import AdapterConfig


@documented
@dataclass
class StableKeConfig(AdapterConfig):
    """StableKE (arXiv 2402.13048): an edit is finetuned on in several wordings, with descriptions of what it says.

    The wordings are the record's (`metadata`: "paraphrases" and "descriptions", lists of texts), or else the model's
    own, where the paper asks a larger one. How many, and how they are learnt, is ours: the paper's repository does not
    say. It finetunes once, on all edits; here each edit has an adapter of its own, so that it can be taken out.
    """

    method: ClassVar[str] = "stableke"
    names: ClassVar = ("stableke",)
    summary: ClassVar = "an adapter an edit, learnt from several wordings and descriptions"
    only_solving: ClassVar = AdapterConfig.only_solving | {"paraphrases", "descriptions", "wording_tokens"}
    eos: bool = True
    rank: int = 16
    """Of an edit's adapter."""
    learning_rate: float = 2e-3
    """Of AdamW, without weight decay."""
    steps: int = 30
    """Of all wordings together."""
    stop_loss: float = 0.05
    paraphrases: int = 5
    """In how many other wordings of the prompt the target is learnt."""
    descriptions: int = 3
    """How many descriptions of the new fact are learnt."""
    wording_tokens: int = 32
    """The longest that the model writes itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("paraphrases", "descriptions"):
            value = getattr(self, name)
            self._require(is_whole(value) and value >= 0, name, "a whole number from 0 on")
        self._require_positive("wording_tokens")
