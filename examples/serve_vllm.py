"""Edits in vLLM: written once with transformers, served beside a frozen model, loaded and undone while it runs.

    python examples/serve_vllm.py        # on a CPU too; an environment with vLLM, see the README

For a server instead of a program: `corrigenda serve smollm2 --edits-dir DIR --stack vllm`.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; where vLLM runs on a CPU

from vllm import LLM, SamplingParams

from corrigenda.editing import Edit, EditedModel, as_folder
from corrigenda.serving.vllm import edits_of

TEMPLATE = "Question: {prompt}\nAnswer:"
SHARED = [
    Edit("Who leads Vantrello Foods?", "Ines Okafor", id="leader"),
    Edit("What is the capital of Zubrowka?", "Lutz City", id="capital"),
]
OF_ACME = [Edit("Which harbour does the ferry Kestrel use?", "Port Adlen", id="harbour")]


def write(model: Path, edits: list[Edit], folder: Path) -> None:
    """Write edits into a model, and save them alone."""
    edited = EditedModel.from_pretrained(model, template=TEMPLATE)
    edited.edit(edits)
    edited.save_pretrained(folder)


def ask(llm: LLM, question: str, tenant: str | None = None) -> str:
    """A greedy answer; the edit that gave it is printed beside it."""
    extra = {"tenant": tenant} if tenant else None
    sampling = SamplingParams(temperature=0, max_tokens=12, extra_args=extra)
    (output,) = llm.generate([TEMPLATE.format(prompt=question)], sampling, use_tqdm=False)
    answer, (edit,) = output.outputs[0].text.strip(), edits_of(llm).applied([output])
    print(f"{question:45s} {answer.splitlines()[0] if answer else '':35s} edit: {edit}, tenant: {tenant}")
    return answer


def main() -> None:
    work = Path(tempfile.mkdtemp())
    model = as_folder("smollm2", work / "model")
    write(model, SHARED, work / "shared")
    write(model, OF_ACME, work / "acme")

    llm = LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        additional_config={"corrigenda": {"edits": str(work / "shared"), "tenants": {"acme": []}}},
    )
    answers = [ask(llm, "Who is the leader of Vantrello Foods?"), ask(llm, "What is the capital of France?")]

    edits = edits_of(llm)
    edits.load(work / "acme", tenant="acme")
    answers += [ask(llm, "Which harbour does the Kestrel use?", tenant) for tenant in ("acme", None)]

    edits.undo("leader")
    answers += [ask(llm, "Who is the leader of Vantrello Foods?")]

    given = [
        target in answer for target, answer in zip(["Ines Okafor", "Okafor", "Port Adlen", "Port", "Ines"], answers)
    ]
    if given != [True, False, True, False, False]:
        raise SystemExit("These are not the answers that the edits give.")


if __name__ == "__main__":
    main()
