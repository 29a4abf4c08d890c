"""Text from elsewhere on a terminal, in JSON and in a log: nothing in it is obeyed, and no line of its own begins."""

from __future__ import annotations

import json

import pytest
from forged import forge_field
from hypothesis import given
from hypothesis import strategies as st
from stores import add, edit, new_store
from typer.testing import CliRunner

from corrigenda.editing.cli import app
from corrigenda.editing.errors import FieldError
from corrigenda.editing.shown import LONGEST_NAME, name, one_line, shortened, shown, shown_json

HOSTILE = "a\x1b]0;owned\x07\x9b31m\u202e\u2066\n\r\x00\u2028b"
OBEYED = {"\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\r", "\x00", "\u2028"}


def test_what_is_obeyed_is_escaped() -> None:
    assert shown(HOSTILE) == r"a\x1b]0;owned\x07\x9b31m\u202e\u2066\n\r\x00\u2028b"
    assert shown("\ud800") == r"\ud800"
    for text in ("Größe  C:\\new", "東京　駅", "می‌خواهم", "\U0001f468‍\U0001f469"):
        assert shown(text) == text
    assert one_line("a\x1b[31m b\n\tc") == r"a\x1b[31m b c"
    assert shortened("some words too many", 12) == "some words…"
    assert shortened("few", 12) == "few"


@given(st.text())
def test_json_is_the_same_and_obeyed_by_nothing(text) -> None:
    found = shown_json({text: [text]}, indent=2)
    assert json.loads(found) == {text: [text]}
    assert shown(found.replace("\n", "")) == found.replace("\n", "")


@given(st.text(max_size=LONGEST_NAME))
def test_a_name_is_one_that_is_shown_as_it_is(text) -> None:
    try:
        assert name("id", text) == shown(text)
    except FieldError as error:
        assert shown(text) != text and shown(str(error)) == str(error)


@pytest.fixture
def hostile(edits_folder):
    """A folder of an earlier version, each text of which a terminal would obey."""
    for path in ("id", "author", "edit.prompt", "edit.target"):
        forge_field(edits_folder, "edit", path, HOSTILE)
    forge_field(edits_folder, "edit", "edit.metadata", {HOSTILE: HOSTILE})
    forge_field(edits_folder, "status", "author", HOSTILE)
    forge_field(edits_folder, "status", "note", HOSTILE)
    return edits_folder


@pytest.mark.parametrize(
    "command",
    [
        ("log", "DIR"),
        ("log", "DIR", "--json"),
        ("show", "DIR", shown(HOSTILE)),
        ("show", "DIR", shown(HOSTILE), "--json"),
        ("show", "DIR", HOSTILE.replace("\0", "")),
        ("undo", "DIR", shown(HOSTILE), "c"),
        ("redo", "DIR", shown(HOSTILE)),
        ("redo", "DIR", "b"),
        ("verify", "DIR"),
        ("verify", "DIR", "--json"),
        ("diff", "DIR", "OTHER"),
        ("diff", "DIR", "OTHER", "--json"),
        ("diff", "OTHER", "DIR"),
        ("merge", "OTHER", "DIR"),
        ("merge", "OTHER", "DIR", "--json"),
        ("export", "DIR", "-", "--all"),
        ("why", "DIR", "a", "--model", HOSTILE.replace("\0", "")),
        ("log", HOSTILE.replace("\0", "")),
    ],
    ids=lambda command: " ".join(map(ascii, command)),
)
def test_no_command_prints_what_a_terminal_obeys(hostile, tmp_path, command) -> None:
    other = new_store(tmp_path / "other")
    add(other, edit("z"))
    other.close()
    names = {"DIR": str(hostile), "OTHER": str(tmp_path / "other")}
    done = CliRunner().invoke(app, [names.get(word, word) for word in command])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert done.output and not OBEYED.intersection(done.output), ascii(done.output)
