"""Teaches the upper layers of the packaged encoder which questions ask the same, and writes what they change by.

    python bench/fit_encoder.py

Wordings of one relation are to be near each other, those of two are not (supervised contrastive, arXiv 2004.11362), and
whole questions are to stay where they were. Learnt: low-rank additions (arXiv 2106.09685) to the linear maps of the last
layers, on the decoys and on one half of `free_wordings.json`; the other half is what is printed. Run `fit_meaning.py`
after it: decoys, head and rule depend on the encoder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from free_wordings import FILE, half_of
from record import ROOT
from safetensors.numpy import save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.routers.meaning.decoys import texts_of
from corrigenda.editing.routers.meaning.encoder import PACKAGED_ENCODER, encoder_folder
from corrigenda.editing.routers.meaning.subject import STAND_IN, normalised
from corrigenda.editing.routers.meaning.wording import core

LAYERS, RANK = 3, 8
TEXTS, STEPS, RATE, TEMPERATURE = 96, 240, 1e-3, 0.07
STAYS = 2.0
"""What staying where they were counts for, of whole questions."""


def wordings(half):
    """Kind, relation and text, in the form in which they are compared."""
    return [
        (kind, f"{kind}/{relation}", core(normalised(text.replace("{}", STAND_IN))))
        for kind, of_kind in json.loads(FILE.read_text(encoding="utf-8")).items()
        for relation, texts in of_kind["relations"].items()
        if half_of(kind + relation) == half
        for text in texts
    ]


class Added(nn.Module):
    """A frozen linear map and a low-rank addition."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(RANK, linear.in_features, dtype=torch.float32, device="cpu") / 20)
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK, dtype=torch.float32, device="cpu"))

    def forward(self, x):
        return self.linear(x) + x @ self.down.T @ self.up.T


def adapted(layers):
    """The additions of the linear maps of these layers, by name; they act from now on."""
    added = {}
    for number, layer in layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent = layer.get_submodule(name.rpartition(".")[0])
                added[f"encoder.layer.{number}.{name}"] = Added(module)
                setattr(parent, name.rpartition(".")[2], added[f"encoder.layer.{number}.{name}"])
    return added


def lower_states(model, tokenizer, texts):
    """What the last layers are given: `[tokens, width]` of each text."""
    found = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
            hidden = model(**ids, output_hidden_states=True).hidden_states
            found.append(hidden[len(hidden) - 1 - LAYERS][0])
    return found


def upper(layers, states):
    """Unit vectors `[texts, width]` of what `lower_states` gave."""
    lengths = torch.tensor([len(one) for one in states], dtype=torch.int64, device="cpu")
    x = nn.utils.rnn.pad_sequence(states, batch_first=True)
    there = torch.arange(x.shape[1], dtype=torch.int64, device="cpu")[None] < lengths[:, None]
    mask = torch.where(there, 0.0, -1e9)[:, None, None, :]
    for _, layer in layers:
        x = layer(x, attention_mask=mask)
        x = x[0] if isinstance(x, tuple) else x
    return F.normalize((x * there[..., None]).sum(1) / lengths[:, None], dim=-1)


def separated(vectors, texts):
    """How often two wordings of one relation are nearer than two of different ones about the same kind of subject."""
    alike = (vectors @ vectors.T).numpy()
    kinds, relations = (np.array([text[i] for text in texts]) for i in (0, 1))
    pairs = np.triu(np.ones_like(alike, dtype=bool), 1)
    same = alike[pairs & (relations[:, None] == relations)]
    other = alike[pairs & (kinds[:, None] == kinds) & (relations[:, None] != relations)]
    return float((same[:, None] > other).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "editing" / "data" / "meaning_encoder.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = str(encoder_folder(PACKAGED_ENCODER))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    relations, _, _ = texts_of()
    learnt = [(relation, text) for relation, texts in relations.items() for text in texts]
    learnt += [(relation, text) for _, relation, text in wordings(0)]
    names = {relation: i for i, relation in enumerate(dict.fromkeys(relation for relation, _ in learnt))}
    labels = torch.tensor([names[relation] for relation, _ in learnt], dtype=torch.int64, device="cpu")
    by_relation = [(labels == i).nonzero()[:, 0] for i in range(len(names))]
    states = lower_states(model, tokenizer, [text for _, text in learnt])
    whole = lower_states(model, tokenizer, [normalised(text) for text in background_prompts()])
    asked = wordings(1)
    held_out = lower_states(model, tokenizer, [text for *_, text in asked])
    layers = list(enumerate(model.encoder.layer))[-LAYERS:]
    with torch.no_grad():
        stays = torch.cat([upper(layers, whole[i : i + 64]) for i in range(0, len(whole), 64)])
        print("before", separated(upper(layers, held_out), asked), flush=True)
    added = adapted(layers)
    parameters = [parameter for one in added.values() for parameter in (one.down, one.up)]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / 20, (STEPS + 1 - step) / (0.7 * STEPS))
        chosen = torch.cat(
            [
                by_relation[i][torch.randperm(len(by_relation[i]))[:3]]
                for i in torch.randperm(len(names))[: TEXTS // 3].tolist()
            ]
        )
        vectors = upper(layers, [states[i] for i in chosen.tolist()])
        self_free = torch.eye(len(chosen), dtype=torch.bool, device="cpu")
        logits = (vectors @ vectors.T / TEMPERATURE).masked_fill(self_free, -1e9)
        same = (labels[chosen][:, None] == labels[chosen]) & ~self_free
        log = logits - logits.logsumexp(1, keepdim=True)
        contrast = -(log.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1)).mean()
        kept = torch.randperm(len(whole))[:16].tolist()
        drift = 1 - (upper(layers, [whole[i] for i in kept]) * stays[kept]).sum(1).mean()
        optimizer.zero_grad()
        (contrast + STAYS * drift).backward()
        optimizer.step()
        if step % 40 == 0:
            with torch.no_grad():
                held = separated(upper(layers, held_out), asked)
            print(step, f"contrast {float(contrast):.3f} drift {float(drift):.4f} held out {held:.4f}", flush=True)
    tensors = {}
    for name, one in added.items():
        tensors[f"{name}.down"] = np.ascontiguousarray(one.down.detach().numpy().astype(np.float16))
        tensors[f"{name}.up"] = np.ascontiguousarray(one.up.detach().numpy().astype(np.float16))
    save_file(tensors, str(args.out))
    print(args.out)


if __name__ == "__main__":
    main()
