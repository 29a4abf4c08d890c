"""The rule by which a store's edits are found: what is recorded of it, and compared where they are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..methods.config import EditingConfig
from ..routers.meaning.rule import rule_identity
from ..store.store import EditStore

if TYPE_CHECKING:
    from ..methods.method import Method


def said_of_rule(method: Method) -> dict[str, str]:
    """What a ledger's ground says of the rule that finds edits of a method; nothing of one that has none."""
    rule = method.router.rule if method.names_edits else None
    return {} if rule is None else {"rule": rule}


def rule_here(config: EditingConfig) -> str | None:
    """This version's rule for edits of a configuration; None where no version changes how they are found."""
    return rule_identity() if getattr(config, "router", None) == "meaning" else None


def another_rule(store: EditStore, config: EditingConfig) -> str | None:
    """What a user is told where a store's edits were written with another rule than is here; None where they were not.

    config: the one that they are opened with.
    """
    here, recorded = rule_here(config), store.history.rule
    if here is None or recorded == here or store.history.ground is None:
        return None
    said = "do not say with which rule for finding edits they were" if recorded is None else "were"
    other = "" if recorded is None else " with another rule for finding edits than this version's"
    where = "DIR" if store.directory is None else store.directory
    return (
        f"The edits in {store.ledger.name} {said} written{other}: some requests may be decided otherwise than then. "
        f"`corrigenda migrate {where}` says which of the edits' own questions are not decided as they say."
    )
