"""Edits of a tiny model by each method, and a memory's bits."""

from dataclasses import replace

import pytest
import torch
from cases import same_bits
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, MemoirConfig, WiseConfig

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a", rephrases=("Zubrowka has which capital?",)),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("What does Kmelt make?", "red bricks", id="c"),
    Edit("Which harbour does the ferry Kestrel use?", "Port Adlen", id="d"),
    Edit("Who leads Vantrello Foods?", "Ines Okafor", id="e"),
]


AGAIN = Edit("what is the capital of  ZUBROWKA", "Nebelsbad", id="a2")


CONFIGS = {
    "associative": AssociativeConfig(router="tokens", contexts=2, batch_size=2),
    "mask router": AssociativeConfig(contexts=2, batch_size=2, router="mask", router_layer=1, top_k=60, formats="own"),
    "memoir": MemoirConfig(contexts=2, steps=4, top_k=70, weight_decay=1e-2),
    "memoir batches": MemoirConfig(contexts=2, steps=4, top_k=70, weight_decay=1e-2, batch_size=2, decay="active"),
    "wise": WiseConfig(contexts=2, steps=3, learning_rate=0.1, act_ratio=0.01, save_every=2, merge_every=4),
    "wise retrieve": WiseConfig(
        variant="retrieve",
        contexts=1,
        steps=3,
        learning_rate=0.1,
        act_ratio=0.01,
        batch_size=2,
        save_every=3,
        replay=True,
        merge_every=None,
    ),
}


def bits(edited):
    return {name: tensor.clone() for name, tensor in edited.method.state().items()}


def same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert same_bits(tensor, right[name]), name


def ids(edited):
    return [edit.id for edit in edited.edits]


def broken_off(model, stream, cut, **options):
    """Write a stream that ends after `cut` edits."""

    def stop(progress):
        if progress.passed == cut:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model.edit(stream, on_progress=stop, **options)
    model.detach()


def killed_stream(folder, ready):
    torch.set_num_threads(1)
    stream = [*EDITS, AGAIN, *(replace(edit, id=f"{edit.id}-{n}", target=str(n)) for n in range(40) for edit in EDITS)]
    if folder.exists():
        model = EditedModel.from_pretrained(tiny_model(), edits=folder, tokenizer=tiny_tokenizer())
    else:
        model = EditedModel.wrap(tiny_model(), tiny_tokenizer(), CONFIGS["memoir batches"])
    ready.set()
    model.edit(stream[:24], store=folder, resume=True)
