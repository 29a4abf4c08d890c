"""Stored edits under this version's rule: what it decides of their own questions, and writing down that it holds."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import CorrigendaError
from ..methods.config import EditingConfig
from ..shown import one_line, shown
from ..store.ledger import New
from ..store.store import EditStore
from .recorded_rule import another_rule, rule_here
from .route import routed_requests


class Question(NamedTuple):
    """What a stored edit says of one question: that it answers it (`wanted`), or that it does not.

    kind: "prompt", "rephrasing", "protected question" or "locality"; got: the id of the edit that answers it, or None
    """

    edit: str
    kind: str
    text: str
    wanted: bool
    got: str | None

    @property
    def holds(self) -> bool:
        return (self.got == self.edit) == self.wanted

    @property
    def in_words(self) -> str:
        """What is decided, as a sentence."""
        gets = "the base model's answer" if self.got is None else f'the answer of "{shown(self.got)}"'
        return f'The {self.kind} of "{shown(self.edit)}", {one_line(self.text)!r}, gets {gets}.'


def judged(store: EditStore, model: str) -> list[Question]:
    """Every question that the edits in effect say something of, with what this version's rule decides.

    model: the base model, of which the tokenizer is loaded alone.
    """
    asked: list[Question] = []
    for seq in store.history.applied():
        stored = store.history.edits[seq]
        edit = stored.edit
        texts = [("prompt", edit.prompt), *(("rephrasing", text) for text in edit.rephrases)]
        asked += [Question(stored.id, kind, text, True, None) for kind, text in texts]
        texts = [*(("protected question", text) for text in edit.protected)]
        texts += [("locality", locality.prompt) for locality in edit.localities]
        asked += [Question(stored.id, kind, text, False, None) for kind, text in texts]
    found = routed_requests(store, [one.text for one in asked], model)
    return [one._replace(got=routed.id) for one, routed in zip(asked, found)]


def check_another(store: EditStore) -> None:
    """Raise where a store's edits are found by this version's rule already, or by nothing that a version changes."""
    if another_rule(store, EditingConfig.from_dict(store.header["config"])) is None:
        raise CorrigendaError(
            f"{store.ledger.name} is of this version, and so is the rule that finds its edits, if there is one: there "
            "is nothing to migrate."
        )


def record_rule(store: EditStore, author: str | None = None) -> None:
    """Write down that a store's edits are found by this version's rule from now on."""
    here = rule_here(EditingConfig.from_dict(store.header["config"]))
    # A note: earlier versions read over what it says, and go on reading the ledger.
    store.append([New("note", {"rule": here, **store.stamp(author)})])
