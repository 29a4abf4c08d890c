"""Fits the rule of the router by meaning on one half of the subjects, and writes `editing/data/meaning.safetensors`.

    python bench/fit_meaning.py --data FOLDER

Every request of the half beside every edit that it could be about is an example; kinds of requests weigh alike, but for
those in `WEIGHTS`. Three networks of one hidden layer, from three seeds, are averaged.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from record import ROOT
from request_kinds import Half
from torch import nn

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.routers.meaning.decoys import SHIPPED, Decoys, ship
from corrigenda.editing.routers.meaning.encoder import PACKAGED_ENCODER, load_encoder
from corrigenda.editing.routers.meaning.router import MeaningRouter

WEIGHTS = {
    "several edits of a subject": 8.0,
    "other question, same subject": 12.0,
    "other relation, as a question": 3.0,
    "task about the subject": 2.0,
    "two hops": 4.0,
    "negated": 2.0,
    "unrelated": 3.0,
    "rephrased: zsre": 2.0,
    "rephrased: qaedit": 5.0,
    "rephrased: pararel": 3.0,
    "rephrased: counterfact": 0.0,
    "several edits: counterfact": 0.0,
    "by alias": 0.5,
    "freely worded": 8.0,
    "freely worded, other question": 8.0,
}
"""What a kind counts for, where that is not 1. CounterFact's rephrasings often ask something else: none is learnt."""

FOUND = 2.5
"""What an example that is to be found counts for."""

HIDDEN, NETWORKS, EPOCHS = 24, 3, 50


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer counts tokens")
    parser.add_argument("--out", type=Path, default=ROOT / "editing" / "data" / SHIPPED)
    return parser.parse_args()


def examples(router, half):
    """Evidence, labels and weights of all pairs of a half."""
    router.add_fingerprints(router.fingerprints_of([edit.prompt for edit in half.edits], half.edits))
    router._prepare()
    ids = [edit.id for edit in half.edits]
    requests = [request for request in half.requests if WEIGHTS.get(request.kind, 1.0) > 0]
    of_kind = Counter(request.kind for request in requests)
    rows, labels, weights = [], [], []
    for start in range(0, len(requests), 250):
        part = requests[start : start + 250]
        _, pairs, evidence, _ = router._compared([request.text for request in part], router._known, router._index)
        rows += list(evidence)
        for number, place, _ in pairs:
            request = part[number]
            found = ids[place] == request.wanted
            labels.append(float(found))
            weight = WEIGHTS.get(request.kind, 1.0) * 250 / of_kind[request.kind]
            weights.append(weight * (FOUND if found else 1.0))
        print(f"{start + len(part)} requests, {len(rows)} pairs", flush=True)
    return np.array(rows, dtype=np.float32), np.array(labels, dtype=np.float32), np.array(weights, dtype=np.float32)


def fitted(rows, labels, weights):
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    x, y, w = torch.tensor((rows - mean) / scale), torch.tensor(labels), torch.tensor(weights)
    networks = []
    for seed in range(NETWORKS):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-4)
        for epoch in range(EPOCHS):
            if epoch == int(0.7 * EPOCHS):
                optimizer.param_groups[0]["lr"] = 0.002
            for batch in torch.randperm(len(x)).split(512):
                logits = network(x[batch])[:, 0]
                loss = nn.functional.binary_cross_entropy_with_logits(logits, y[batch], weight=w[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        networks.append(network)
    first, second = ([network[i] for network in networks] for i in (0, 2))
    return {
        "rule.mean": mean,
        "rule.scale": scale,
        "rule.first": np.stack([layer.weight.detach().numpy().T for layer in first]),
        "rule.first_bias": np.stack([layer.bias.detach().numpy() for layer in first]),
        "rule.second": np.stack([layer.weight.detach().numpy()[0] for layer in second]),
        "rule.second_bias": np.stack([layer.bias.detach().numpy()[0] for layer in second]),
    }


def main():
    args = arguments()
    torch.set_num_threads(1)
    encoder = load_encoder(PACKAGED_ENCODER)
    # Decoys first: their vectors and the head are shipped, rounded, and the rule is to be fitted to what is shipped.
    ship(args.out, encoder, {})
    router = MeaningRouter(load_tokenizer(args.model), background_prompts())
    rule = fitted(*examples(router, Half(args.data, 0)))
    ship(args.out, encoder, rule)
    print(args.out, Decoys(encoder).digest)


if __name__ == "__main__":
    main()
