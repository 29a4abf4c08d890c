"""Twenty facts in each of six languages, written for this project, and what is asked about them.

`other_languages.json` has, of five kinds of subjects, four subjects each, and the wordings of one relation: the edit's
prompt, the same question in nearly its words, in others, and another question about the subject.

    python bench/other_languages.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from record import provenance, results_folder, write_json

from corrigenda.editing import Edit
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.routers.meaning.router import MeaningRouter
from corrigenda.editing.routers.tokens import TokenRouter

KINDS = ("own prompt", "full width", "nearly its words", "other words", "other question", "same relation")
FILE = Path(__file__).with_name("other_languages.json")


class Facts(NamedTuple):
    """A language's edits, and questions by kind: text and the id of the edit to be found, or None."""

    edits: list[Edit]
    asked: dict[str, list[tuple[str, str | None]]]


def languages() -> dict[str, Facts]:
    found = {}
    for language, of_language in json.loads(FILE.read_text(encoding="utf-8")).items():
        edits: list[Edit] = []
        asked: dict[str, list[tuple[str, str | None]]] = {kind: [] for kind in KINDS}
        for kind, (prompt, near, free, other) in of_language["relations"].items():
            for subject in of_language["subjects"][kind]:
                edit = Edit(prompt.format(subject), "?", subject=subject, id=f"{language}-{subject}")
                edits.append(edit)
                asked["own prompt"].append((edit.prompt, edit.id))
                asked["nearly its words"].append((near.format(subject), edit.id))
                asked["other words"].append((free.format(subject), edit.id))
                asked["other question"].append((other.format(subject), None))
                asked["full width"].append((f"　{edit.prompt.replace('?', '？')}　", edit.id))
            for text in (prompt, near, free):
                asked["same relation"].append((text.format(of_language["others"][kind]), None))
        found[language] = Facts(edits, asked)
    return found


def measured(router_of) -> dict[str, dict[str, float]]:
    """By language and kind the share of questions that get their edit; of those that are no edit's, that get one.

    router_of: makes a router that knows these edits.
    """
    shares: dict[str, dict[str, float]] = {}
    for language, facts in languages().items():
        router = router_of(facts.edits)
        shares[language] = {}
        for kind, questions in facts.asked.items():
            route = router.decide([text for text, _ in questions]).route.tolist()
            got = [facts.edits[place].id if place >= 0 else None for place in route]
            if questions[0][1] is None:
                hits = sum(edit is not None for edit in got)
            else:
                hits = sum(edit == wanted for edit, (_, wanted) in zip(got, questions))
            shares[language][kind] = round(hits / len(questions), 4)
    return shares


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2", help="whose tokenizer counts tokens")
    parser.add_argument("--results", type=Path, default=results_folder())
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.model)
    found = {}
    for name, kind in (("tokens", TokenRouter), ("meaning", MeaningRouter)):

        def router_of(edits, kind=kind):
            router = kind(tokenizer, background_prompts())
            router.add_fingerprints(router.fingerprints_of([edit.prompt for edit in edits], edits))
            return router

        found[name] = measured(router_of)
        print(name, found[name], flush=True)
    write_json(args.results / "routing-languages.json", {**provenance(), **found})


if __name__ == "__main__":
    main()
