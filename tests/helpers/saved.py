"""Saved edits in a test: loaded, compared, changed by hand, and refused."""

import contextlib
import json

import pytest
import safetensors.torch
from cases import same_bits
from tiny import tiny_tokenizer

from corrigenda.editing import CorrigendaError, EditedModel
from corrigenda.editing.store.codec import packed
from corrigenda.editing.store.ledger import Ledger, New


@contextlib.contextmanager
def refusal(*words):
    """Within: a CorrigendaError is raised, one sentence that holds each of `words`."""
    with pytest.raises(CorrigendaError) as raised:
        yield
    message = str(raised.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message, message
    for word in words:
        assert str(word) in message, message


def load(folder, model, tokenizer=None):
    return EditedModel.from_pretrained(model, edits=folder, tokenizer=tokenizer or tiny_tokenizer())


def same_state(one, other):
    states = one.method.state(), other.method.state()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert same_bits(tensor, states[1][name]), name


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def with_ground(folder, copy, **changed):
    """The ledger of a folder again, whole, with other ground tensors."""
    ledger, entries = Ledger.open(folder), []
    for seq, kind, body in list(ledger.entries()):
        tensors = ledger.tensors(seq, body["tensors"]) if "tensors" in body else None
        if kind == "ground":
            tensors = packed({**safetensors.torch.load(tensors), **changed})
        entries.append(New(kind, body, tensors))
    ledger.close()
    Ledger.create(copy, lambda new: new.append(entries)).close()
    return copy
