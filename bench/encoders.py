"""What the encoder of the router by meaning can be: a sentence encoder beside the base model's own layers.

    python bench/encoders.py --data FOLDER

Of each request of the reported half that has a candidate, its question and that of the edit are compared, the
subject put aside in both, by the cosine of two vectors and nothing else: no decoys, no rule. A threshold that keeps
`KEPT` of an edit's rephrasings lets through so many of the other questions about its subject, and tasks about it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from record import provenance, results_folder, write_json
from request_kinds import Half

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.routers.meaning.encoder import PACKAGED_ENCODER, load_encoder
from corrigenda.editing.routers.meaning.pairs import pairs_of
from corrigenda.editing.routers.meaning.router import MeaningRouter

REPHRASED = ("rephrased: zsre", "rephrased: qaedit", "rephrased: pararel")
OTHER = ("other question, same subject", "other relation, as a question", "task about the subject")
KEPT = 0.95
LAYERS = (2, 4, 8, 12, 16, 24)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--results", type=Path, default=results_folder() / "encoders.json")
    return parser.parse_args()


def compared(router, half):
    """By kind, of each request with a candidate: its text and an edit's, and whether that is its edit."""
    router.add_fingerprints(router.fingerprints_of([edit.prompt for edit in half.edits], half.edits))
    router._prepare()
    ids = [edit.id for edit in half.edits]
    found = {kind: [] for kind in (*REPHRASED, *OTHER)}
    for request in half.requests:
        if request.kind in found:
            pairs = pairs_of(request.text, router._known, router._index, router.tokens, router._weight)
            texts = [(pair.masked, pair.known.masked, ids[place] == request.wanted) for place, pair in pairs]
            texts = [(own, of_edit, is_its) for own, of_edit, is_its in texts if own and of_edit]
            if texts:
                found[request.kind].append(texts)
    return found


@torch.inference_mode()
def layers_of(model, tokenizer, texts):
    """By layer, each text's unit vector: the mean of the hidden states of its tokens, or that of the last."""
    vectors = {(layer, pooling): {} for layer in LAYERS for pooling in ("mean", "last")}
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]], dtype=torch.int64)
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer, pooling in vectors:
            state = states[layer][0].float()
            pooled = state.mean(0) if pooling == "mean" else state[-1]
            vectors[layer, pooling][text] = F.normalize(pooled, dim=-1)
    return vectors


def told_apart(found, vectors):
    """At the threshold that keeps `KEPT` of the rephrasings: the share of each other kind that is above it."""

    def best(texts, own_edit_alone):
        return max(
            (float(vectors[own] @ vectors[of_edit]) for own, of_edit, is_its in texts if is_its or not own_edit_alone),
            default=-1.0,
        )

    kept = torch.tensor([best(texts, True) for kind in REPHRASED for texts in found[kind]])
    threshold = float(kept.quantile(1 - KEPT))
    return {
        kind: round(sum(best(texts, False) >= threshold for texts in found[kind]) / len(found[kind]), 4)
        for kind in OTHER
    }


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    found = compared(MeaningRouter(tokenizer, background_prompts()), Half(args.data, 1))
    texts = sorted({text for kind in found.values() for pairs in kind for pair in pairs for text in pair[:2]})
    rows = {PACKAGED_ENCODER: told_apart(found, dict(zip(texts, load_encoder(PACKAGED_ENCODER).encode(texts))))}
    for (layer, pooling), vectors in layers_of(model, tokenizer, texts).items():
        rows[f"layer {layer}, {pooling}"] = told_apart(found, vectors)
    for name, row in rows.items():
        print(f"{name:20}", row, flush=True)
    counts = {kind: len(of_kind) for kind, of_kind in found.items()}
    write_json(args.results, {**provenance(), "kept": KEPT, "requests": counts, "above the threshold": rows})


if __name__ == "__main__":
    main()
