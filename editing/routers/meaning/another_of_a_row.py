"""Questions for another one of a row than an edit's: the previous, the first, the deputy, or that of 1990."""

from __future__ import annotations

import re
from collections.abc import Iterable

_YEAR = re.compile(r"(?<!as of )\b(1[5-9]\d\d|20\d\d)(?='?s?\b)")
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_SPANS = "season|year|month|week|time|decade|century|term|edition"
_THEIR = "(the|its|their|his|her)"
_USED_TO = "used to (be|work|live|lead|run|own|play|coach|have|hold|employ|manage)"

_DEPUTIES = "deputy|vice|acting|interim|associate|shadow|honorary|co|junior|sous|sub"

_MARKS = {
    "earlier": (
        *("previous(ly)?", "(?<!, )(?<!, the )(?<!, a )former(ly)?", "earlier", "prior", "past", "preceding"),
        *("predecessors?", "outgoing", r"ex-\w+", "(the|its|an) old", "in the past", "historically", "legacy"),
        *("until recently", r"\w+ ago", "back (in|then|when)", "at (that|the) time", "at first", "at launch"),
        *(
            "in the beginning",
            "before that",
            "under the old",
            "once (was|were|led|ran)",
            "the year before",
            "yesterday",
        ),
        *("in the days (of|when)", "in (the|its|their|his|her) (early|war|amateur|student|first) (years|days)"),
        *(
            "boyhood",
            "childhood",
            "as a (child|boy|girl|student)",
            "was yet to",
            "(up to|until|till) (the|it|he|she|they)",
        ),
        "of the (twenties|thirties|forties|fifties|sixties|seventies|eighties|nineties)",
        "last (winter|spring|summer|autumn|fall|monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
        f"(?<!its )(?<!the )last ({_SPANS})(?!'s)",
        "when (it|he|she|they) (first|was still|were still|won)",
        f"(?<!is )(?<!are )(?<!was )(?<!were ){_USED_TO}",
        r"before (the|her|his|its|their|my|our|that|this|it|she|he|they|\d+|version|v\d)",
    ),
    "later": (
        *("next", "future", "upcoming", "incoming", "forthcoming", "planned", "tomorrow", r"soon-to-\w+", r"\w+-elect"),
        *("successors?", "succeed(s|ed)?", "replac(e|es|ed|ing)", "who will", "(is|are|was|were|it) going to"),
        *(r"\w+ (years|months|weeks|days) from now", r"after \w+ (years|months|weeks|days)", "from q[1-4]"),
        *("as soon as", "come (spring|summer|autumn|winter)", "(starting|beginning) (in|from|next)"),
        *("(migrat|mov|switch|chang)ing to", "once (the|it|its|he|she|they|his|her|their) .*", f"from ({_MONTHS})"),
        "when (the|its|his|her|their) .* (opens|retires|leaves|ends|moves|closes|runs out|goes|went|came|comes)",
        rf"from (now|({_MONTHS})|(version|v|release) ?[\d.]+|\d+)( \d+)? (on|onwards)",
        "will .*(after|once|from|in the (summer|winter|new|coming|next))",
        "re-?(released|opened|launched|elected|issued)",
    ),
    "first": (
        f"{_THEIR} (very )?(first|original|initial|inaugural|earliest)",
        r"(originally|initially)( (meant|planned|going|supposed|scheduled|to)\b|[,?.]|$)",
        "very first",
    ),
    "ordinal": (
        rf"{_THEIR} (second|third|fourth|fifth|sixth|\d+(st|nd|rd|th))",
        "(second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth) (edition|most|best|largest|biggest|stage|round)",
        "(stage|phase|round|step) (two|three|four|five|[2-9])",
    ),
    "last": (
        rf"({_THEIR} (very )?(last|final|latest|newest)|most recent)\b(?! (year|name|day|time|election|word))",
        "very last",
    ),
    "version": (r"(version|release|v) ?\d+",),
    "deputy": (rf"({_DEPUTIES}|assistant|stand-?in)[- ][a-z]+",),
}
"""By what a question asks for another time than now, for another one of a row, or for whoever stands beside it."""

_ALSO = {
    "earlier": r"(previous\w*|former\w*|earlier|past|old|ex-|before|used to|ago|back)\b",
    "later": r"(next|future|new|successor|succe\w+|replac\w+|after|will|follow\w*|re-\w+)\b",
    "first": "(first|original|initial|inaugura|earliest|debut|premier|begin|began|start|found|launch)",
    "ordinal": r"(second|third|fourth|fifth|sixth|\d+(st|nd|rd|th)?)\b",
    "last": "(last|final|latest|recent|newest|end|until|termin)",
    "version": r"(version|release|v ?\d)",
    "deputy": rf"({_DEPUTIES}|assist\w*|stand)\b",
}
"""What an edit's question may say of the same in its own way: "first awarded" of the inaugural year."""

_MARKED = {name: re.compile(rf"\b({'|'.join(marks)})(?!\w)") for name, marks in _MARKS.items()}
_ALSO_MARKED = {name: re.compile(rf"\b{marks}") for name, marks in _ALSO.items()}
_PAST = re.compile(r"\b(was|were|did|had|\w+ed|took|found|spoke|led|ran|held)\b")


def asks_for_another_of_a_row(asked: str, held: str, wordings: Iterable[str]) -> bool:
    """Whether a question names another time, "previous" or "in 1990", version or rank, that an edit's does not.

    asked, held: their subject put aside; wordings: of the relations that the edit is nearest to, whose own words
    ("originally aired") say nothing of another time.
    """
    if set(_YEAR.findall(asked)) - set(_YEAR.findall(held)):
        return True
    if _PAST.search(held):  # "it used to work in", of somebody who "worked in"
        asked = re.sub(_USED_TO, " ", asked)
    return any(
        mark.search(asked)
        and not _ALSO_MARKED[name].search(held)
        and not any(mark.search(wording) for wording in wordings)
        for name, mark in _MARKED.items()
    )
