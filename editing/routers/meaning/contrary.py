"""Questions for the contrary of what an edit says: when it closed, who was fired, who works for whom turned round."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .subject import STAND_IN, content_words
from .wording import answer_kind

_SIDES = (
    (
        "launch|releas|introduc|premier|open|found|establish|creat|start|beg[aiu]n|built|born|birth|debut|went live|"
        "go(es)? live|c[oa]me out",
        "discontinu|clos(e|ed|es|ing|ure)|dissol|end(s|ed|ing)?|shut|retire|cancel|withdr|demolish|abolish|disband|ceas|"
        "die[sd]?|death|torn down|taken (out|off)|on hold|pulled",
    ),
    (
        "hir(e|ed|es|ing)|appoint|employ|recruit|led|lead|run|ran|head|manage",
        "fir(e|ed|es|ing)|sack|dismiss|let go|laid off",
    ),
    ("install", "uninstall|remov|delet|get rid"),
    ("arriv|land|reach|get in", "depart|leav(e|es|ing)|left|take off|takes off|set off|set out"),
    ("buy|bought|purchas|acquir|tak(e|en) over", "sell|sold(?! to)|divest"),
    ("win|won|wins|winner|victor|beat", "lose|loser|lost|came (last|second|third)|runner-up|second place"),
    ("import", "export"),
    ("upload", "download"),
    ("enabl|allow|permit|activat", "disabl|forb|ban|bans|banned|prohibit|deactivat"),
    ("maxim|highest|largest|biggest|most|tallest|longest|upper", "minim|lowest|smallest|least|shortest|lower"),
    ("oldest|first|opening", "youngest|latest|newest|last|final|closing"),
    ("cheap", "expensive|dear(er|est)|costl"),
    ("clos(e|es|ed|ing|ure)|shut", "re-?open|open again|passable"),
    ("deadline|due|end date|finish", "kick-?off|start"),
    ("terminus|terminat|final stop|last stop|destination", "origin|starting point|sets? out"),
    ("board|depart|take off", "get off|disembark|alight"),
    ("full|discharg|lasts?", "empty|recharg|to charge"),
    ("treat|cure|approved", "bring on|cause|side effect"),
    ("north", "south"),
    ("east", "west"),
    ("home", "away"),
    ("inbound|incoming", "outbound|outgoing"),
    ("borrow", "lend|lent"),
    ("join", "leav(e|es|ing)|left|quit"),
    ("marr(y|ied|iage)|wed", "divorc|separat"),
    ("increas|rais|rose", "decreas|lower|fell|drop|reduc"),
    ("employer", "employee|staff"),
    ("supplier|supplies", "customer|client"),
    ("check-?in", "check-?out"),
    ("entrance|entry", "exit"),
    ("support|back(s|ed|er)", "oppos|against"),
    ("front", "back|rear"),
    ("summer", "winter"),
    ("cold", "hot|warm"),
    ("approv|accept|grant", "reject|refus|den(y|ied)|cancel|revok"),
)
_CONTRARIES = tuple((re.compile(rf"\b({one})\w*"), re.compile(rf"\b({other})\w*")) for one, other in _SIDES)

_ENDS = re.compile(
    r"\b(fir(e|ed|es|ing)|sack\w*|dismiss\w*|let go|laid off|pull\w* out|uninstall\w*|remov\w*|cancel\w*|lost|loses?|"
    r"resign\w*|quit|steps? down|stepped down|minimum|empty|forbidden|refus\w*|reject\w*|denied|exhumed|evicted|blank|"
    r"(turn|mov|throw|kick|driv)\w* (down|out|off)|thrown (out|off)|said no|conflict)\b"
)
"""What is said of the contrary of nearly anything: "whom did it fire?" of an edit that says who leads it."""

_EITHER = frozenset(
    (
        *(
            "affi",
            "air",
            "asso",
            "base",
            "bega",
            "begi",
            "belo",
            "broa",
            "call",
            "chan",
            "char",
            "clos",
            "comp",
            "cost",
        ),
        *(
            "divi",
            "end",
            "feat",
            "form",
            "invo",
            "know",
            "last",
            "laun",
            "list",
            "loca",
            "marr",
            "mean",
            "move",
            "name",
        ),
        *("open", "orig", "prem", "rank", "rela", "rele", "reti", "ship", "sign", "spec", "stan", "star", "take"),
    )
)
"""Verbs, by their first letters, that say the same of a thing that does and one that is done to: "it opened"."""

_UNDOING = re.compile(r"^(un|dis|de|non)(\w{4,})$")
_BE = r"(?:is|are|was|were|be|been|being|gets|got)"
_NOT_BE = "(?<!is )(?<!was )(?<!are )(?<!were )(?<!'s )(?<!get )(?<!got )"
_DO = r"(?:did|does|do|will|would|can|could)"
_TO = r"(?:for|at|with|under|in|to|on|from)"
_WHO = r"(?:who|whom|what|that|which \w+|whose \w+|what \w+)"


def asks_the_contrary(asked: str, held: str, wordings: Iterable[str]) -> bool:
    """Whether a question asks for the contrary, "when was it closed?" for "when was it opened?", or turns it round."""
    if _ENDS.search(asked) and not any(_ENDS.search(text) for text in (held, *wordings)):
        return True
    for one, other in _CONTRARIES:
        there, here = ([bool(side.search(text)) for side in (one, other)] for text in (held, asked))
        if there[0] != there[1] and here == there[::-1]:
            return True
    return _is_undone(asked, held) or _is_turned_round(asked, held)


def _is_undone(asked: str, held: str) -> bool:
    """Whether a word of the edit's question has become its contrary: "unlock" for "lock"."""
    there = content_words(held)
    bases = [found[2] for word in content_words(asked) if (found := _UNDOING.match(word)) and word not in there]
    return any(word.startswith(base[:5]) for base in bases for word in there)


