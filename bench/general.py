"""What general ability is left after edits: lm-evaluation-harness on an edited model, before and after.

    pip install lm-eval
    python bench/general.py --data FOLDER --edits bench-work/field-zsre.jsonl

Two tasks of multiple choice, made of files in FOLDER (`known_facts.jsonl`: a fact's end among three of the same
relation; `nq_open.jsonl`: a question's answer among three of other questions), and perplexity of docstrings of Python's
standard library. No edit is about any of it: records that name the subject of one are left out. The harness has the
model as one of Hugging Face, but a continuation is scored in a pass that is told where its context ends
(`teacher_forcing`), as generation would be; `applied` counts the contexts that an edit was applied to.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
from importlib.metadata import version
from pathlib import Path

import torch
from continuations import loglikelihoods
from record import provenance, results_folder, write_json

from corrigenda.editing import EditedModel, load_base, load_edits
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.methods.settings import settings_of

TEMPLATE = "Question: {prompt}\\nAnswer:"
# Settings as in bench/field.yaml.
RUNS = {
    "associative": (100, []),
    "memit": (10, ["eos=true", "contexts=2"]),
    "ft-m": (10, ["eos=true"]),
}
MODULES = ("bisect", "heapq", "textwrap", "random")
WINDOW = 512


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--items", type=int, default=100, help="questions of each task")
    parser.add_argument("--methods", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def choices(right, others, chance):
    """Four texts in any order, and the place of the right one."""
    wrong = chance.sample(sorted(set(others) - {right}), 3)
    texts = [*wrong, right]
    chance.shuffle(texts)
    return {"choices": texts, "label": texts.index(right)}


def questions(data, subjects, items):
    """By task, its records: `query`, `choices`, `label`; a record that names a subject of an edit is left out."""
    chance = random.Random(0)

    def apart(text):
        return not any(subject in text.casefold() for subject in subjects)

    facts = [fact for fact in lines(data / "known_facts.jsonl") if apart(fact["prompt"])]
    ends = {}
    for fact in facts:
        ends.setdefault(fact["relation_id"], set()).add(fact["answer"])
    facts = [fact for fact in facts if len(ends[fact["relation_id"]]) > 3]
    asked = [record for record in lines(data / "nq_open.jsonl") if apart(record["question"])]
    answers = [record["answers"][0] for record in asked]
    made = {
        "known_facts": [
            {"query": fact["prompt"], **choices(fact["answer"], ends[fact["relation_id"]], chance)} for fact in facts
        ],
        "natural_questions": [
            {"query": f"Question: {record['question']}?\nAnswer:", **choices(right, answers, chance)}
            for record, right in zip(asked, answers)
        ],
    }
    return {name: chance.sample(records, min(items, len(records))) for name, records in made.items()}


def docstrings():
    """The docstrings of modules and of what they define, a text each."""
    texts = []
    for name in MODULES:
        module = importlib.import_module(name)
        own = [getattr(module, one) for one in sorted(getattr(module, "__all__", ()))]
        texts.append("\n\n".join(filter(None, (inspect.getdoc(one) for one in [module, *own]))))
    return texts


def tasks(records):
    """The harness's tasks of these records, and that of the docstrings."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    def task(name, rows, **settings):
        given = {"task": name, "test_split": "test", "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}}
        return ConfigurableTask(config=given | settings)

    def metrics(*names, **settings):
        return {"metric_list": [{"metric": name, **settings} for name in names]}

    asked = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        **metrics("acc", "acc_norm", aggregation="mean", higher_is_better=True),
    }
    texts = [{"text": text} for text in docstrings()]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    perplexity = rolling | metrics("word_perplexity", "byte_perplexity")
    return [*(task(name, rows, **asked) for name, rows in records.items()), task("docstrings", texts, **perplexity)]


def harness_model(edited):
    """The edited model as the harness takes one; `applied` counts what it scored by an edit."""
    from lm_eval.models.huggingface import HFLM

    class Edited(HFLM):
        applied = 0

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            found = loglikelihoods(edited, [(context, continuation) for _, context, continuation in requests])
            self.applied += found.applied
            return found.scores

    return Edited(edited.model, tokenizer=edited.tokenizer, backend="causal", max_length=WINDOW, batch_size=1)


def scores(edited, asked):
    from lm_eval import simple_evaluate

    model = harness_model(edited)
    found = simple_evaluate(model, tasks=asked, bootstrap_iters=0, log_samples=False)["results"]
    kept = {
        name: {key.removesuffix(",none"): value for key, value in result.items() if isinstance(value, float)}
        for name, result in found.items()
    }
    return {**kept, "applied": model.applied}


def main():
    args = arguments()
    torch.set_num_threads(1)
    most = max(RUNS[name][0] for name in args.methods)
    edits = load_edits(args.edits, limit=most)
    subjects = {edit.subject.casefold() for edit in edits}
    records = questions(args.data, subjects, args.items)
    base, tokenizer = load_base(args.model)
    path = args.results / "general.json"
    result = {
        "edits": args.edits.name,
        "items": {name: len(rows) for name, rows in records.items()},
        "characters": sum(map(len, docstrings())),
        "window": WINDOW,
        "runs": {},
    }

    def keep(name, found):
        result["runs"][name] = found
        print(name, json.dumps(found), flush=True)
        write_json(path, {**result, **provenance(), "lm_eval": version("lm_eval")})

    for name in ["none", *args.methods]:
        count, settings = (0, []) if name == "none" else RUNS[name]
        method = "associative" if name == "none" else name
        config = config_for(method, **settings_of(method, settings))
        edited = EditedModel.wrap(base, tokenizer, config, template=TEMPLATE)
        written = edited.edit(edits[:count])
        held = sum(bool(one.held) for one in written)
        keep(name, {"count": count, "held": held, **scores(edited, tasks(records))})
        edited.detach()


if __name__ == "__main__":
    main()
