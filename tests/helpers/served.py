"""A tiny model with stores of edits for the tests of serving."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.edits.answer_start import AnswerStarts
from corrigenda.editing.edits.prompts import PromptFormat
from corrigenda.editing.memories.row_form import Rows
from corrigenda.editing.model.layer import EditedOutput
from corrigenda.serving import Catalogue, ServedMemory, ServingSettings, Slots
from corrigenda.serving.memory import FormedRows

TEMPLATE = "Question: {prompt}\\nAnswer:"
SHARED = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("What does Kmelt make?", "red bricks", id="c"),
]
OF_ACME = [
    Edit("What is the capital of Zubrowka?", "Port Adlen", id="a"),
    Edit("Who leads Vantrello Foods?", "Ines Okafor", id="e"),
]


def store(folder: Path, edits: list[Edit], model=None, **settings) -> Path:
    """A folder with these edits, written into the tiny model."""
    config = AssociativeConfig(**{"router": "tokens", "contexts": 2, **settings})
    edited = EditedModel.wrap(model or tiny_model(), tiny_tokenizer(), config, template=TEMPLATE)
    edited.edit(edits)
    edited.save_pretrained(folder)
    edited.detach()
    return folder


def answer_starts() -> AnswerStarts:
    """Where answers begin in the format of these edits."""
    return AnswerStarts(PromptFormat(tiny_tokenizer(), TEMPLATE), ends=True)


def banned() -> list[int]:
    """The tokens that the answers of `SHARED` can begin with."""
    spellings = [answer_starts().spelling(edit.prompt, edit.target) for edit in SHARED]
    return sorted({token for spelling in spellings for node, token, _ in spelling.arcs if node == 0})


def formed(memory: ServedMemory, key: str) -> FormedRows:
    """The rows of an edit in a memory of one form, as `ServedMemory.put` takes them."""
    (form,) = memory.banks.forms()
    return FormedRows(form, memory.banks.kept_rows(memory.place(key)))


def filled(found: FormedRows, value: float) -> FormedRows:
    """The same with this value wherever a floating-point number stands."""
    parts = [
        part if part is None or part.dtype == torch.int8 else torch.full(part.shape, value).to(part)
        for part in found.rows
    ]
    return FormedRows(found.form, Rows(*parts))


class Served:
    """The tiny model with a served layer, and passes over it as a stack would make them: in any pieces."""

    def __init__(self, settings: ServingSettings | Path, requests: int = 8, tokens: int = 64) -> None:
        from corrigenda.editing.routers.context import RoutingContext

        self.model = tiny_model()
        self.catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(settings))
        config = self.catalogue.config
        base = self.model.model.layers[config.layer].mlp.down_proj
        self.memory = ServedMemory(config, (base.in_features, base.out_features), torch.device("cpu"), torch.float32)
        self.context = RoutingContext(torch.device("cpu"), tokens=8, slots=2)
        base.register_forward_hook(EditedOutput(self.memory.banks, self.context))
        self.slots = Slots(self.context, requests, tokens)
        self.take(self.catalogue.start, publish=False)

    def take(self, change, publish: bool = True) -> None:
        """What a server does with a change: rows first, then the version, then what nobody needs."""
        for folder, edits in change.needed.items():
            self.memory.load(folder, edits)
        if publish:
            self.catalogue.publish(change)
        self.memory.keep(self.catalogue.keys(), self.slots.places())

    def ids(self, prompt: str) -> list[int]:
        prompts = self.catalogue.prompts
        return prompts.encode(prompts.wrap(prompt))
