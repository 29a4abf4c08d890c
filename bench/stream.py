"""A stream of edits into models of 8B shape with random weights: edits a second, peak memory, time by phase.

    python bench/stream.py --shape llama-3-8b --methods associative memoir wise --dense 2

Random weights cost what real ones cost, and need no download; what they cannot show is quality. No edit stops early in
them (a random model never becomes sure), so these are times of full step counts. `--dense` times the published loops of
MEMOIR and WISE on as many edits beside them, in the model's bfloat16 and then in float32 without TF32, as published.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from editing_speed import dense_memoir
from record import ROOT, provenance, results_folder, write_json
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from wise_dense import dense_loop

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, MemoirConfig, WiseConfig
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.repeated import can_capture, eager
from corrigenda.editing.edits.demo_facts import demo_edits

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from tiny import tiny_tokenizer

EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
SHAPES = {
    "llama-3-8b": (LlamaForCausalLM, LlamaConfig, {**EIGHT_BILLION, "vocab_size": 128_256}),
    "mistral-7b": (MistralForCausalLM, MistralConfig, {**EIGHT_BILLION, "vocab_size": 32_768, "sliding_window": None}),
    "small": (
        LlamaForCausalLM,
        LlamaConfig,
        {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 6000},
    ),
}
# (configuration, how many edits, how many a batch): one by one as published, and as many side by side as pay.
STREAMS = {
    "associative": (AssociativeConfig, 1000, 64),
    "memoir": (MemoirConfig, 40, 1),
    "memoir-batched": (MemoirConfig, 64, 16),
    "wise": (WiseConfig, 24, 1),
    "wise-batched": (WiseConfig, 64, 16),
}
DENSE = {"memoir": dense_memoir, "wise": functools.partial(dense_loop, spared=False)}
IRRELEVANT = ("Name a colour.", "blue")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--methods", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--edits", type=int, help="edits of each stream, instead of its own number")
    parser.add_argument("--dense", type=int, default=0, help="edits for each dense loop; 0 for none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


@functools.cache
def tokenizer_and_edits():
    """A tokenizer that cuts the demo's edits into about as many tokens as a pretrained one, and those edits."""
    edits = demo_edits()
    return tiny_tokenizer(6000, tuple(f"{edit.prompt} {edit.target}" for edit in edits)), edits


def build(shape, device):
    model_class, config_class, sizes = SHAPES[shape]
    tokenizer, _ = tokenizer_and_edits()
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
    for number, edit in zip(range(count), itertools.cycle(tokenizer_and_edits()[1])):
        yield Edit(f"In {1800 + number}, {edit.prompt[0].lower()}{edit.prompt[1:]}", edit.target)


class Phases:
    """Wall seconds by phase, less those of phases within, the device waited for at every border.

    So phases add up, and the whole is a little slower.
    """

    def __init__(self, device):
        self.seconds = defaultdict(float)
        self.wait = waiting(device)
        self._open = []

    def wrap(self, owner, attribute, name):
        inner = getattr(owner, attribute)

        def timed(*arguments, **options):
            self.wait()
            start = time.perf_counter()
            self._open.append(0.0)
            result = inner(*arguments, **options)
            self.wait()
            took = time.perf_counter() - start
            self.seconds[name] += took - self._open.pop()
            if self._open:
                self._open[-1] += took
            return result

        setattr(owner, attribute, timed)


def waiting(device):
    """What waits for a device's work."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def measure(model, tokenizer, name, count, device):
    """One method's stream into the model, and the edited model with its patch still on."""
    config_class, usual, batch = STREAMS[name]
    edited = EditedModel.wrap(model, tokenizer, config_class(batch_size=batch))
    edits, wait, on_gpu = list(stream((count or usual) + batch)), waiting(device), device.startswith("cuda")
    base = torch.cuda.memory_allocated() if on_gpu else 0
    edited.edit(edits[:batch])  # contexts, background, warm kernels
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    wait()
    start = time.perf_counter()
    edited.edit(edits[batch:])
    wait()
    took = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    few = [Edit(f"Once more: {edit.prompt}", edit.target) for edit in edits[batch : batch + max(batch, 4)]]
    start = time.perf_counter()
    with eager():
        edited.edit(few)
    wait()
    launched_one_by_one = (time.perf_counter() - start) / len(few)

    phases = Phases(device)
    phases.wrap(edited.method, "features", "prefix")
    phases.wrap(edited.method, "_solve", "suffix and steps")
    phases.wrap(edited.method, "apply", "write")
    phases.wrap(edited, "edit", "the rest")
    edited.edit([Edit(f"Again: {edit.prompt}", edit.target) for edit in edits[: 4 * batch]])
    whole = sum(phases.seconds.values())

    written = len(edits) - batch
    row = {
        "method": name,
        "settings": edited.config.to_dict(),
        "edits": written,
        "edits_per_second": round(written / took, 2),
        "seconds_per_edit": round(took / written, 4),
        "steps_are_graphs": can_capture(edited.decoder, edited.config.layer),
        "seconds_per_edit_without_graphs": round(launched_one_by_one, 4),
        "base_gigabytes": round(base / 1e9, 2),
        "peak_over_base_gigabytes": round((peak - base) / 1e9, 2),
        "phase_shares": {phase: round(value / whole, 3) for phase, value in phases.seconds.items()},
    }
    return row, edited


def dense_seconds(model, tokenizer, name, count, device):
    """Seconds an edit of a published loop, in the dtype that the model has now; its first edit is not counted."""
    config_class, _, _ = STREAMS[name]
    edited = EditedModel.wrap(model, tokenizer, config_class())
    loop = DENSE[name](model, edited)
    irrelevant = IRRELEVANT if name == "memoir" else edited.prompts.encode(background_prompts()[0])
    edits, wait = list(stream(count + 1)), waiting(device)
    loop.edit(edits[0], irrelevant)
    wait()
    start = time.perf_counter()
    for edit in edits[1:]:
        loop.edit(edit, irrelevant)
    wait()
    return (time.perf_counter() - start) / count


def main():
    args = arguments()
    model, tokenizer = build(args.shape, args.device)
    found, rows = provenance(), {}

    def save(name):
        write_json(args.results / f"stream-{args.shape}-{name}.json", {**found, "shape": args.shape, **rows[name]})
        print(args.shape, {key: value for key, value in rows[name].items() if key != "settings"}, flush=True)

    for name in args.methods:
        rows[name], edited = measure(model, tokenizer, name, args.edits, args.device)
        edited.detach()
        del edited
        save(name)
    asked = [name for name in DENSE if name in args.methods and args.dense]
    for dtype in (torch.bfloat16, torch.float32) if asked else ():
        model.to(dtype)
        for name in asked:
            seconds = dense_seconds(model, tokenizer, name, args.dense, args.device)
            for row in (name, f"{name}-batched"):
                if row in rows:
                    kind = str(dtype).removeprefix("torch.")
                    rows[row][f"dense_{kind}_seconds_per_edit"] = round(seconds, 3)
                    rows[row][f"times_the_dense_{kind}_loop"] = round(seconds / rows[row]["seconds_per_edit"], 1)
                    save(row)


if __name__ == "__main__":
    main()
