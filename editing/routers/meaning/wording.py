"""How a question is put: its frame taken off, the kind of answer it wants, whether it denies or compares."""

from __future__ import annotations

import re

from .subject import STAND_IN

_FRAME = re.compile(
    r"^\W*((please|kindly|ok|okay|well|so|and|hi|hello|hey|thanks)\b[\s,!:-]*"
    r"|(question|q|frage|pregunta)\s*[:.]\s*"
    r"|(can|could|would|will) (you|someone|anyone)( please| kindly| perhaps)? (please |kindly )?(tell|give|say|remind|"
    r"name|inform|explain|let)( to)?( me| us)?( know)?( again)?( about)?[\s,:-]*"
    r"|(tell|remind|inform) (me|us)( please)?[\s,:-]+(?!about|a |an |more|something|some )"
    r"|(i|we) (would like|want|need|would love|'d like|wish) to (know|find out|learn)[\s,:-]*"
    r"|i'd like to (know|find out|learn)[\s,:-]*"
    r"|(i|we)('m| am| are|'re)? (wonder|wondering|curious|asking)( to know)?[\s,:-]*"
    r"|(do|did|does) (you|anyone|anybody|someone) (happen to )?(know|remember|recall)[\s,:-]*"
    r"|any (idea|clue)[\s,:-]*"
    r"|answer( (the|this|my)( following)? question)?[\s,:-]+)"
)
_TAIL = re.compile(r"[\s,!.:-]*(\b(please|thanks|thank you|do you know|it is|the answer is|answer)\b)?[\s:.!,]*$")
_NEGATED = re.compile(
    r"\b(not|never|no longer|nor|neither|without|except|besides|cannot)\b|n't\b|\bother than\b|\bapart from\b"
)
_DENIED = re.compile(r"\b(is|was|are|were|do|does|did|has|have|can|will) not\b|n't\b|\bno longer\b|\bother than\b")
_COMPARED = re.compile(r"\b(than|versus|vs|compared?|rather|as \w+ as|the same \w+ as|between|difference)\b|,? or\b")
_YES_NO = re.compile(
    r"^\W*(and |so |but )?(is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|isn't|wasn't|aren't|"
    r"weren't|doesn't|didn't|hasn't)\b"
)
_ASKED_FOR = re.compile(r"\b(who|whom|whose|what|where|when|which|why|how)\b")
_TASK = re.compile(
    r"^\W*((please|kindly|now|can you|could you|would you|help me( to)?|i want you to|let's|"
    r"i('d| would) like( you)? to|i (want|need) to)\s+)*"
    r"(write|draft|compose|make|plan|suggest|design|create|explain|describe|discuss|recommend|prepare|invent|imagine|"
    r"pretend|argue|analy[sz]e|review|outline|generate|code|build|convince|persuade|brainstorm|sketch|draw|paint|sing|"
    r"debate|evaluate|criticize|defend|promote|advertise|improve|rank|rate|remind me (to|about)|schedule|book|order|"
    r"notify|update|change|cancel|complain|act as|role-?play|show me (how|a|an|some|\w+ code)|"
    r"give (me )?(a|an|some|two|three|four|five|ten|\d+|tips|advice|ideas|arguments|reasons|examples)|"
    r"list (the )?(pros|reasons|arguments|advantages|ideas|tips)|(any )?(tips|ideas|advice) (for|on)|"
    r"(the )?pros and cons|help (with|understand|choose|decide|pick)|what are my|walk me through|find me|propose|"
    r"whether|(help me )?word (a|an|the)|i need (a|an|some\w*|two|three|four|five|ten|help|ideas)|what if|"
    r"what (should|can|could|would) (i|we|one|you) do|what would( have|'ve)?|should (i|we|one))\b"
    r"(?!:| (who|whom|where|when|which|what)\b)"
)
_TOPIC = re.compile(
    r"^\W*((about|regarding|concerning|on|re|as for|with regard to|with respect to|for|at|in) )?it"
    r"(\s*:\s*|\s+[-–—]+\s+|\s*,\s*(?=(who|whom|whose|what|where|when|which|why|how|in|on|at|since|by|is|does|do)\b.*"
    r"\b(it|its|they|their|them|he|she|his|her|him|this|that|there)\b))(?=\w+\W+\w)"
)
_TOPIC_AGAIN = re.compile(
    r"\b(this|that) (?!is\b|was\b|has\b|does\b|did\b|belongs?\b)[^\W\d]+|\b(they|them|he|she|him|this|that)\b"
)
_NOWADAYS = re.compile(
    r"[\s,]*\b(nowadays|these days|currently|presently|at the moment|at present|right now|as of (now|today)|today)\b,?"
)
_SAME = (
    (re.compile(r"\b(which|what) (person|individual|human being)\b"), "who"),
    (re.compile(r"\b((in|at) )?(which|what) (location|place)\b"), "where"),
)
_KINDS = (
    ("number", r"\bhow (many|much)\b|\b(number|amount) of\b|\bpopulation\b"),
    ("size", r"\bhow (old|tall|high|long|big|large|deep|far|fast|heavy|wide|often|hot|rich|late|early)\b"),
    (
        "time",
        r"\bwhen\b|\b(what|which) (year|date|day|month|century|decade|time|season)\b|"
        r"\b(year|date) (of|that|when|it|in)\b|\bthe (year|date)\b|\b(since|until)$",
    ),
    ("person", r"\bwho|\b(what|which) (person|man|woman|actor|actress|artist|author|king|singer)\b|\bby$"),
    (
        "place",
        r"\bwhere\b|\b(what|which) (country|city|town|place|state|region|county|continent|nation|location|province|"
        r"district|area|village)\b|\b(country|city|town|place|location) (of|that|where|in|it)\b",
    ),
    ("reason", r"\bwhy\b"),
    (
        "manner",
        r"\bhow\b(?! (many|much|old|tall|high|long|big|large|deep|far|fast|heavy|wide|often|hot|rich|late|early))",
    ),
)
_KIND_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _KINDS)


