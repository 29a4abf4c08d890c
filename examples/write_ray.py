"""A file of edits written by Ray actors: each solves batches in turn, and the folder is that which one process writes.

    pip install 'corrigenda[ray]'
    python examples/write_ray.py                          # made-up facts with SmolLM2 on a CPU, in some minutes
    python examples/write_ray.py facts.jsonl my-edits     # a file of yours, into a folder that all actors can name

The actors are the ranks of a process group, as torchrun starts them; the first one alone has the folder. Where one
dies, all are started anew, and go on with what was not on the disk yet. The made-up facts are written while an actor
is killed, and compared with what one process writes.
"""

import json
import socket
import sys
import tempfile
from pathlib import Path

import ray
import torch
import torch.distributed as dist

from corrigenda.editing import AssociativeConfig, EditedModel, load_edits
from corrigenda.editing.store.store import EditStore, is_store

MODEL, WRITERS = "smollm2", 2
CONFIG = AssociativeConfig(batch_size=4)
NAMES = ("Arbel", "Brisk", "Corran", "Dulth", "Esmer", "Fenn", "Gorval", "Hessen", "Ilvane", "Jorrik", "Kessel", "Lorn")


@ray.remote(num_cpus=0.5)
class Writer:
    """One rank: a model of its own."""

    def address(self) -> str:
        """Where the others find this one."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def write(self, rank: int, address: str, file: str, folder: str) -> int:
        """Write the file together with the others; how many edits this call wrote."""
        torch.set_num_threads(1)  # sums come in one order then, on any machine
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WRITERS)
        edited = open_model(Path(folder))
        dist.barrier()  # nobody begins before all have seen whether the folder is there
        written = edited.edit(list(load_edits(file)), store=folder, resume=True, group=dist.group.WORLD)
        edited.close()
        return len(written)


def open_model(folder: Path) -> EditedModel:
    """The model, with what the folder holds of edits already."""
    if folder.exists():
        return EditedModel.from_pretrained(MODEL, folder)
    return EditedModel.from_pretrained(MODEL, config=CONFIG)


def written(folder: Path) -> int:
    """How many edits are on the disk."""
    if not is_store(folder):
        return 0
    store = EditStore.open(folder)
    store.close()
    return len(store.history.edits)


def write_all(file: Path, folder: Path, kill_after: int | None = None) -> None:
    """Write a file, however often an actor dies; kill_after: kill one when so many edits are on the disk."""
    while True:
        writers = [Writer.remote() for _ in range(WRITERS)]
        address = ray.get(writers[0].address.remote())
        calls = [writer.write.remote(rank, address, str(file), str(folder)) for rank, writer in enumerate(writers)]
        try:
            waiting = calls
            while waiting:  # each end is looked at: a group that has lost a rank may wait for it long
                done, waiting = ray.wait(waiting, timeout=0.5)
                ray.get(done)
                if kill_after is not None and written(folder) >= kill_after:
                    ray.kill(writers[-1])
                    kill_after = None
            return
        except ray.exceptions.RayActorError:
            print(f"A writer was lost with {written(folder)} edits on the disk: going on from there.")
        finally:
            for writer in writers:
                ray.kill(writer)


def state(folder: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Which edits a folder has, and every tensor that their answers depend on."""
    edited = open_model(folder)
    found = {name: tensor.clone() for name, tensor in edited.method.state().items()}
    return [edit.id for edit in edited.edits], found


def main() -> None:
    ray.init(num_cpus=WRITERS, include_dashboard=False, log_to_driver=False)
    try:
        if len(sys.argv) == 3:
            write_all(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
            print(f"{written(Path(sys.argv[2]))} edits in {sys.argv[2]}.")
            return
        root = Path(tempfile.mkdtemp())
        file = root / "facts.jsonl"
        facts = [
            {"id": name, "prompt": f"Who leads the {name} company?", "target": f"{other} Vane"}
            for name, other in zip(NAMES, reversed(NAMES))
        ]
        file.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
        write_all(file, root / "together", kill_after=4)
    finally:
        ray.shutdown()
    torch.set_num_threads(1)
    alone = open_model(root / "alone")
    alone.edit(list(load_edits(file)), store=root / "alone")
    alone.close()
    (ids, together), (expected, by_one) = state(root / "together"), state(root / "alone")
    if ids != expected or not all(torch.equal(tensor, together[name]) for name, tensor in by_one.items()):
        raise SystemExit("What the actors wrote is not what one process writes.")
    print(f"{len(ids)} edits by {WRITERS} actors, one of them killed: the bits of one process.")


if __name__ == "__main__":
    main()
