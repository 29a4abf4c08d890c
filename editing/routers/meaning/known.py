"""What is kept of an edit so that requests can be compared with it: one row of int32, stored with the edit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import CorrigendaError

_MARK = 0x4D01
_HEAD = 5
_SENTENCE_END = re.compile(r"\w[.!?] +\w")


class Known(NamedTuple):
    """An edit as the router knows it.

    tokens     distinct token ids of the prompt, ascending
    subject    normalised; "" where none is known
    masked     the prompt's question without its frame, `STAND_IN` for the subject; "" where the prompt is a passage
    whole      the same with the subject, or the whole passage
    about      how many protected questions are about the subject
    vectors    int8 `[2 + protected, width]`: of `masked`, of `whole`, of the protected questions about the subject,
               masked, and of others as they stand; none of a passage
    """

    tokens: list[int]
    subject: str
    masked: str
    whole: str
    about: int
    vectors: np.ndarray

    @property
    def is_passage(self) -> bool:
        """Whether the prompt is no single question: only a request with nearly all its words can ask for it."""
        return not self.masked

    @property
    def is_long(self) -> bool:
        """Whether it is a passage, or a question in several sentences, which nearly all its words may ask for too."""
        return not self.masked or _SENTENCE_END.search(self.whole) is not None


def packed(known: Known) -> Tensor:
    """As int32 `[n]`."""
    text = json.dumps([known.subject, known.masked, known.whole, known.about], ensure_ascii=False).encode()
    count, width = known.vectors.shape
    body = text + bytes(-len(text) % 4) + known.vectors.tobytes() + bytes(-known.vectors.size % 4)
    head = [_MARK, len(known.tokens), len(text), count, width, *known.tokens]
    return torch.from_numpy(np.concatenate([np.array(head, dtype="<i4"), np.frombuffer(body, dtype="<i4")]).copy())


def unpacked(row: Tensor | Sequence[int], vocabulary: int, width: int) -> Known:
    """What `packed` made; behind it may stand filling. Raises where it is not that, or of another encoder's width."""
    words = np.asarray(row.cpu() if isinstance(row, Tensor) else row, dtype="<i4")
    fault = CorrigendaError("its fingerprint is not one of this router's")
    if len(words) < _HEAD or words[0] != _MARK:
        raise fault
    tokens, size, count, found = (int(word) for word in words[1:_HEAD])
    text_end = _HEAD + tokens + -(-size // 4)
    end = text_end + -(-count * found // 4)
    if min(tokens, size, count) < 0 or found != width or count == 1 or end > len(words):
        raise fault
    ids = words[_HEAD : _HEAD + tokens].tolist()
    if ids != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] < vocabulary):
        raise fault
    try:
        texts = json.loads(words[_HEAD + tokens : text_end].tobytes()[:size])
    except (ValueError, RecursionError):
        raise fault from None
    if not isinstance(texts, list) or [type(text) for text in texts] != [str, str, str, int]:
        raise fault
    subject, masked, whole, about = texts
    if bool(masked) != bool(count) or not 0 <= about <= max(0, count - 2):
        raise fault
    vectors = np.frombuffer(words[text_end:end].tobytes(), dtype=np.int8)[: count * found].reshape(count, found)
    return Known(ids, subject, masked, whole, about, vectors)


def token_row(row: Tensor) -> list[int]:
    """The prompt's token ids, of what `packed` made and of a plain row of ascending ids alike."""
    ids = row.tolist()
    # A plain row ascends; what `packed` made begins with its mark and a smaller number.
    if len(ids) > _HEAD and ids[0] == _MARK and 0 <= ids[1] < _MARK:
        return ids[_HEAD : _HEAD + ids[1]]
    return ids


def as_int8(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors in 127ths of their largest entry: cosines keep three digits."""
    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    return np.rint(vectors * (127 / largest)).astype(np.int8)


def as_unit(vectors: np.ndarray) -> np.ndarray:
    """The unit vectors that `as_int8` was given, nearly."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
