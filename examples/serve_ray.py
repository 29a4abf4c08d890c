"""Edits behind Ray Serve: two replicas of one folder, turned from snapshot to snapshot by the deployment's own updates.

    pip install 'corrigenda[ray,serve]'
    python examples/serve_ray.py        # SmolLM2 on a CPU, in a minute or two

A deployment's `user_config` is what all replicas are told: first to stage a snapshot, and when each has, to turn to
it. Between the two the folder says which snapshot is to be served, and a replica that starts later goes by that.
`serve.run` puts a new replica in the place of each old one; `serve deploy` with a file of the same `user_config`
tells those that run.
"""

import contextlib
import os
import tempfile
from collections import Counter
from pathlib import Path

import ray
from ray import serve
from transformers import ContinuousBatchingConfig

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.store.folder import Folder
from corrigenda.editing.store.snapshots import Snapshot, write_active
from corrigenda.editing.store.store import EditStore

MODEL, REPLICAS = "smollm2", 2
TEMPLATE = "Question: {prompt}\nAnswer:"
EDITS = [
    Edit("Who leads Vantrello Foods?", "Ines Okafor", id="leader"),
    Edit("What is the capital of Zubrowka?", "Lutz City", id="capital"),
]
ASKED = ("Who is the leader of Vantrello Foods?", "What is the capital city of Zubrowka?", "Why is the sky blue?")


@serve.deployment(num_replicas=REPLICAS, ray_actor_options={"num_cpus": 0.5})
class Answers:
    """A replica: a model, and the edits of a folder that all replicas share."""

    def __init__(self, folder: str) -> None:
        from corrigenda.editing import load_base
        from corrigenda.serving.batching import ServedModel

        self.folder = folder
        self.served = ServedModel(*load_base(MODEL), folder)

    def reconfigure(self, config: dict[str, str]) -> None:
        """Do what all replicas are told to; what is raised here fails the update."""
        for what, do in (("stage", self.served.stage), ("serve", self.served.load)):
            if what in config:
                do(self.folder, snapshot=Snapshot.parse(config[what]))

    def __call__(self, prompt: str) -> dict[str, object]:
        outputs, found = self.served.generate_batch(
            self.served.encode([prompt]),
            provenance=True,
            max_new_tokens=8,
            continuous_batching_config=ContinuousBatchingConfig(page_size=16, num_blocks=64, max_batch_tokens=128),
        )
        ((name, output),) = outputs.items()
        edit, _, snapshot = found[name].told
        text = self.served.tokenizer.decode(output.generated_tokens, skip_special_tokens=True)
        return {"replica": os.getpid(), "snapshot": snapshot, "edit": edit, "text": " ".join(text.split())}


def deploy(folder: Path, **config: str):
    """Start the replicas, or tell those that run something new; raises where one of them cannot."""
    return serve.run(Answers.options(user_config=config).bind(str(folder)), name="answers", route_prefix=None)


def roll_out(folder: Path, snapshot: Snapshot, before: Snapshot):
    """Turn all replicas to a snapshot, or none."""
    try:
        deploy(folder, stage=str(snapshot))
    except RuntimeError:
        deploy(folder, serve=str(before))
        raise
    with Folder(folder) as held:
        write_active(held, snapshot)
    return deploy(folder, serve=str(snapshot))


def ask(handle) -> dict[str, str | None]:
    """Which edit answers each question; every replica is asked, and they must agree."""
    edits = {}
    for question in ASKED:
        answers = [handle.remote(TEMPLATE.format(prompt=question)) for _ in range(4 * REPLICAS)]
        answers = [answer.result(timeout_s=300) for answer in answers]
        said = {(answer["snapshot"], answer["edit"], answer["text"]) for answer in answers}
        if len(said) > 1:
            raise SystemExit(f"The replicas do not agree on {question!r}: {said}.")
        ((snapshot, edits[question], text),) = said
        replicas = Counter(answer["replica"] for answer in answers)
        print(f"{snapshot}  {question:40s} {text[:40]:40s} edit: {edits[question]}, {len(replicas)} replicas")
    return edits


def write(folder: Path) -> tuple[Snapshot, Snapshot]:
    """Edits in a folder, and two states of it: with all of them, and with the first one undone."""
    edited = EditedModel.from_pretrained(MODEL, template=TEMPLATE)
    edited.edit(EDITS)
    edited.save_pretrained(folder)
    store = EditStore.open(folder, write=True)
    with contextlib.closing(store):
        whole = store.snapshot
        store.undo(store.selected(["leader"]))
        return whole, store.snapshot


def main() -> None:
    folder = Path(tempfile.mkdtemp()) / "edits"
    whole, without = write(folder)
    ray.init(num_cpus=REPLICAS, include_dashboard=False, log_to_driver=False)
    try:
        handle = deploy(folder, serve=str(whole))
        first = ask(handle)
        second = ask(roll_out(folder, without, whole))
        missing = Snapshot(without.entries + 1, without.digest)
        with contextlib.suppress(RuntimeError):  # no replica can get ready for what is not there
            roll_out(folder, missing, without)
            raise SystemExit("A snapshot that is not there was rolled out.")
        third = ask(handle)
    finally:
        serve.shutdown()
        ray.shutdown()
    if list(first.values()) != ["leader", "capital", None] or list(second.values()) != [None, "capital", None]:
        raise SystemExit("These are not the answers that the edits give.")
    if third != second:
        raise SystemExit("A roll-out that failed changed answers.")


if __name__ == "__main__":
    main()
