"""KEBench's rule for answers in free text."""

import pytest

from corrigenda.editing.scores.mentions import counts_as_edited, mentions


@pytest.mark.parametrize(
    "text, answers, found",
    [
        ("It was made in Cuba.", ["Cuba"], True),
        ("It was made in CUBA's north", ["cuba"], True),
        ("The Cubans made it", ["Cuba"], False),
        ("a circus", ["cu"], False),
        ("from the  Republic of\nCuba today", ["Republic of Cuba"], True),
        ("(Cuba)", ["Cuba"], True),
        ("It is 🇨🇺 of course", ["🇨🇺"], True),
        ("by Díaz-Canel himself", ["Díaz-Canel"], True),
        ("nothing", ["", "x"], False),
        ("", ["Cuba"], False),
    ],
)
def test_an_answer_is_found_as_a_word_or_as_it_stands(text, answers, found):
    assert mentions(text, answers) is found


def test_the_old_answer_or_an_excuse_beside_it_undoes_it():
    assert counts_as_edited("Cuba, I think", ["Cuba"], ["Germany"])
    assert not counts_as_edited("Cuba, formerly Germany", ["Cuba"], ["Germany"])
    assert not counts_as_edited("Sorry, Cuba", ["Cuba"])
    assert not counts_as_edited("Germany", ["Cuba"], ["Germany"])
