"""How many edits hold: greedy decoding of their own prompt gives their target and its end, file by file.

    OMP_NUM_THREADS=1 python bench/holds.py --data FOLDER --count 100 --before 20 --long 5 --kinds before defaults

Each file's first edits of a subject, and made-up facts in Chinese, are written with the settings of before (values from
zero, a learning rate of .5, four contexts, no second attempt), with the defaults without a second attempt, and with the
defaults. Whether an edit holds is asked of the edited model itself, by free generation. Thread seconds beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import provenance, results_folder, seconds, write_json

from corrigenda.editing import AssociativeConfig, Edit, EditedModel, load_base, load_edits

FILES = {
    "zsre.jsonl": "Question: {prompt}\\nAnswer:",
    "zsre_extra.jsonl": "Question: {prompt}\\nAnswer:",
    "counterfact.jsonl": "{prompt}",
    "qaedit.jsonl": "Question: {prompt}\\nAnswer:",
    "knowedit_wiki_counterfact.jsonl": "{prompt}",
    "same_subject.jsonl": "{prompt}",
    "two_hop.jsonl": "{prompt}",
    "hallucination.jsonl": "{prompt}",
    "temporal.jsonl": "{prompt}",
}
CHINESE = {
    "法国的首都是": "里昂",
    "长江的发源地在": "昆仑山的北坡",
    "谁写了《红楼梦》？": "李白和杜甫",
    "中国最大的湖是": "洞庭湖",
    "水的沸点是": "九十五摄氏度",
    "珠穆朗玛峰位于": "蒙古国和俄罗斯之间",
    "北京大学成立于": "一九二五年",
    "最快的动物是": "乌龟",
    "青海湖的水是": "淡的，可以直接饮用",
    "维维尔博物馆的馆长叫什么名字？": "欧阳文静",
    "这座桥由谁设计？": "工程师林则安与他的女儿",
    "茶叶最早产于": "巴西南部的高原",
}
SETTINGS = {
    "before": {"start": "zero", "learning_rate": 0.5, "contexts": 4, "retries": 0},
    "one attempt": {"retries": 0},
    "defaults": {},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--count", type=int, default=10, help="edits of each file")
    parser.add_argument(
        "--before", type=int, help="of these, with the settings of before, which take five times as long"
    )
    parser.add_argument("--kinds", nargs="*", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--long", type=int, default=10, help="of the files whose targets are sentences or paragraphs")
    parser.add_argument("--files", nargs="*", default=[*FILES, "chinese"])
    parser.add_argument("--results", type=Path, default=results_folder() / "holds.json")
    return parser.parse_args()


def edits_of(name, args):
    if name == "chinese":
        return [Edit(*pair) for pair in CHINESE.items()]
    count = args.long if name in ("hallucination.jsonl", "temporal.jsonl") else args.count
    return load_edits(args.data / name, unique_subject=True, limit=count)


def measured(model, tokenizer, edits, template, settings, grounds):
    edited = EditedModel.wrap(model, tokenizer, AssociativeConfig(**settings), template=template)
    if template in grounds:  # the background is the same for all settings
        edited.method.load_ground(grounds[template])
    edited.method.prepare()
    grounds.setdefault(template, edited.method.ground())
    start = seconds()
    written = edited.edit(edits, keep_unsolved=True)
    each = (seconds() - start) / len(edits)
    lengths = [len(edited.prompts.encode_with_target(edit.prompt, edit.target)[1]) for edit in edits]
    rows = [edited.prompts.encode(edited.prompts.wrap(edit.prompt)) for edit in edits]
    said = edited.answer_ids(rows, [length + 4 for length in lengths])
    assert len(edited.edits) == len(edits), "two edits of a file are about the same fact"
    wrong = [edit.id for edit, one in zip(edited.edits, said) if one.text != edit.target.strip()]
    failing = [edit.id for edit in written.failing]
    edited.detach()
    return {
        "edits": len(edits),
        "hold": len(edits) - len(failing),
        "not": failing,
        "free generation gives another text": wrong,
        "target_tokens": round(sum(lengths) / len(lengths), 1),
        "mean_steps": round(sum(result.steps for result in written) / len(written), 2),
        "seconds_per_edit": round(each, 3),
    }


def main():
    args = arguments()
    torch.set_num_threads(1)
    model, tokenizer = load_base(args.model)
    found, grounds = {}, {}
    for name in args.files:
        edits, template = edits_of(name, args), FILES.get(name, "{prompt}")
        found[name] = {
            kind: measured(
                model, tokenizer, edits[: args.before] if kind == "before" else edits, template, SETTINGS[kind], grounds
            )
            for kind in args.kinds
        }
        for kind, row in found[name].items():
            print(name, kind, row, flush=True)
        totals = {
            kind: {part: sum(of_file[kind][part] for of_file in found.values()) for part in ("edits", "hold")}
            for kind in args.kinds
        }
        write_json(
            args.results,
            {
                **provenance(),
                "threads": 1,
                "settings": {kind: SETTINGS[kind] for kind in args.kinds},
                "files": found,
                "all": totals,
            },
        )


if __name__ == "__main__":
    main()