def core(text: str) -> str:
    """A normalised sentence without the frame that people put around a question."""
    text = _off_topic(text)
    for _ in range(4):
        bare = _FRAME.sub("", text, count=1)
        if bare == text or not bare.strip():
            break
        text = bare
    bare = _NOWADAYS.sub("", text).strip()
    text = bare if " " in bare else text
    for pattern, plain in _SAME:
        text = pattern.sub(plain, text)
    bare = _TAIL.sub("", text)
    return bare or text


def _off_topic(text: str) -> str:
    """ "it: which port does this ferry sail from?" as "which port does it sail from?"."""
    topic = _TOPIC.match(text)
    if topic is None:
        return text
    return with_stand_in(text[topic.end() :])


def with_stand_in(text: str) -> str:
    """A normalised sentence with `STAND_IN` for its pronouns: "who leads them?" of somebody named before."""
    text = re.sub(r"\b(their|his|her)\b", "its", text)
    return _TOPIC_AGAIN.sub(STAND_IN, text)


def answer_kind(text: str) -> str:
    """What kind of answer a normalised sentence asks for, "person", "time", ...; "" where it does not say."""
    found = [(match.start(), name) for name, pattern in _KIND_PATTERNS if (match := pattern.search(text))]
    return min(found)[1] if found else ""


def is_task(text: str) -> bool:
    """Whether a normalised sentence sets a task, "draft a letter to it"."""
    return _TASK.match(text) is not None


def is_negated(text: str) -> bool:
    return _NEGATED.search(text) is not None


def is_denied(text: str) -> bool:
    """Whether a question asks for what is not so: "who is not its founder"."""
    return _DENIED.search(text) is not None


def is_compared(text: str) -> bool:
    return _COMPARED.search(text) is not None


def is_yes_no(text: str) -> bool:
    """Whether yes or no would answer it."""
    return _YES_NO.search(text) is not None


def asks_whether(text: str) -> bool:
    """The same, where it holds no other question ("is it known who leads it?" does)."""
    return is_yes_no(text) and _ASKED_FOR.search(text) is None
