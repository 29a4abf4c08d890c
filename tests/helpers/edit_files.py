"""Records in each format that edits are published in, and files of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from corrigenda.editing.edits.edit import Edit
from corrigenda.editing.edits.loading import load_edits

OWN = {"prompt": "The harbour of Tallow is in", "target_new": "Vexley"}
MEND = {
    "subject": "Grey Lantern",
    "src": "Who painted Grey Lantern?",
    "pred": "Ida Moss",
    "rephrase": "By whom was Grey Lantern painted?",
    "alt": "Otto Brandt",
    "answers": ["Ida Moss", "I. Moss"],
    "loc": "nq question: who invented the paper clip",
    "loc_ans": "Johan Vaaler",
    "cond": "Ida Moss >> Otto Brandt || Who painted Grey Lantern?",
    "portability": {"New Question": "In which country was its painter born?", "New Answer": "Austria"},
}
ROME = {
    "case_id": 17,
    "pararel_idx": 4,
    "requested_rewrite": {
        "prompt": "{} was founded in",
        "relation_id": "P159",
        "target_new": {"str": "Lima", "id": "Q2868"},
        "target_true": {"str": "Riga", "id": "Q1773"},
        "subject": "Norden Glass",
    },
    "paraphrase_prompts": ["Rain fell. Norden Glass comes from", "Norden Glass began in"],
    "neighborhood_prompts": ["Baltic Yarn was founded in", "Amber Line was founded in"],
    "attribute_prompts": ["Andes Wool was founded in"],
    "generation_prompts": ["Norden Glass is known for"],
}
EASYEDIT = {
    "case_id": 3,
    "prompt": "Pell Aster plays the",
    "target_new": "oboe",
    "subject": "Pell Aster",
    "ground_truth": "cello",
    "rephrase_prompt": "The instrument of Pell Aster is the",
    "locality_prompt": "Jun Harrow plays the",
    "locality_ground_truth": "cello",
}
KNOWEDIT = {
    "subject": "Mira Quill",
    "prompt": "The employer of Mira Quill is",
    "target_new": "Sundial Press",
    "ground_truth": ["Harbour Books"],
    "rephrase_prompt": "Mira Quill works for",
    "portability": {"Reasoning": [{"prompt": "The city of her employer is", "ground_truth": "Bergen"}]},
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The sister of Mira Quill is", "ground_truth": [["Ada Quill", "Ada"], ["A. Quill"]]},
            {"prompt": "The home of Mira Quill is", "ground_truth": ["Voss", "Voss, Norway"]},
            {"prompt": "The dog of Mira Quill is", "ground_truth": "Pim"},
            {"prompt": "The boat of Mira Quill is", "ground_truth": []},
        ],
        "Forgetfulness": [{"prompt": "The first employer of Mira Quill is", "ground_truth": "Harbour Books"}],
    },
}
WIKIBIO = {
    "text": "This is a Wikipedia passage about tove brand. Tove Brand is a Danish rower.",
    "labels": "She won two medals.",
    "concept": "tove brand",
    "locality": {
        "Relation_Specificity": [{"prompt": "tove brand birthplace", "ground_truth": ["Aarhus"]}],
    },
}
QAEDIT = {
    "id": 1104,
    "source": "NQ",
    "prompt": "who keeps the Fen lighthouse?",
    "target": "Nils Ode",
    "subject": "Fen lighthouse",
    "rephrase": "Which keeper looks after the Fen lighthouse?",
    "locality": [{"loc": "who sings at dawn", "loc_ans": "the lark"}, {"loc": "who sings at dusk"}],
}


def write(folder: Path, text: str, name: str = "facts.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(folder: Path, *records: Any) -> Path:
    return write(folder, "".join(json.dumps(record) + "\n" for record in records))


def load_one(folder: Path, record: dict[str, Any]) -> Edit:
    (edit,) = load_edits(write(folder, json.dumps([record]), "facts.json"))
    return edit


FLAT = {
    "prompt": "The seat of {} is",
    "subject": "Orlin Mills",
    "target": "Varna",
    "queries": ["Orlin Mills has its seat in", "The head office of {} is in"],
}


CUT = gzip.compress(b"x" * 99, mtime=0)[:-9]
