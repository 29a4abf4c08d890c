"""Text from a folder, a file or a request, as a terminal and a log may show it; and names that may be written."""

from __future__ import annotations

import unicodedata

from .errors import CorrigendaError

LONGEST_NAME = 256
"""Characters of an id, a tenant's or an author's name."""

_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})
"""Categories of characters that move a cursor, turn the direction of what follows, end a line, or show nothing."""


def shown(text: object, most: int = 1000) -> str:
    """A text on one line, with characters that would act on a terminal or a log escaped as Python writes them."""
    whole = str(text)
    cut = whole if len(whole) <= most else whole[:most] + "..."
    return "".join(_escaped(character) for character in cut)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSHOWN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def check_name(what: str, name: str | None) -> None:
    """Raise unless a name is one that every terminal, header and command line can hold."""
    if name is None:
        return
    if not isinstance(name, str) or not name.strip():
        raise CorrigendaError(f"{what} must be text, and not blank.")
    if len(name) > LONGEST_NAME:
        raise CorrigendaError(f"{what} has {len(name)} characters: {LONGEST_NAME} are the most.")
    if any(unicodedata.category(character) in _UNSHOWN for character in name):
        raise CorrigendaError(f'{what} "{shown(name)}" holds control characters: leave them out.')
