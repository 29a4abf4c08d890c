"""Loss and gradient at SmolLM2's head in blocks of its weight: thread time by the size of a block.

OMP_NUM_THREADS=1 python bench/head.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import provenance, results_folder, write_json
from timing import thread_seconds

from corrigenda.editing import head as heads

LABELS = (8, 16, 32, 128)
MEGABYTES = (1, 2, 4, 8, 19, None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=results_folder() / "head.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = torch.nn.Linear(576, 49152, bias=False).requires_grad_(False)
    rows = []
    for count in LABELS:
        hidden = torch.randn(count, 576, requires_grad=True)
        labels = torch.randint(49152, (count,))
        for size in MEGABYTES:
            if size is None:
                seconds = thread_seconds(unblocked, head, hidden, labels, least=8)
            else:
                heads._BLOCK_BYTES = size << 20
                seconds = thread_seconds(blocked, head, hidden, labels, least=8)
            rows.append({"labels": count, "block_mb": size, "ms": round(1e3 * seconds, 1)})
            print(rows[-1], flush=True)
    write_json(args.results, {**provenance(), "threads": 1, "rows": rows})


def blocked(head, hidden, labels):
    return torch.autograd.grad(heads.label_losses(head, hidden, labels).sum(), hidden)


def unblocked(head, hidden, labels):
    """Torch's way: all logits, and then the weight a second time."""
    losses = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="none")
    return torch.autograd.grad(losses.sum(), hidden)


if __name__ == "__main__":
    main()
