"""torch's defaults are the program's around ours: a server sets its own dtype, a notebook its own device."""

from __future__ import annotations

import ast
import contextlib
import functools
from pathlib import Path

import pytest
import torch
from served import SHARED, TEMPLATE
from tiny import tiny_model, tiny_tokenizer
from torch.utils._device import _device_constructors

import corrigenda.editing
import corrigenda.kernels
import corrigenda.serving
from corrigenda.editing import AssociativeConfig, EditedModel, MemoirConfig, WiseConfig

pytestmark = pytest.mark.usefixtures("few_background_prompts")

ALLOCATING = {f.__name__ for f in _device_constructors() if getattr(torch, f.__name__, None) is f}
METHODS = {
    "associative": AssociativeConfig(router="tokens", contexts=2),
    "memoir": MemoirConfig(contexts=2, steps=3, top_k=32),
    "wise": WiseConfig(contexts=2, steps=3),
}


def sources():
    for package in (corrigenda.editing, corrigenda.kernels, corrigenda.serving):
        yield from sorted(Path(next(iter(package.__path__))).rglob("*.py"))


def unnamed(tree):
    """The calls that make a tensor of torch's default dtype or device."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, named = node.func.value, {keyword.arg for keyword in node.keywords}
        allocates = isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in ALLOCATING
        if allocates and not {"dtype", "device"} <= named and None not in named:
            yield node


def test_what_is_allocated_names_its_dtype_and_device():
    assert {"zeros", "full", "tensor", "arange", "empty", "randn"} <= ALLOCATING
    assert len(list(unnamed(ast.parse("torch.zeros(3); torch.ones(3, dtype=a); torch.full(**b)")))) == 2
    files = list(sources())
    assert len(files) > 80
    found = [
        f"{file}:{node.lineno}: {ast.unparse(node)}" for file in files for node in unnamed(ast.parse(file.read_text()))
    ]
    assert not found, "\n".join(found)


@contextlib.contextmanager
def defaults(dtype, device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def written_and_answered(config, around):
    """The tensors of what is written, and the answers, with other defaults `around` all that is the project's."""
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config, template=TEMPLATE)
    try:
        with around():
            edited.edit(SHARED)
            answers = [answer.text for answer in edited.answer([edit.prompt for edit in SHARED], 6)]
            scores = edited.evaluate(SHARED, free=False)
        ledger, history = edited.store.ledger, edited.store.history
        entries = [history.ground, *(ledger.entry(seq) for seq in history.edits)]
        tensors = [ledger.tensors(entry.seq, entry.body["tensors"]) for entry in entries]
        return tensors, answers, scores
    finally:
        edited.detach()


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_and_an_answer_have_the_same_bits_with_other_defaults(name):
    expected = written_and_answered(METHODS[name], contextlib.nullcontext)
    for dtype, device in ((torch.bfloat16, "cpu"), (torch.float64, "meta")):
        assert written_and_answered(METHODS[name], functools.partial(defaults, dtype, device)) == expected
