"""What a server remembers of its decisions: counts, and the last hour's narrow ones."""

from corrigenda.serving.served_edits import Admission
from corrigenda.serving.watch import NARROW, Watch


class Named:
    """An edit, as far as it is counted and named."""

    def __init__(self, key):
        self.key = self.id = key


def admission(edit=None, nearest="n", margin=0.5, tenant=None):
    return Admission(None if edit is None else Named(edit), Named(nearest), 0.5, margin, 1, tenant)


def test_answers_are_counted_and_forgotten_with_their_edit():
    watch = Watch()
    for edit in ("a", "b", "a", None):
        watch.saw("?", admission(edit))
    assert [watch.answered(edit) for edit in "abc"] == [2, 1, 0]
    watch.keep({"b", "c"})
    assert [watch.answered(edit) for edit in "abc"] == [0, 1, 0]


def test_narrow_decisions_are_told_for_an_hour_to_whom_they_belong():
    now = [0.0]
    watch = Watch(clock=lambda: now[0])
    for minute, (margin, tenant) in enumerate([(NARROW, None), (0.09, None), (-0.09, "acme"), (-NARROW, None)]):
        now[0] = 60.0 * minute
        watch.saw(f"question {minute}", admission(margin=margin, tenant=tenant))
    asked = lambda **of: [one["question"] for one in watch.narrow(**of)]  # noqa: E731
    assert asked(tenant=None, everything=True) == ["question 2", "question 1"]
    assert asked(tenant="acme", everything=False) == ["question 2"]
    assert asked(tenant=None, everything=False) == ["question 1"]
    now[0] = 3600 + 60 + 1
    assert asked(tenant=None, everything=True) == ["question 2"]


def test_what_is_remembered_is_bounded():
    watch = Watch()
    for number in range(2000):
        watch.saw("x" * 5000, admission(margin=0.0, nearest=str(number)))
    found = watch.narrow(None, everything=True)
    assert len(found) == 500 and found[0]["nearest"] == "1999" and len(found[0]["question"]) == 300
