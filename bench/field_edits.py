"""The stream that methods are compared on: the half of a file's subjects that no setting was chosen on.

    python bench/field_edits.py --data FOLDER --out bench-work/field-zsre.jsonl
    python bench/field_edits.py --data FOLDER --file qaedit.jsonl --out bench-work/field-qaedit.jsonl

FOLDER has the file of edits and `same_subject.jsonl`. Of the first edit of each subject, in file order, every second
one is taken, from the second on. Those of which another question about their subject is known are laid between the
others, one by one; that question becomes `protected`. Localities that name the edit's own subject are left out: of
these some ask the edited relation again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

from corrigenda.editing import load_edits


def field_edits(data, file):
    """The edits, in order."""
    others = {}
    for line in (data / "same_subject.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        others[record["id"]] = tuple(record["same_subject_questions"])
    known, plain = [], []
    for edit in load_edits(data / file, unique_subject=True)[1::2]:
        elsewhere = tuple(one for one in edit.localities if edit.subject.casefold() not in one.prompt.casefold())
        edit = dataclasses.replace(edit, localities=elsewhere, protected=others.get(edit.id, ()))
        (known if edit.protected else plain).append(edit)
    pairs = itertools.zip_longest(plain, known)
    return [edit for pair in pairs for edit in pair if edit is not None]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--file", default="zsre.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    edits = field_edits(args.data, args.file)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in edits), "utf-8")
    print(f"{args.out}: {len(edits)} edits, {sum(bool(edit.protected) for edit in edits)} with another question")


if __name__ == "__main__":
    main()
