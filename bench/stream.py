"""A stream of edits into models of 8B shape with random weights: edits a second, peak memory, time by phase.

    python bench/stream.py --shape llama-3-8b --method associative --edits 1000 --batch 64

Random weights cost what real ones cost, and need no download; what they cannot show is quality. No edit stops early in
them (a random model never becomes sure), so these are times of full step counts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
import time
from collections import defaultdict

import torch
from record import ROOT, provenance, results_folder, write_json
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, MemoirConfig
from corrigenda.editing.demo_facts import demo_edits
from corrigenda.editing.methods import associative, memoir

sys.path.insert(0, str(ROOT / "tests"))
from tiny import tiny_tokenizer

EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SHAPES = {
    "llama-3-8b": (LlamaForCausalLM, LlamaConfig, {**EIGHT_BILLION, "vocab_size": 128_256}),
    "mistral-7b": (MistralForCausalLM, MistralConfig, {**EIGHT_BILLION, "vocab_size": 32_768, "sliding_window": None}),
    "small": (
        LlamaForCausalLM,
        LlamaConfig,
        {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 1000},
    ),
}
METHODS = {"associative": (AssociativeConfig, associative), "memoir": (MemoirConfig, memoir)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--method", choices=METHODS, default="associative")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def build(shape, device):
    model_class, config_class, sizes = SHAPES[shape]
    tokenizer = tiny_tokenizer()
    config = config_class(**sizes, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, dtype=torch.bfloat16)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return model_class(config).eval(), tokenizer
    finally:
        torch.set_default_dtype(before)


def stream(count):
    """`count` edits: the demo's, over and over, each round about other years."""
    for number, edit in zip(range(count), itertools.cycle(demo_edits())):
        yield Edit(f"In {1800 + number}, {edit.prompt[0].lower()}{edit.prompt[1:]}", edit.target)


class Phases:
    """Wall seconds by phase, the GPU waited for at every border: so phases add up, and the whole is a little slower."""

    def __init__(self, device):
        self.seconds = defaultdict(float)
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    @contextlib.contextmanager
    def phase(self, name):
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] += time.perf_counter() - start

    def wrap(self, owner, attribute, name):
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def timed(*arguments, **options):
            with self.phase(name):
                return inner(*arguments, **options)

        setattr(owner, attribute, timed)


def main():
    args = arguments()
    model, tokenizer = build(args.shape, args.device)
    config_class, module = METHODS[args.method]
    edited = EditedModel.wrap(model, tokenizer, config_class(batch_size=args.batch))
    edits = list(stream(args.edits))
    on_gpu = args.device.startswith("cuda")
    base = torch.cuda.memory_allocated() if on_gpu else 0
    edited.edit(edits[: args.batch])  # contexts, background, warm kernels
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    edited.edit(edits[args.batch :])
    if on_gpu:
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0

    phases = Phases(args.device)
    phases.wrap(module, "frozen_features", "prefix")
    phases.wrap(edited.method, "_solve", "suffix and steps")
    with phases.phase("all"):
        edited.edit([Edit(f"Again: {edit.prompt}", edit.target) for edit in edits[: 4 * args.batch]])
    whole = phases.seconds.pop("all")
    phases.seconds["the rest"] = whole - sum(phases.seconds.values())

    written = len(edits) - args.batch
    result = {
        **provenance(),
        "shape": args.shape,
        "method": args.method,
        "settings": edited.config.to_dict(),
        "edits": written,
        "edits_per_second": round(written / took, 2),
        "seconds_per_edit": round(took / written, 4),
        "base_gigabytes": round(base / 1e9, 2),
        "peak_over_base_gigabytes": round((peak - base) / 1e9, 2),
        "phase_shares": {name: round(value / whole, 3) for name, value in phases.seconds.items()},
    }
    write_json(results_folder() / f"stream-{args.shape}-{args.method}.json", result)
    print({name: value for name, value in result.items() if name not in ("settings", "versions")})


if __name__ == "__main__":
    main()