def _is_turned_round(asked: str, held: str) -> bool:
    """Whether the subject does in one what is done to it in the other: "who works for it?", "it works for"."""
    if {answer_kind(asked), answer_kind(held)} & {"time", "place"}:
        return False
    stems = {word[:4] for word in content_words(asked) if len(word) > 3} & {word[:4] for word in content_words(held)}
    for stem in stems - _EITHER:
        one, other = _does(stem, asked), _does(stem, held)
        if one is not None and other is not None and one != other:
            return True
    return False


def _does(stem: str, text: str) -> bool | None:
    """Whether the subject does what a verb with these letters says, or has it done to it; None: nobody can tell."""
    verb, done = rf"{re.escape(stem)}\w*", rf"{re.escape(stem)}\w*(?:ed|en|n|t)\b"
    does = (
        rf"\b{_DO} {STAND_IN} (?:\w+ )?{verb}",
        rf"\b(?:{_BE} {STAND_IN}|{STAND_IN} {_BE}) (?:\w+ )?{verb}ing\b",
        rf"{_NOT_BE}\b{STAND_IN} (?:now |itself )?{verb}(?<![eo]r)(?:s|ed)\b",
        rf"\b{verb} by {STAND_IN}\b",
    )
    if any(re.search(pattern, text) for pattern in does):
        return True
    has_done = (
        rf"\b(?:{_BE} {STAND_IN}|{STAND_IN} {_BE}) (?:\w+ )?{done}",
        rf"\b{_WHO} (?:\w+ )?{verb}(?<![eo]r) (?:{_TO} )?{STAND_IN}\b",
        rf"\b(?:the|its) (?:\w+ )?{verb}(?:er|or)s? (?:of|at|for) {STAND_IN}\b|\bits (?:\w+ )?{verb}(?:er|or)\b",
    )
    return False if any(re.search(pattern, text) for pattern in has_done) else None
