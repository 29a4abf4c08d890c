"""What edits cost a served layer at decode: an 8B down-projection with and without its memory.

    python bench/layer.py                           on a GPU: captured, L2 flushed; on a CPU: one thread's time

For 1 to 256 sequences that decode a token each, none, half or all of them with an edit of their own, beside 1,000 to
100,000 stored edits of 8 rows: microseconds of the base layer, of the patched one, and of the guard in it, which
keeps rows of an edit that are no numbers from other requests of the pass. Each patched result is compared with the
base layer's first: rows without an edit must have its bits.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from made_up import filled_banks
from op_cases import OUTPUTS, WIDTH
from record import provenance, results_folder, write_json
from timing import graph_seconds, thread_seconds

from corrigenda.editing.model.layer import EditedOutput, bounded_
from corrigenda.editing.routers.context import RoutingContext

ROUTED = {"none": 0.0, "half": 0.5, "all": 1.0}


def arguments():
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stored", type=int, nargs="+", default=[1000, 10_000, 100_000] if on_gpu else [1000])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64, 256] if on_gpu else [1, 16])
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def decoding(sequences, share, stored, device):
    """A context in which each sequence decodes a token, the first `share` of them with edits spread over the banks."""
    context = RoutingContext(device)
    edits = torch.arange(sequences, device=device) * 7919 % stored
    routed = torch.arange(sequences, device=device) < share * sequences
    context.start(torch.where(routed, edits, -1).int())
    ones = torch.ones(sequences, 1, device=device)
    context.fill(ones.bool(), ones.bool().logical_not(), ones, deciding=False)
    return context, routed


def microseconds(layer, x):
    if x.is_cuda:
        return [round(1e6 * seconds, 2) for seconds in graph_seconds(layer, x)]
    return [round(1e6 * thread_seconds(layer, x), 2)]


def guard(rows):
    return bounded_(rows, rows.clone())


def main():
    args = arguments()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = torch.nn.Linear(WIDTH, OUTPUTS, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
    result = {**provenance(), "times": "flushed, hot" if device.type == "cuda" else "one thread", "rows": []}
    for stored in args.stored:
        banks = filled_banks(stored, WIDTH, OUTPUTS, device)
        for sequences in args.sequences:
            x = torch.randn(sequences, WIDTH, device=device, dtype=torch.bfloat16)
            row = {"stored": stored, "sequences": sequences, "base_us": microseconds(base, x)}
            row["guard_us"] = microseconds(guard, base(x))
            for name, share in ROUTED.items():
                context, routed = decoding(sequences, share, stored, device)
                layer = copy.deepcopy(base)
                layer.register_forward_hook(EditedOutput(banks, context))
                changed = (layer(x).view(torch.int16) != base(x).view(torch.int16)).any(1)
                if not torch.equal(changed, routed):
                    raise SystemExit(f"{row}: with {name} routed, other rows change than those; nothing is timed.")
                row[f"{name}_us"] = microseconds(layer, x)
            result["rows"].append(row)
            print(row, flush=True)
            write_json(args.results / "layer.json", result)
        del banks


if __name__ == "__main__":
    main()
