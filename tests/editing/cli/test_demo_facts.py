"""The demo's edits and the background prompts: shape, uniqueness and separation from each other."""

from __future__ import annotations

from collections import Counter

import pytest

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.edits.demo_facts import demo_edits

EDITS = demo_edits()
BACKGROUND = background_prompts()


def test_counts_and_order() -> None:
    assert len(EDITS) >= 120
    per_relation = Counter(edit.metadata["relation"] for edit in EDITS)
    assert 8 <= len(per_relation) <= 10
    assert all(12 <= count <= 16 for count in per_relation.values())
    assert demo_edits() == EDITS


def test_ids_subjects_and_prompts_are_unique() -> None:
    for field in ("id", "subject", "prompt"):
        values = [getattr(edit, field).casefold() for edit in EDITS]
        assert len(set(values)) == len(values), field


def test_targets_are_short_and_diverse() -> None:
    assert all(1 <= len(edit.target.split()) <= 4 for edit in EDITS)
    assert len({edit.target for edit in EDITS}) >= 0.95 * len(EDITS)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.id)
def test_edit_is_well_formed(edit) -> None:
    texts = (edit.prompt, *edit.rephrases)
    assert len(edit.rephrases) == 2
    assert len({text.casefold() for text in texts}) == 3
    for text in texts:
        assert edit.subject in text
        assert "{" not in text
        assert edit.target.casefold() not in text.casefold()
    assert edit.target not in edit.ground_truth


def test_no_subject_in_another_edits_texts() -> None:
    for edit in EDITS:
        for other in EDITS:
            if other is not edit:
                text = " | ".join((other.prompt, *other.rephrases))
                assert edit.subject.casefold() not in text.casefold(), (edit.id, other.id)


def test_localities_are_about_no_edit() -> None:
    subjects = [edit.subject.casefold() for edit in EDITS]
    prompts = [edit.localities[0].prompt for edit in EDITS]
    assert all(len(edit.localities) == 1 for edit in EDITS)
    assert len(set(prompts)) >= 40
    for prompt in set(prompts):
        assert not any(subject in prompt.casefold() for subject in subjects), prompt


def test_background_prompts_are_unique_and_varied() -> None:
    assert len(BACKGROUND) >= 400
    assert len({prompt.casefold() for prompt in BACKGROUND}) == len(BACKGROUND)
    assert all(4 <= len(prompt.split()) <= 30 for prompt in BACKGROUND)
    questions = sum(prompt.endswith("?") for prompt in BACKGROUND)
    assert 0.3 <= questions / len(BACKGROUND) <= 0.5


def test_background_prompts_are_about_no_edit() -> None:
    for edit in EDITS:
        clashes = [prompt for prompt in BACKGROUND if edit.subject.casefold() in prompt.casefold()]
        assert not clashes, (edit.subject, clashes)


def test_background_is_disjoint_from_what_is_evaluated() -> None:
    evaluated = {text for edit in EDITS for text in (edit.prompt, *edit.rephrases, edit.localities[0].prompt)}
    assert not {text.casefold() for text in evaluated} & {prompt.casefold() for prompt in BACKGROUND}
