"""What servers are asked: a real model, real edits, prompts, and transformers' answer to each, one prompt a pass."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

NEW_TOKENS = 12
TEMPLATE = "Question: {prompt}\\nAnswer:"
PREAMBLE = (
    "You answer questions about people, places, books and animals. Answer in as few words as you can. "
    "Do not explain, do not repeat the question, and do not say that you are a language model. "
    "If there are several right answers, give the one that is best known. Write names as they are written in English."
    "\n\n"
)


class Case:
    """The model, the edits, the prompts and what transformers answers to each of them, kept between runs."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.model, self.edits, self.base = work / "model", work / "edits", work / "reference.json"

    def prepare(self, edits_file: Path, count: int) -> None:
        from corrigenda.editing import EditedModel, as_folder, load_base, load_edits

        torch.set_num_threads(1)
        as_folder("smollm2", self.model)
        edits = load_edits(edits_file, unique_subject=True, limit=count)
        if not self.edits.exists():
            model, tokenizer = load_base(self.model, dtype="float32")
            edited = EditedModel.wrap(model, tokenizer, template=TEMPLATE)
            edited.edit(edits)
            edited.save_pretrained(self.edits)
        if not self.base.exists():
            asked = [edit.prompt for edit in edits[:12]] + [edit.rephrases[0] for edit in edits[12:24]]
            asked += [edit.localities[0].prompt.removeprefix("nq question: ") + "?" for edit in edits[24:32]]
            self._refer(asked)

    def _refer(self, asked: list[str]) -> None:
        from corrigenda.editing import EditedModel
        from corrigenda.editing.backbone.loading import load_base

        model, tokenizer = load_base(self.model, dtype="float32")
        edited = EditedModel.from_pretrained(model, self.edits, tokenizer=tokenizer)
        plain = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in asked]
        shared = [edited.prompts.encode(PREAMBLE) + ids for ids in plain]
        answers = {"plain": _answers(edited, plain), "shared": _answers(edited, shared)}
        more = edited.prompts.encode("\n\nQuestion: Who was that?\nAnswer:")
        # Long enough that blocks of the prefix cache are filled by answers, which an edit made.
        answers["first turn"] = _answers(edited, plain[:16], 48)
        second = [row["prompt"] + row["tokens"] + more for row in answers["first turn"]]
        answers["second turn"] = _answers(edited, second)
        edited.detach()
        lora = _adapter(self.work / "lora", model)
        _merge(model, lora)
        edited = EditedModel.from_pretrained(model, self.edits, tokenizer=tokenizer)
        answers["lora"] = _answers(edited, plain)
        edited.detach()
        model, _ = load_base(self.model, dtype="float32")
        answers["base"] = [{**row, **_answer(model, row["prompt"])} for row in answers["plain"]]
        self.base.write_text(json.dumps(answers))

    @property
    def reference(self) -> dict:
        return json.loads(self.base.read_text())


def _answers(edited, prompts, unended=0):
    """Greedy answers, one prompt a pass, with the edit that was applied; or `unended` tokens, whatever ends them."""
    rows = []
    for ids in prompts:
        output, sources = edited.generate(
            torch.tensor([ids]),
            max_new_tokens=unended or NEW_TOKENS,
            min_new_tokens=unended,
            do_sample=False,
            provenance=True,
        )
        edit = sources[0].edit
        rows.append(
            {
                "prompt": ids,
                "tokens": output[0, len(ids) :].tolist() if unended else cut(output[0, len(ids) :].tolist()),
                "edit": edit and edit.id,
            }
        )
    return rows


def _answer(model, ids):
    output = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
    return {"tokens": cut(output[0, len(ids) :].tolist()), "edit": None}


def cut(tokens, eos=2):
    """An answer without the token that ends it; turns are joined without it."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _adapter(folder: Path, model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A LoRA adapter that changes answers, on the edited layer and another: random, for it is only to compose."""
    generator = torch.Generator().manual_seed(0)
    parts, tensors = {}, {}
    for name in ("model.layers.24.mlp.down_proj", "model.layers.10.self_attn.q_proj"):
        linear = model.get_submodule(name)
        a = torch.randn(8, linear.in_features, generator=generator) * 0.05
        b = torch.randn(linear.out_features, 8, generator=generator) * 0.05
        parts[name] = (a, b)
        tensors[f"base_model.model.{name}.lora_A.weight"], tensors[f"base_model.model.{name}.lora_B.weight"] = a, b
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rsplit(".", 1)[1] for name in parts})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    return parts


@torch.no_grad()
def _merge(model, adapter) -> None:
    for name, (a, b) in adapter.items():
        model.get_submodule(name).weight += b @ a


def equal(answers, rows):
    return {"equal": sum(answer == row["tokens"] for answer, row in zip(answers, rows)), "of": len(rows)}
