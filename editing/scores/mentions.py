"""Whether a generated text gives an answer, by the rule of KEBench (StableKE, arXiv 2402.13048)."""

from __future__ import annotations

import re
from collections.abc import Iterable

_EXCUSES = ("sorry", "apologize")


def mentions(text: str, answers: Iterable[str]) -> bool:
    """Whether a text holds one of the answers: of one word as a word, cut at "." and "'"; of several as they stand.

    Case and white space do not count. An answer without a letter or digit is looked for as it stands.
    """
    said = " ".join(text.casefold().split())
    words = {word.strip(',;:!?"()[]') for word in re.split(r"[\s.']+", said)}
    for answer in answers:
        wanted = " ".join(answer.casefold().split())
        if wanted and (wanted in words or ((" " in wanted or not wanted.isalnum()) and wanted in said)):
            return True
    return False


def counts_as_edited(text: str, new: Iterable[str], old: Iterable[str] = ()) -> bool:
    """Whether a text gives the new answer, or an alias of it, and neither the old one nor an excuse."""
    excused = any(excuse in text.casefold() for excuse in _EXCUSES)
    return mentions(text, new) and not mentions(text, old) and not excused
