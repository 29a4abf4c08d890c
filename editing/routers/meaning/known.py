"""What is kept of an edit so that requests can be compared with it: one row of int32, stored with the edit."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import CorrigendaError
from .sentences import is_shortened

_MARK = 0x4D01
_HEAD = 5
_DECODER = json.JSONDecoder()
_HEADER = struct.Struct(f"<{_HEAD}i")
_SENTENCE_END = re.compile(r"(?<=\w)[.!?](?= +\w)")


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
        # "The gender of Arlin V. Stevens" is one sentence: taken for two, nearly its tokens were enough for it.
        ends = _SENTENCE_END.finditer(self.whole)
        return not self.masked or any(
            not is_shortened(self.whole[: end.start()], self.whole[end.end() :].lstrip()) for end in ends
        )


def packed(known: Known) -> Tensor:
    """As int32 `[n]`."""
    text = json.dumps([known.subject, known.masked, known.whole, known.about], ensure_ascii=False).encode()
    count, width = known.vectors.shape
    body = text + bytes(-len(text) % 4) + known.vectors.tobytes() + bytes(-known.vectors.size % 4)
    head = [_MARK, len(known.tokens), len(text), count, width, *known.tokens]
    return torch.from_numpy(np.concatenate([np.array(head, dtype="<i4"), np.frombuffer(body, dtype="<i4")]).copy())


def unpacked(row: Tensor | Sequence[int], vocabulary: int, width: int) -> Known:
    """What `packed` made; behind it may stand filling. Raises where it is not that, or of another encoder's width."""
    # Plain bytes and integers: of 100,000 edits, numpy's small arrays would take two seconds more.
    data = row.cpu().numpy().tobytes() if isinstance(row, Tensor) else np.asarray(row, dtype="<i4").tobytes()
    fault = CorrigendaError("its fingerprint is not one of this router's")
    if len(data) < 4 * _HEAD:
        raise fault
    mark, tokens, size, count, found = _HEADER.unpack_from(data)
    text = 4 * (_HEAD + tokens)
    vectors = text + size + -size % 4
    if mark != _MARK or min(tokens, size, count) < 0 or found != width or count == 1:
        raise fault
    if vectors + count * found > len(data):
        raise fault
    ids = list(struct.unpack_from(f"<{tokens}i", data, 4 * _HEAD))
    if ids and not (ids[0] >= 0 and ids[-1] < vocabulary and ids == sorted(set(ids))):
        raise fault
    try:
        texts = _DECODER.decode(data[text : text + size].decode())
    except (ValueError, RecursionError):
        raise fault from None
    if not isinstance(texts, list) or [type(one) for one in texts] != [str, str, str, int]:
        raise fault
    subject, masked, whole, about = texts
    if bool(masked) != bool(count) or not 0 <= about <= max(0, count - 2):
        raise fault
    return Known(ids, subject, masked, whole, about, np.ndarray((count, found), np.int8, data, vectors))


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
