"""Edits written in one format and asked in another: the share that free generation answers, format by format.

    OMP_NUM_THREADS=1 python bench/formats.py --data FOLDER --count 200

The formats: the question alone, `Question: ...\\nAnswer:`, a chat by the tokenizer's own template, the same with a
system prompt, and two solved questions before the one that is asked. Counted are answers that are the target and end
there; beside it, requests that their edit was found for. Settings were chosen on one half of the subjects (by a hash),
and the other is reported: `--half`.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from record import provenance, results_folder, write_json

from corrigenda.editing import AssociativeConfig, EditedModel, load_base, load_edits
from corrigenda.editing.methods.settings import settings_of

SYSTEM = "You are a careful assistant. Answer briefly, and say so when you do not know."
SHOTS = "Q: What is the largest planet?\nA: Jupiter\n\nQ: Who wrote Hamlet?\nA: William Shakespeare\n\nQ: {prompt}\nA:"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--half", choices=("chosen", "reported"), default="reported")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the method")
    parser.add_argument("--written", nargs="*", help="only these formats of writing")
    parser.add_argument("--results", type=Path, default=results_folder() / "formats.json")
    return parser.parse_args()


def formats(tokenizer):
    """By name: the template of a prompt, as text that is encoded without further special tokens."""
    turns = [{"role": "user", "content": "{prompt}"}]
    system = [{"role": "system", "content": SYSTEM}, *turns]
    chat, with_system = (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in (turns, system)
    )
    return {
        "plain": "{prompt}",
        "question and answer": "Question: {prompt}\nAnswer:",
        "chat": chat,
        "chat with a system prompt": with_system,
        "few-shot": SHOTS,
    }


def edits_of(args):
    """The first edits of a subject in one half of ZsRE's subjects."""
    found = load_edits(args.data / "zsre.jsonl", unique_subject=True)
    wanted = args.half == "chosen"
    kept = [one for one in found if (hashlib.sha256(str(one.subject).encode()).digest()[0] % 2 == 0) == wanted]
    return kept[: args.count]


def asked(edited, edits, template, lengths):
    rows = [edited.tokenizer(template.replace("{prompt}", edit.prompt))["input_ids"] for edit in edits]
    return edited.answer_ids(rows, [length + 4 for length in lengths], batch_size=8)


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    edits, known = edits_of(args), formats(tokenizer)
    settings = settings_of("associative", args.set)
    found = {}
    for written in args.written or known:
        options = {"chat_template": True} if written == "chat" else {"template": known[written]}
        edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(**settings), **options)
        config = edited.config.to_dict()
        outcome = edited.edit(edits, keep_unsolved=True)
        lengths = [len(edited.prompts.encode_with_target(edit.prompt, edit.target)[1]) for edit in edits]
        found[written] = {"failing": len(outcome.failing)}
        for name, template in known.items():
            answers = asked(edited, edits, template, lengths)
            routed = [answer.provenance.nearest.id == edit.id for answer, edit in zip(answers, edits)]
            right = [answer.text == edit.target.strip() for answer, edit in zip(answers, edits)]
            found[written][name] = {
                "right": round(sum(right) / len(edits), 4),
                "found": round(sum(answer.edit is not None for answer in answers) / len(edits), 4),
                "nearest": round(sum(routed) / len(edits), 4),
                "wrong": [
                    [edit.id, edit.target, answer.text] for edit, answer, ok in zip(edits, answers, right) if not ok
                ][:5],
            }
            print(written, "->", name, found[written][name], flush=True)
        edited.detach()
        result = {"edits": len(edits), "file": "zsre.jsonl", "half": args.half, "settings": config, "formats": known}
        write_json(args.results, {**provenance(), "threads": 1, **result, "asked": found})


if __name__ == "__main__":
    main()
