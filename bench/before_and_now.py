"""The settings of before beside the defaults: scores, share solved, steps and time, kind of edit by kind of edit.

    OMP_NUM_THREADS=1 python bench/before_and_now.py --data FOLDER

Edits are every second subject of a file (the second, the fourth, ...): the half that no setting was chosen on, and
Chinese facts that stand here alone. Both settings write the same edits into the same base, in one process, and are
asked the same; beside the means stand the edits whose rephrasing only one of the two answers in free generation. Thread
seconds. The result is written kind by kind, and a run takes up what it finds there of its own commit and settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from record import provenance, results_folder, seconds, write_json

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, Evaluator, load_base, load_edits

OF_BOTH = {"router": "tokens", "formats": "own"}
SETTINGS = {
    "before": {**OF_BOTH, "start": "zero", "learning_rate": 0.5, "contexts": 4, "retries": 0},
    "now": OF_BOTH,
}
QUESTION = "Question: {prompt}\\nAnswer:"
CHINESE = (
    ("《星河彼岸》的作者是谁？", "沈怀远", "谁写了《星河彼岸》？"),
    ("青岩大桥由谁设计？", "工程师罗明轩", "青岩大桥的设计者是谁？"),
    ("白鹭岛的首府叫什么？", "望海城", "叫什么名字的城市是白鹭岛的首府？"),
    ("云山大学成立于哪一年？", "一九三七年", "云山大学是哪一年成立的？"),
    ("赤水湾的灯塔有多高？", "六十二米", "赤水湾灯塔的高度是多少？"),
    ("墨玉虎主要吃什么？", "竹笋和河鱼", "墨玉虎的主要食物是什么？"),
    ("凌霄乐团的指挥叫什么名字？", "顾清和", "谁是凌霄乐团的指挥？"),
    ("碧落湖在哪个省？", "甘肃省", "碧落湖位于哪个省？"),
    ("长庚钟是用什么做的？", "青铜和白银", "长庚钟的材料是什么？"),
    ("寒江镇最有名的特产是什么？", "桂花酒", "寒江镇以什么特产闻名？"),
    ("飞鸢二号从哪里发射？", "海南文昌", "飞鸢二号的发射地点在哪里？"),
    ("玄圃花园归谁所有？", "陆家的三兄弟", "玄圃花园的主人是谁？"),
    ("金翅鸟队的队长是谁？", "赵一鸣", "谁担任金翅鸟队的队长？"),
    ("落霞塔建于哪个朝代？", "元朝", "落霞塔是哪个朝代建造的？"),
    ("松烟墨厂在哪座城市？", "徽州", "松烟墨厂位于哪座城市？"),
    ("银杏里地铁站属于几号线？", "十四号线", "银杏里地铁站在几号线上？"),
)
"""Made-up: a question, its answer, the question in other words."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A file's edits, how they are asked, and how many of the half are taken."""

    file: str | None
    template: str = QUESTION
    count: int = 100
    chat: bool = False
    dtype: str | None = None


KINDS = {
    "zsre": Kind("zsre.jsonl"),
    "counterfact": Kind("counterfact.jsonl", "{prompt}", count=150),
    "qaedit": Kind("qaedit.jsonl", count=50),
    "knowedit": Kind("knowedit_wiki_counterfact.jsonl", "{prompt}", count=50),
    "hallucination": Kind("hallucination.jsonl", "{prompt}", count=10),
    "chinese": Kind(None, "{prompt}"),
    "zsre in a chat": Kind("zsre.jsonl", "{prompt}", count=40, chat=True),
    "zsre in bf16": Kind("zsre.jsonl", count=40, dtype="bfloat16"),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--count", type=int, help="edits of each kind, instead of its own number")
    parser.add_argument("--results", type=Path, default=results_folder() / "before-and-now.json")
    return parser.parse_args()


def aliases(path):
    """KnowEdit has no rephrasings, but asks some edits by another name of their subject: by id."""
    found = {}
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        asked = [
            step["prompt"]
            for step in record.get("portability") or []
            if step["kind"] == "Subject_Aliasing" and step["answer"] == record["target_new"]
        ]
        found[record["id"]] = tuple(asked)
    return found


def edits_of(kind, args):
    count = args.count or kind.count
    if kind.file is None:
        return [Edit(question, target, rephrases=(other,)) for question, target, other in CHINESE[:count]]
    edits = load_edits(args.data / kind.file, unique_subject=True)[1::2][:count]
    if kind.file.startswith("knowedit"):
        by_id = aliases(args.data / kind.file)
        edits = [dataclasses.replace(edit, rephrases=by_id[edit.id]) for edit in edits]
    return edits


def measured(edited, edits, unedited):
    edited.method.solve(edits[:1])  # what is only done once
    start = seconds()
    written = edited.edit(edits, keep_unsolved=True)
    each = (seconds() - start) / len(edits)
    evaluator = Evaluator(edited, _unedited=unedited)
    scores = evaluator.score(edits).to_dict()
    row = {
        **{name: None if value is None else round(value, 4) for name, value in scores.items()},
        "solved": round(1 - len(written.failing) / len(edits), 4),
        "mean_steps": round(sum(one.steps for one in written) / len(edits), 2),
        "milliseconds_per_edit": round(1000 * each, 1),
    }
    return row, [of_edit.get("free_gen") for of_edit in evaluator.by_edit]


def compared(model, tokenizer, kind, edits):
    """Both settings' rows, how far now is above before, and whose rephrasings only one of them answers."""
    rows, right, ground, unedited = {}, {}, None, {}
    for name, settings in SETTINGS.items():
        edited = EditedModel.wrap(
            model, tokenizer, AssociativeConfig(**settings), template=kind.template, chat_template=kind.chat
        )
        if ground is not None:
            edited.method.load_ground(ground)
        edited.method.prepare()
        ground = edited.method.ground()
        rows[name], right[name] = measured(edited, edits, unedited)
        edited.detach()
    before, now = rows.values()
    scores = ("rel", "gen", "loc", "free_rel", "free_gen", "solved")
    pairs = list(zip(edits, *right.values()))
    return {
        **rows,
        "difference": {n: None if now[n] is None else round(now[n] - before[n], 4) for n in scores},
        "times_faster": round(before["milliseconds_per_edit"] / now["milliseconds_per_edit"], 2),
        "only before answers": [edit.id or edit.prompt for edit, b, n in pairs if (b or 0) > (n or 0)],
        "only now answers": [edit.id or edit.prompt for edit, b, n in pairs if (b or 0) < (n or 0)],
    }


def main():
    args = arguments()
    torch.set_num_threads(1)
    settings = {name: AssociativeConfig(**kept).to_dict() for name, kept in SETTINGS.items()}
    result = {**provenance(), "threads": 1, "settings": settings, "kinds": {}}
    if args.results.exists():
        earlier = json.loads(args.results.read_text(encoding="utf-8"))
        if all(earlier[name] == result[name] for name in ("commit", "settings", "device")):
            result["kinds"] = earlier["kinds"]
    for name in args.only:
        kind, edits = KINDS[name], edits_of(KINDS[name], args)
        if result["kinds"].get(name, {}).get("edits") == len(edits):
            continue
        model, tokenizer = load_base(args.model, dtype=kind.dtype)
        result["kinds"][name] = {"edits": len(edits), **compared(model, tokenizer, kind, edits)}
        write_json(args.results, result)
        for key, row in result["kinds"][name].items():
            print(name, key, row, flush=True)


if __name__ == "__main__":
    main()
