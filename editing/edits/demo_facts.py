"""The demo's own edits, generated from the tables in ``data/demo_facts.json``.

No target is true: companies, clubs, museums and software are invented, and the facts about real
places, books and bridges are counterfactual.
"""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import cycle
from typing import Any

from ..edits.edit import Edit, Locality

OTHER_QUESTION = "other_question"
"""Where an edit's metadata has another question about its subject, which the edit must not answer."""

_SAME_RELATION_EVERY = 3
"""Each third edit of a relation is paired with a question of the same relation about another subject."""


def _load_tables() -> dict[str, Any]:
    """Read the fact tables that are shipped with the package."""
    return json.loads((files("corrigenda.editing") / "data" / "demo_facts.json").read_text(encoding="utf-8"))


def demo_edits() -> list[Edit]:
    """Return the demo edits, relation by relation, always in the same order.

    Every edit has two rephrases (the two halves of its relation's four templates take turns) and one
    locality prompt: a general question, or for each third edit one of the same relation about a real
    subject that no edit touches. A locality's answer is ``None`` where the true answer changes over time.
    """
    tables = _load_tables()
    general = cycle(tables["general_localities"])
    edits: list[Edit] = []
    for relation in tables["relations"]:
        name, templates = relation["id"], relation["rephrases"]
        same_relation = cycle(relation["localities"])
        half = len(templates) // 2
        for number, (subject, target, *ground_truth) in enumerate(relation["facts"], start=1):
            chosen = templates[:half] if number % 2 else templates[half:]
            locality = next(same_relation if number % _SAME_RELATION_EVERY == 0 else general)
            edits.append(
                Edit(
                    prompt=relation["prompt"].format(subject),
                    target=target,
                    subject=subject,
                    ground_truth=tuple(ground_truth),
                    rephrases=tuple(template.format(subject) for template in chosen),
                    localities=(Locality(prompt=locality[0], answer=locality[1]),),
                    id=f"demo-{name}-{number:03d}",
                    metadata={"relation": name, OTHER_QUESTION: relation["other_question"].format(subject)},
                )
            )
    return edits
