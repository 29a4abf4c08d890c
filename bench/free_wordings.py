"""Edits of made-up subjects and questions about them in free wordings, all written for this project.

`free_wordings.json` holds relations of nine kinds of subjects, each in some six wordings: questions, statements to be
completed, a topic before a colon, "nowadays", and other turns that public files seldom have. Relations and names are in
one of two halves, so what is fitted on one is measured on relations that it never saw.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from corrigenda.editing import Edit

FILE = Path(__file__).with_name("free_wordings.json")
EDITS_A_SUBJECT, ASKED, OTHERS = 3, 4, 4
_ALIKE = ({"maintainer", "owner team"}, {"habitat", "cause", "name"}, {"departure", "street"}, {"price", "fee"})


def half_of(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % 2


def kind_of_subjects() -> dict[str, str]:
    """The kind of each made-up subject, "company" say."""
    read = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: kind for kind, of_kind in read.items() for name in of_kind["names"]}


def free_wordings(half: int) -> tuple[list[Edit], list[tuple[str, str, str | None]]]:
    """The edits of one half, up to three a subject; and requests: kind, text, and the id of the edit to be found."""
    source = random.Random(half)
    edits: list[Edit] = []
    requests: list[tuple[str, str, str | None]] = []
    for kind, of_kind in json.loads(FILE.read_text(encoding="utf-8")).items():
        relations = {name: texts for name, texts in of_kind["relations"].items() if half_of(kind + name) == half}
        for subject in of_kind["names"][half::2]:
            chosen = source.sample(sorted(relations), min(EDITS_A_SUBJECT, len(relations) - 1))
            for name in chosen:
                prompt, *others = source.sample(relations[name], len(relations[name]))
                edit = Edit(_filled(prompt, subject), "?", subject=subject, id=f"free-{subject}-{name}")
                edits.append(edit)
                requests += [("freely worded", _filled(text, subject), edit.id) for text in others[:ASKED]]
            left = [
                text
                for name, texts in relations.items()
                if name not in chosen and not any(name in group and group.intersection(chosen) for group in _ALIKE)
                for text in texts
            ]
            for text in source.sample(left, min(OTHERS, len(left))):
                requests.append(("freely worded, other question", _filled(text, subject), None))
    return edits, requests


def _filled(text: str, subject: str) -> str:
    text = text.format(subject)
    return text[:1].upper() + text[1:]
