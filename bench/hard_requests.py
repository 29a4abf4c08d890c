"""Edits of made-up subjects, and what people would type: what asks for the edit, and what only nearly does.

`hard_requests.json` has made-up subjects of twelve kinds, all written by hand for this project by people who did not
see the router: wordings that ask for the edit, short, colloquial, indirect, misspelt or with the subject in a sentence
before; and what differs from it in a word, the time, the side, the party, the name. Of the first sixty subjects every
other one of a kind is in one half; thirty-six more, written when these had been read, are all in the half for choosing.
"""

from __future__ import annotations

import json
from pathlib import Path

from corrigenda.editing import Edit

FILE = Path(__file__).with_name("hard_requests.json")
ASKED = "asked as people do"
KINDS = {
    "other_time": "of another time",
    "opposite": "the contrary",
    "other_party": "of another party",
    "near_relation": "a near relation",
    "longer_name": "a longer name",
    "shorter_name": "a part of the name",
    "near_name": "nearly the same name",
    "task": "a task about the edit",
}
"""What each field of the file is as a kind of request that no edit is about."""


def hard_requests(half: int) -> tuple[list[Edit], list[tuple[str, str, str | None]]]:
    """The edits of one half; and requests: kind, text, and the id of the edit to be found."""
    edits: list[Edit] = []
    requests: list[tuple[str, str, str | None]] = []
    for record in _records(half):
        edit = Edit(record["prompt"], record["target"], subject=record["subject"], id=f"hard-{record['subject']}")
        edits.append(edit)
        requests += [(ASKED, text, edit.id) for text in record["same"]]
        requests += [(kind, text, None) for field, kind in KINDS.items() for text in record[field]]
    return edits, requests


def kinds_of_hard_subjects() -> dict[str, str]:
    """The kind of each made-up subject, "company" say."""
    return {record["subject"]: record["kind"] for record in json.loads(FILE.read_text(encoding="utf-8"))}


def _records(half: int) -> list[dict]:
    return [record for record in json.loads(FILE.read_text(encoding="utf-8")) if record["half"] == half]
