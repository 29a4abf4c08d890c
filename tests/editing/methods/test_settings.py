"""Settings as a user writes them: `--set NAME=VALUE` reaches every field of a method's configuration."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from corrigenda.editing.cli.panels import MethodOptions
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.memories.row_form import WHOLE, RowForm
from corrigenda.editing.methods.associative.config import row_form
from corrigenda.editing.methods.config import CONFIGS
from corrigenda.editing.methods.documented import field_texts
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.settings import settings_of


@pytest.mark.parametrize("method", CONFIGS)
def test_every_setting_can_be_written_and_comes_back(method):
    config = config_for(method)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        (found,) = settings_of(method, [f"{field.name}={value}"]).items()
        assert found == (field.name, value) and type(found[1]) is type(value)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_mode_is_one_of_those_that_its_type_names(method):
    hints = get_type_hints(CONFIGS[method])
    settings = {field.name for field in dataclasses.fields(CONFIGS[method])}
    modes = [
        name
        for name in settings
        for hint in [hints[name]]
        if Literal in {get_origin(kind) for kind in (hint, *get_args(hint))}
    ]
    assert "scope" in modes
    for name in modes:
        with pytest.raises(CorrigendaError, match=f"`{name}` must be"):
            CONFIGS[method](**{name: "no such mode"})


@pytest.mark.parametrize("method", CONFIGS)
def test_help_explains_every_setting(method):
    """A dozen of the oldest speak for themselves: `steps`, `learning_rate`, `seed` and the like."""
    told = field_texts(CONFIGS[method])
    assert list(told) == [field.name for field in dataclasses.fields(CONFIGS[method])]
    assert sum(not text for text in told.values()) <= 8
    for field in dataclasses.fields(CONFIGS[method]):
        assert f"{field.name} = {field.default!r}" in CONFIGS[method].__doc__
    assert "By how much" in told["gain"] if method == "associative" else "gain" not in told


def test_values_are_of_the_type_that_the_setting_has():
    written = ["gain=1.5", "steps=3", "threshold=auto", "router=mask", "router-layer=null", "eos=false"]
    expected = {"gain": 1.5, "steps": 3, "threshold": "auto", "router": "mask", "router_layer": None, "eos": False}
    assert settings_of("associative", written) == expected


@pytest.mark.parametrize(
    ("method", "written", "part"),
    [
        ("associative", "gian=1", "perhaps `gain` is meant"),
        ("associative", "gain", "not of the form NAME=VALUE"),
        ("associative", "=1", 'no setting ""'),
        ("memoir", "gain=1.5", 'The method "memoir" has no setting "gain"'),
        ("magic", "gain=1.5", 'Unknown editing method "magic"'),
    ],
)
def test_what_names_no_setting_is_refused(method, written, part):
    with pytest.raises(CorrigendaError) as error:
        settings_of(method, [written])
    assert part in str(error.value)


def test_what_is_not_given_has_its_default_and_none_may_be_given():
    given = MethodOptions(others=["key_dimensions=null", "value_dtype=model"])
    assert given.settings() == {"key_dimensions": None, "value_dtype": "model"}
    assert row_form(given.config()) == WHOLE
    assert row_form(MethodOptions(seed=7).config()) == RowForm(256, "int8", 7)
