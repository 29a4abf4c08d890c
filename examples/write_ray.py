"""A file of edits written by actors of Ray: each solves batches in turn, the first writes, and a kill loses nothing.

    pip install 'corrigenda[ray]'
    python examples/write_ray.py        # SmolLM2 on a CPU, two actors, in a minute or two

The actors are the ranks of one process group (gloo), which `edit(..., group=)` takes. One of them is killed amid the
stream; new ones go on after what the folder has, and what it holds in the end has the bits of what one process writes.
"""

import json
import socket
import tempfile
import time
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError

from corrigenda.editing import AssociativeConfig, EditedModel, load_edits
from corrigenda.editing.store.store import EditStore, is_store

MODEL, ACTORS, COUNT = "smollm2", 2, 24
TEMPLATE = "Question: {prompt}\nAnswer:"
NAMES = ("Ada", "Ines", "Maro", "Tilda", "Oskar", "Lena")


def opened(folder: str) -> EditedModel:
    """The model with the edits that a folder has by now."""
    torch.set_num_threads(1)
    if is_store(folder):
        return EditedModel.from_pretrained(MODEL, edits=folder)
    return EditedModel.from_pretrained(MODEL, config=AssociativeConfig(batch_size=4), template=TEMPLATE)


def write(edited: EditedModel, file: str, folder: str, group: dist.ProcessGroup | None = None) -> int:
    """Write into a folder what it does not have of a file; how many edits that were."""
    written = len(edited.edit(load_edits(file), store=folder, resume=True, group=group))
    edited.close()
    return written


@ray.remote(num_cpus=1)
class Writer:
    """One rank of the group."""

    def address(self) -> tuple[str, int]:
        """Where this actor can be met by the others: its host, and a port that is free."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return host, free.getsockname()[1]

    def write(self, rank: int, host: str, port: int, file: str, folder: str) -> int:
        dist.init_process_group("gloo", f"tcp://{host}:{port}", rank=rank, world_size=ACTORS)
        edited = opened(folder)
        dist.barrier()  # all have looked whether the folder is there when the first one makes it
        return write(edited, file, folder, dist.group.WORLD)


def start(file: Path, folder: Path):
    """New actors, at work, and what they will return."""
    writers = [Writer.remote() for _ in range(ACTORS)]
    host, port = ray.get(writers[0].address.remote())
    return writers, [
        writer.write.remote(rank, host, port, str(file), str(folder)) for rank, writer in enumerate(writers)
    ]


def count(folder: Path) -> int:
    """How many edits a folder has."""
    if not is_store(folder):
        return 0
    store = EditStore.open(folder)
    try:
        return len(store.history.edits)
    finally:
        store.close()


def values(folder: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The ids of a folder's edits, and what the memory holds of them."""
    edited = EditedModel.from_pretrained(MODEL, edits=folder)
    return [edit.id for edit in edited.edits], edited.method.state()


def main() -> None:
    work = Path(tempfile.mkdtemp())
    file, folder, alone = work / "facts.jsonl", work / "edits", work / "alone"
    facts = [
        {"id": f"leader-{n}", "prompt": f"Who leads Vantrello Foods {n}?", "target": f"{NAMES[n % 6]} {NAMES[n // 6]}"}
        for n in range(COUNT)
    ]
    file.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False)
    try:
        writers, results = start(file, folder)
        while not count(folder):
            ray.wait(results, timeout=0.5)  # the first batch
        ray.kill(writers[-1])
        killed = time.perf_counter()
        try:
            ray.get(results)
            raise SystemExit("An actor was killed, and nobody noticed.")
        except RayError:
            print(f"killed one of {ACTORS} with {count(folder)} of {COUNT} edits written")
        for writer in writers:
            ray.kill(writer)
        written = ray.get(start(file, folder)[1])
        print(f"new ones wrote {sum(written)} more, {time.perf_counter() - killed:.0f} s after the kill")
    finally:
        ray.shutdown()
    write(opened(str(alone)), str(file), str(alone))
    (ids, state), (expected_ids, expected) = values(folder), values(alone)
    if ids != expected_ids or any(not torch.equal(state[name], expected[name]) for name in expected):
        raise SystemExit("The folder does not hold what one process writes.")
    print(f"{len(ids)} edits, bit for bit those that one process writes")


if __name__ == "__main__":
    main()
