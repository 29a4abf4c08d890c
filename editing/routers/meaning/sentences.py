"""Where in a request the question is: its sentences and lines, each with its place and form."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_ASKING = re.compile(r"^\W*(q|question|user|human|customer|me|frage|pregunta|вопрос|问|問|سؤال)\s*[:：]\s*", re.I)
_ANSWERING = re.compile(
    r"^\W*(a|answer|assistant|ai|bot|agent|output|response|antwort|respuesta|ответ|答|回答|جواب)\s*[:：]\s*", re.I
)
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？｡]+[”’」』）]*|[؟।]+[\"'”’»)]*")
_SHORT = re.compile(
    r"(^|[\s(\"“])(\w|[A-Za-z]\.[A-Za-z.]*|(mr|mrs|ms|dr|prof|st|ste|mt|vs|jr|sr|inc|ltd|co|corp|vol|"
    r"ed|gen|col|lt|sgt|capt|rev|hon|gov|sen|rep|ft|approx|cf|e\.g|i\.e|nr|bzw|usw|z\.b|ул|г))$",
    re.I,
)
_QUESTION_WORD = re.compile(
    r"^\W*(in|at|on|of|to|from|for|by|with|under|since|until|and|so|but|now|ok|okay)?\s*"
    r"(who|whom|whose|what|what's|who's|where|when|which|why|how|where's)\b",
    re.I,
)
_YES_NO = re.compile(
    r"^\W*(and\s+|so\s+|but\s+)?(is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|isn't|wasn't|aren't"
    r"|doesn't|didn't|hasn't|am)\s+(?!you\b|i\b|we\b)",
    re.I,
)
_ASK = re.compile(
    r"^\W*(please\s+)?(tell\s+(me|us)|name|give\s+(me|us)|state|say|find\s+out|i\s+(want|need|would\s+like)\s+to"
    r"\s+know|i\s+wonder|i'd\s+like\s+to\s+know|do\s+you\s+know|can\s+you|could\s+you|would\s+you|remind\s+me)\b",
    re.I,
)
_CONTINUES = re.compile(
    r"^\s*(it|they|he|she|that|this|the answer)\s+(is|was|are|were)\s*:?\s*$|^\W*answer\s*:?\s*$", re.I
)
_QUOTED = re.compile(r"[\"“«「]([^\"“”«»「」]{8,}[?？؟])[\"”»」]")
_AFTER_COLON = re.compile(
    r"[:：]\s+(?=(who|whom|whose|what|where|when|which|why|how|in which|is|are|was|did|does)\b)", re.I
)
_LONGEST_JSON = 200_000


class Part(NamedTuple):
    """A sentence, or a line, of a request.

    text       as it stands there, without white space around it
    asks       whether it is a question: by its mark, its first words, or as an order to answer
    open       whether it ends without a mark at the end of the request: what is to be continued
    from_end   how many parts with words come after it
    later      whether another question, or something to be continued, comes after it
    """

    text: str
    asks: bool
    open: bool
    from_end: int
    later: bool


def parts_of(request: str) -> list[Part]:
    """The parts of a request that are still to be answered, in order.

    In a transcript ("Q: ... A: ... Q: ...") only what follows the last asking mark counts: what stands before it was
    answered, or is the answer. In JSON every text is a part of its own, keys are none.
    """
    texts = [text for block in _blocks(_last_turn(request)) for text in _sentences(block)]
    texts = _joined(texts)
    asks = [_asks(text) for text in texts]
    ends = [i == len(texts) - 1 and not _END.search(text[-3:] + " ") for i, text in enumerate(texts)]
    return [
        Part(text, asks[i], ends[i], len(texts) - 1 - i, any(asks[i + 1 :]) or any(ends[i + 1 :]))
        for i, text in enumerate(texts)
    ]


def _last_turn(request: str) -> str:
    lines = request.split("\n")
    start, answered = None, False
    for i, line in enumerate(lines):
        if _ASKING.match(line) and _ASKING.sub("", line).strip():
            start, answered = i, False
        elif start is not None and _ANSWERING.match(line):
            answered = bool(_ANSWERING.sub("", line).strip())
    if start is None:
        return request
    turn: list[str] = []
    for line in lines[start:]:
        if _ANSWERING.match(line):
            break
        turn.append(_ASKING.sub("", line) if not turn else line)
    return "\n".join(turn) if not answered or "".join(turn).strip() else request


def _blocks(text: str) -> list[str]:
    """Lines that belong together; texts inside JSON, each its own."""
    blocks: list[str] = []
    rest = text
    while (start := _json_start(rest)) is not None:
        try:
            value, end = json.JSONDecoder().raw_decode(rest, start)
        except (ValueError, RecursionError):
            break
        blocks += _lines(rest[:start])
        blocks += [line for found in _texts(value) for line in _lines(found)]
        rest = rest[end:]
    return blocks + _lines(rest)


def _json_start(text: str) -> int | None:
    found = re.search(r"[\[{]\s*[\[{\"]", text[:_LONGEST_JSON])
    return None if found is None else found.start()


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def _lines(text: str) -> list[str]:
    """Lines, those joined that a page's width has cut: the next one goes on in lower case."""
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.strip()
        goes_on = lines and lines[-1] and line[:1].islower() and not _END.search(lines[-1][-3:] + " ")
        if goes_on and lines[-1][-1:] not in ":;":
            lines[-1] += " " + line
        else:
            lines.append(line)
    return [line for line in lines if line]


def _sentences(block: str) -> list[str]:
    sentences, start = [], 0
    for mark in _END.finditer(block):
        before, after = block[start : mark.start()], block[mark.end() :].lstrip()
        if mark.group()[0] == "." and (_SHORT.search(before) or after[:1].islower()):
            continue
        sentences.append(block[start : mark.end()])
        start = mark.end()
    sentences.append(block[start:])
    found = [inner for text in sentences for inner in _inner(text.strip())]
    return [text for text in found if re.search(r"\w", text)]


def _inner(text: str) -> list[str]:
    """A sentence; where it only hands over a question, in quotation marks or after a colon, that question apart."""
    quoted = _QUOTED.search(text)
    if quoted is not None:
        rest = (text[: quoted.start()] + text[quoted.end() :]).strip()
        if not _asks(rest):
            return [rest, quoted.group(1)]
    colon = _AFTER_COLON.search(text)
    return [text] if colon is None else [text[: colon.start()], text[colon.end() :]]


def _joined(texts: list[str]) -> list[str]:
    """A bare "It is" goes to the question that it continues."""
    joined: list[str] = []
    for text in texts:
        if joined and _CONTINUES.match(text):
            joined[-1] += " " + text
        else:
            joined.append(text)
    return joined


def _asks(text: str) -> bool:
    if re.search(r"[?？؟]\W*(it is|they are)?$", text, re.I) or re.search(r"(か|吗|呢)[。.]?\W*$", text):
        return True
    return bool(_QUESTION_WORD.match(text) or _ASK.match(text)) or bool(_YES_NO.match(text))
