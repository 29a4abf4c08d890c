"""What an edited model still can: tasks of lm-evaluation-harness before and after a stream of edits.

    pip install lm-eval
    python bench/general.py --edits zsre.jsonl --data FOLDER --at 10 --method associative --method memit

The model is handed over as a Hugging Face model, so that generation goes through the patched `generate`, where routed
edits answer; and perplexity, of questions that no edit is about, through its bare forward, where changed weights show
(of routed edits a bare forward knows nothing). Tasks are made of two files of FOLDER: facts that are well known
(`known_facts.jsonl`, `acc`: the answer begins with the right one) and questions (`nq_open.jsonl`, `exact_match`).
Edits are the half of the subjects that no setting was chosen on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from record import edits_arguments, provenance, results_folder, seconds, write_json

from corrigenda.editing import EditedModel, load_edits
from corrigenda.editing.methods.registry import config_for


def known_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether a sentence goes on with its true end."""
    return {"acc": float(results[0].strip().casefold().startswith(doc["answer"].casefold()))}


def tasks(folder: Path) -> list[dict[str, Any]]:
    """The two tasks, as lm-evaluation-harness takes them."""

    def task(name: str, **more: Any) -> dict[str, Any]:
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        return {"task": name, **source, "test_split": "test", "output_type": "generate_until", "num_fewshot": 0, **more}

    mean = {"aggregation": "mean", "higher_is_better": True}
    return [
        task(
            "known_facts",
            doc_to_text="{{prompt}}",
            doc_to_target="{{answer}}",
            process_results=known_right,
            generation_kwargs={"until": ["\n", "."], "max_gen_toks": 6, "do_sample": False},
            metric_list=[{"metric": "acc", **mean}],
        ),
        task(
            "nq_open",
            doc_to_text="Question: {{question}}\nAnswer:",
            doc_to_target="{{answers}}",
            generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
            metric_list=[{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True, **mean}],
        ),
    ]


def perplexity(model: Any, tokenizer: Any, folder: Path) -> float:
    """Of the last hundred questions, which no task asks, a token."""
    lines = (folder / "nq_open.jsonl").read_text(encoding="utf-8").splitlines()[-100:]
    loss, count = 0.0, 0
    for text in [json.loads(line)["question"] for line in lines]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return math.exp(loss / count)


def measured(model: Any, tokenizer: Any, args: Any) -> dict[str, float]:
    """Every task's score, and the perplexity, of a model as it is now."""
    start = seconds()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
    found = simple_evaluate(harness, tasks=tasks(args.data), limit=args.limit, bootstrap_iters=0)["results"]
    return {
        "known_facts": found["known_facts"]["acc,none"],
        "nq_open": found["nq_open"]["exact_match,none"],
        "perplexity": perplexity(model, tokenizer, args.data),
        "seconds": seconds() - start,
    }


def main() -> None:
    parser = edits_arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with known_facts.jsonl and nq_open.jsonl")
    parser.add_argument("--at", type=int, default=10, help="how many edits")
    parser.add_argument("--method", action="append", required=True, help="a method; as often as needed")
    parser.add_argument("--limit", type=int, default=100, help="how much of each task is asked")
    parser.add_argument("--results", type=Path, default=results_folder())
    args = parser.parse_args()
    torch.set_num_threads(1)
    edits = load_edits(args.edits, unique_subject=True, limit=2 * args.at)[1::2]
    result = {"edits": args.edits.name, "at": args.at, "limit": args.limit, **provenance(), "after": {}}
    for method in args.method:
        edited = EditedModel.from_pretrained(args.model, config=config_for(method), template=args.template)
        if "before" not in result:
            result["before"] = measured(edited.model, edited.tokenizer, args)
        edited.edit(edits, keep_unsolved=True)
        result["after"][method] = measured(edited.model, edited.tokenizer, args)
        print(method, json.dumps(result["after"][method]), flush=True)
        write_json(args.results / "general.json", result)
        edited.detach()


if __name__ == "__main__":
    main()
