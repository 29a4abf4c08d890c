"""Where in a request the question is: its sentences and lines, each with its place and form."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from .subject import FUNCTION_WORDS

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
_NUMBER_OF = re.compile(r"\b(no|nos|art|sec|fig|ch|pp?|vol)$", re.I)
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
_ASKS_BACK = re.compile(
    r"^\W*(and\s+)?(who|whom|what|where|when|which|how)(\s+(one|year|is|was|are|were|did|does|do))*"
    r"(\s+(he|she|it|they|this|that|these|those))?(\s+(called|happen|one|be))?\s*[?？]$",
    re.I,
)
"""A question that says nothing without what stands before it: "Who is he?"."""

_LABEL = re.compile(
    r"\b(question|query|task|thing|things|example|input|prompt|request|problem|note|hint|instruction|quiz|riddle|trivia|hi|hello|"
    r"hey|please|now|next|following|moment|user|human|customer|so|ok|okay|tell|say|answer|know|ask|asked|asks)\b",
    re.I,
)
_NAME = re.compile(r"\s[\"'“«(]*(?!I\b)[A-Z0-9À-Þ]")
_DEFINITE = re.compile(r"(the|this|that|my|our|your) ", re.I)
_LONGEST_TOPIC, _LONGEST_PLAIN = 7, 4
_TEXT_TASK = re.compile(
    r"^\W*((please|kindly|now)\s+|(can|could|would)\s+you\s+(please\s+)?)*(summari[sz]e|tl;?dr|translate|paraphrase|"
    r"rewrite|rephrase|reword|shorten|condense|proofread|spell-?check|classify|simplify|extract|"
    r"(correct|fix|check|improve)\s+((the|this|my)\s+)?(grammar|spelling|style|text|sentence|wording)|"
    r"how\s+many\s+(words|letters|characters|syllables|vowels)|count\s+(the\s+)?(words|letters|characters|syllables|vowels)|"
    r"(write|compose|make\s+up)\s+(me\s+)?an?\s+((short|funny|little)\s+)?(poem|story|song|haiku|limerick|scene|dialogue)|"
    r"(do\s+not|don't|don’t|never)\s+answer|ignore|spell|"
    r"repeat\s+(this|the\s+following|after\s+me)|give\s+(me\s+)?(the\s+gist|a\s+summary|the\s+main\s+point))\b[^:：]*[:：]?",
    re.I,
)
"""What is to be done with a text, in which nothing is asked of the one who does it."""

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
    answered, or is the answer. In JSON every text is a part of its own, keys are none. A text that is to be summed up,
    translated and so on asks nothing, whatever questions it holds.
    """
    texts = [text for block in _blocks(_last_turn(request)) for text in _sentences(block)]
    texts = _joined(_without_worked_on(texts))
    asks = [_asks(text) for text in texts]
    ends = [i == len(texts) - 1 and not _END.search(text[-3:] + " ") for i, text in enumerate(texts)]
    # A single word at the end, a value in JSON say, continues nothing.
    goes_on = bool(texts) and ends[-1] and len(texts[-1].split()) > 1
    return [
        Part(text, asks[i], ends[i], len(texts) - 1 - i, any(asks[i + 1 :]) or (goes_on and i < len(texts) - 1))
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
        if after[:1].islower() and (mark.group()[0] == "." or not _begins_asking(after)):
            continue  # "Which channel showed Shake! first?"
        if mark.group()[0] == "." and is_shortened(before, after) and not _ends_with_number(before, after):
            continue
        sentences.append(block[start : mark.end()])
        start = mark.end()
    sentences.append(block[start:])
    found = [inner for text in sentences for inner in _inner(text.strip())]
    return [text for text in found if re.search(r"\w", text)]


def is_shortened(before: str, after: str) -> bool:
    """Whether what stands before a full stop ends with an initial or an abbreviation, "Arlin V" or "No" before "8"."""
    return _SHORT.search(before) is not None or (after[:1].isdigit() and _NUMBER_OF.search(before) is not None)


def _ends_with_number(before: str, after: str) -> bool:
    """Whether a sentence ends with a digit, "It flew with Apollo 8. The crew ...", which "the 3. Division" does not."""
    return before[-1:].isdigit() and after.split(None, 1)[0].casefold() in FUNCTION_WORDS


def _inner(text: str) -> list[str]:
    """A sentence; where it only hands over a question or a text, in quotation marks or after a colon, that apart."""
    task = _TEXT_TASK.match(text)
    if task is not None and task.group()[-1] in ":：":
        return [task.group(), text[task.end() :]]
    if task is not None:
        return [text]
    quoted = _QUOTED.search(text)
    if quoted is not None:
        rest = (text[: quoted.start()] + text[quoted.end() :]).strip()
        if not _asks(rest):
            return [rest, quoted.group(1)]
    colon = _AFTER_COLON.search(text)
    if colon is None:
        return [text]
    head, question = text[: colon.start()], text[colon.end() :]
    return [text] if _is_topic(head) and not _NAME.search(question) else [head, question]


def _is_topic(head: str) -> bool:
    """Whether what stands before a colon is what the question is about: "Kestrel: which port does it sail from?"."""
    count = len(head.split())
    if count > _LONGEST_TOPIC or _LABEL.search(head):
        return False
    plain = count <= 2 or (count <= _LONGEST_PLAIN and _DEFINITE.match(head) is not None)
    return plain or _NAME.search(head) is not None


def _without_worked_on(texts: list[str]) -> list[str]:
    """Without the sentences of a text that is to be worked on, before or after the one that says so."""
    for i, text in enumerate(texts):
        if _TEXT_TASK.match(text):
            quoted = re.search(r"\s[\"'“‘«「]", text)
            if quoted is not None:  # "Translate 'Who leads Kestrel?' into French."
                return [*texts[:i], text[: quoted.start()]]
            if text[-1:] in ":：" or re.search(r"\b(following|below|this|next)\b", text, re.I):
                return texts[: i + 1]
            if re.search(r"\b(above|preceding|previous)\b", text, re.I):
                return texts[i:]
    return texts


def _joined(texts: list[str]) -> list[str]:
    """A bare "It is" goes to the question that it continues, "Who is he?" to what it asks about."""
    joined: list[str] = []
    for text in texts:
        if joined and (_CONTINUES.match(text) or _ASKS_BACK.match(text)):
            joined[-1] += " " + text
        else:
            joined.append(text)
    return joined


def _asks(text: str) -> bool:
    if re.search(r"[?？؟]\W*(it is|they are)?$", text, re.I) or re.search(r"(か|吗|呢)[。.]?\W*$", text):
        return True
    return _begins_asking(text)


def _begins_asking(text: str) -> bool:
    return any(pattern.match(text) is not None for pattern in (_QUESTION_WORD, _ASK, _YES_NO))
