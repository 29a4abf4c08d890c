"""The model card of a store, for people and for a hub: what its edits are for, how to open them, and which they are."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..backbone.loading import PACKAGED, PACKAGED_ID
from ..shown import shortened
from ..store.history import APPLIED, DECLINED
from ..store.store import EditStore

CARD_NAME = "README.md"
BEGIN, END = "<!-- corrigenda: edits -->", "<!-- corrigenda: end of edits -->"
"""What stands between is of one state of a ledger, and is written anew with the next."""
MOST_LISTED = 50
_WIDTH = 160
"""Characters of a prompt or a target in the list."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|~&$@:.])")


def new_card(store: EditStore, place: str) -> str:
    """The card of a store, as text with its front matter; `place`: the folder or hub id that it is to be opened by."""
    from huggingface_hub import ModelCardData

    base, method = hub_base(store), store.header["config"]["method"]
    data = ModelCardData(
        library_name="corrigenda",
        pipeline_tag="text-generation",
        base_model=base,
        tags=["corrigenda", "knowledge-editing", f"method:{method}"],
        base_model_relation=None if base is None else "adapter",
    )
    text = (
        f"# Edits of {_escaped(_base_name(store))}\n\n"
        "Corrections to what a language model says, kept beside it: this is no checkpoint, and holds no weights of the "
        "model. A request that an edit is about gets the edit's answer; every other gets the model's own, bit for bit, "
        f"where the method (here *{_escaped(method)}*) chooses a memory for each request.\n\n"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}{_of_state(store, place)}\n"


def renewed(card: str, store: EditStore, place: str) -> str:
    """A card with what it says of a store's state written anew; one without the marks is somebody's own, and stays."""
    start, end = card.find(BEGIN), card.find(END)
    if start < 0 or end < start:
        return card
    return card[:start] + _of_state(store, place) + card[end + len(END) :]


def is_generated(card: Path) -> bool:
    """Whether a file is a card that was written here: it has the marks."""
    try:
        return BEGIN in card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def is_hub_id(name: str) -> bool:
    """Whether this could be a repository of a hub, and is nothing on this machine."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def hub_base(store: EditStore) -> str | None:
    """The hub id of the base model, where that is known."""
    name = store.header["base"].get("name")
    if name == PACKAGED:
        return PACKAGED_ID
    return name if isinstance(name, str) and is_hub_id(name) else None


def _base_name(store: EditStore) -> str:
    """What a reader may be told of the base: of a path the last part alone."""
    base = store.header["base"]
    name = hub_base(store) or Path(base.get("name") or "").name
    return name or f"a {base.get('class', 'model')} of {base['layers']} layers"


def _of_state(store: EditStore, place: str) -> str:
    history, statuses = store.history, store.history.statuses()
    applied = [seq for seq, status in statuses.items() if status == APPLIED]
    others = Counter(status for status in statuses.values() if status != APPLIED)
    others[DECLINED] = len(history.declined)
    counts = ", ".join(f"{count} {status}" for status, count in others.items() if count)
    listed = [history.edits[seq] for seq in applied[-MOST_LISTED:]]
    which = "" if len(listed) == len(applied) else f" The last {len(listed)} of them:"
    base = hub_base(store) or "YOUR COPY OF THE BASE MODEL"
    lines = [
        BEGIN,
        "```python",
        "from corrigenda.editing import EditedModel",
        "",
        f"model = EditedModel.from_pretrained({_quoted(base)}, edits={_quoted(place)})",
        'model.generate_text(["..."])',
        "```",
        "",
        f"As of entry {store.ledger.count} of the ledger ({history.last_time[:10]}) there are {len(applied)} edits in "
        f"effect.{which} `corrigenda log` shows what was changed since.",
    ]
    if counts:
        lines += ["", f"The ledger also holds, with their texts: {counts}."]
    if listed:
        rows = ([stored.id, stored.prompt, stored.target] for stored in listed)
        lines += ["", "| id | prompt | answer |", "|---|---|---|"]
        lines += ["| " + " | ".join(_escaped(shortened(cell, _WIDTH)) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, END])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return _MARKUP.sub(r"\\\1", text)


def _quoted(text: Any) -> str:
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"').replace("`", "") + '"'
