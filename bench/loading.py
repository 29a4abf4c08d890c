"""How long the packaged model takes to load: from its GGUF file, and unpacked in the user's cache.

    OMP_NUM_THREADS=1 python bench/loading.py

In turns in one process, which has imported transformers before; the least of `--rounds`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import provenance, results_folder, seconds, write_json

from corrigenda.editing import load_base
from corrigenda.editing.backbone.loading import packaged_folder, packaged_model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=results_folder() / "loading.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    packaged_folder()
    load_base("smollm2")
    taken = {"gguf": [], "unpacked": []}
    for _ in range(args.rounds):
        for name, source in (("gguf", packaged_model()), ("unpacked", "smollm2")):
            start = seconds()
            load_base(source)
            taken[name].append(seconds() - start)
    least = {f"{name}_seconds": min(times) for name, times in taken.items()}
    write_json(args.results, {**least, "rounds": args.rounds, **provenance()})
    print(", ".join(f"{name}: {value:.2f}" for name, value in least.items()))


if __name__ == "__main__":
    main()
