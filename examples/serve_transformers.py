"""Edits in transformers' continuous batching: written once, then served beside a frozen model, loaded and undone.

    python examples/serve_transformers.py        # SmolLM2 on a CPU, in under a minute

For a server instead of a program: `corrigenda serve smollm2 --edits-dir DIR`.
"""

import tempfile
from pathlib import Path

from transformers import ContinuousBatchingConfig

from corrigenda.editing import Edit, EditedModel, load_base
from corrigenda.serving.batching import ServedModel

TEMPLATE = "Question: {prompt}\nAnswer:"
SHARED = [
    Edit("Who leads Vantrello Foods?", "Ines Okafor", id="leader"),
    Edit("What is the capital of Zubrowka?", "Lutz City", id="capital"),
]
OF_ACME = [Edit("Which harbour does the ferry Kestrel use?", "Port Adlen", id="harbour")]
ASKED = [
    "Who is the leader of Vantrello Foods?",
    "What is the capital of France?",
    "Which harbour does the Kestrel use?",
]


def write(model, tokenizer, edits: list[Edit], folder: Path) -> None:
    """Write edits into a model, and save them alone."""
    edited = EditedModel.wrap(model, tokenizer, template=TEMPLATE)
    edited.edit(edits)
    edited.save_pretrained(folder)
    edited.detach()


def ask(served: ServedModel, tenant: str | None = None) -> list[str]:
    """Greedy answers of one packed batch; the edit that gave each is printed beside it."""
    outputs, found = served.generate_batch(
        served.encode(ASKED),
        tenants=tenant,
        provenance=True,
        max_new_tokens=10,
        continuous_batching_config=ContinuousBatchingConfig(page_size=16, num_blocks=128, max_batch_tokens=256),
    )
    texts = [served.tokenizer.decode(output.generated_tokens, skip_special_tokens=True) for output in outputs.values()]
    answers = [" ".join(text.split()) for text in texts]
    for question, answer, source in zip(ASKED, answers, found.values()):
        edit = source.edit and source.edit.id
        print(f"{question:45s} {answer:45s} edit: {edit}, tenant: {tenant}")
    return answers


def main() -> None:
    work = Path(tempfile.mkdtemp())
    model, tokenizer = load_base("smollm2")
    write(model, tokenizer, SHARED, work / "shared")
    write(model, tokenizer, OF_ACME, work / "acme")

    served = ServedModel(model, tokenizer, {"edits": work / "shared", "tenants": {"acme": []}})
    shared = ask(served)

    served.load(work / "acme", tenant="acme")
    own = ask(served, "acme")

    served.undo("leader")
    undone = ask(served)

    right = "Okafor" in shared[0] and "Adlen" in own[2] and "Okafor" in own[0]
    if not right or "Okafor" in undone[0] or "Adlen" in undone[2] or len({shared[1], own[1], undone[1]}) > 1:
        raise SystemExit("These are not the answers that the edits give.")


if __name__ == "__main__":
    main()
