"""`bench/continuations.py`: a continuation is scored by the edit of its context, and elsewhere by the base."""

import pytest
import torch
from tiny import tiny_tokenizer
from tree import ROOT

from corrigenda.editing import AssociativeConfig, Edit

EDIT = Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka")
PAIRS = [
    (EDIT.prompt, " Lutz City"),
    ("Why is the sky blue?", " Because of the light"),
    (EDIT.prompt, " of the light that"),
    ("Cows drink", " water"),
]


@pytest.fixture
def scored(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from continuations import loglikelihoods

    return loglikelihoods


def tokens(text):
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


def plainly(model, context, continuation):
    """The same of a model as it is, one row alone."""
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(continuation)), continuation].sum())


def test_continuations_are_routed_by_their_contexts(scored, sharp_model, wrap, few_background_prompts):
    edited = wrap(sharp_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1, steps=60))
    pairs = [(tokens(context), tokens(continuation)) for context, continuation in PAIRS]
    before = scored(edited, pairs)
    expected = [plainly(sharp_model(), *pair) for pair in pairs]
    assert before.applied == 0 and [score for score, _ in before.scores] == pytest.approx(expected, rel=1e-4)
    edited.edit(EDIT)
    after = scored(edited, pairs)
    assert after.applied == 2
    (target, is_greedy), (other, other_is_greedy) = after.scores[0], after.scores[2]
    assert is_greedy and target > -0.5 and not other_is_greedy and other < target - 5
    assert not before.scores[0][1]
    # Of the others there are the bits of before.
    assert [after.scores[1], after.scores[3]] == [before.scores[1], before.scores[3]]
