"""What is asked of a tokenizer of transformers: the type checker holds the code to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Text to token ids and back, with a template for chats."""

    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    all_special_ids: Sequence[int]
    all_special_tokens: Sequence[str]
    name_or_path: str

    def __call__(self, text: str | Sequence[str], **options: Any) -> Mapping[str, Any]: ...

    def __len__(self) -> int: ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **options: Any) -> Any: ...
