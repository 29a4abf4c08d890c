"""Writing with several processes: the bits of one, whatever becomes of the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import same_bits
from every_config import AGAIN, CONFIGS, EDITS
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import CorrigendaError, EditedModel

STREAM = [
    *EDITS,
    AGAIN,
    *(replace(edit, id=f"{edit.id}-{n}", prompt=f"{edit.prompt} {n}") for n in (1, 2) for edit in EDITS),
]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_background_prompts")]


def write(rank: int, ranks: int, port: int, folder: Path, method: str, started=None) -> None:
    """One process of a group: all of them write the stream into a folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=ranks)
    if folder.exists():
        edited = EditedModel.from_pretrained(tiny_model(), edits=folder, tokenizer=tiny_tokenizer())
    else:
        edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), CONFIGS[method])
    dist.barrier()
    tell = None if started is None else lambda progress: started.release()
    written = edited.edit(STREAM, store=folder, resume=True, on_progress=tell, group=dist.group.WORLD)
    assert bool(written) == (rank == 0)
    edited.close()
    dist.destroy_process_group()


def start(ranks: int, folder: Path, method: str = "associative", started=None) -> list[multiprocessing.Process]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    found = [context.Process(target=write, args=(rank, ranks, port, folder, method, started)) for rank in range(ranks)]
    for process in found:
        process.start()
    return found


def state(folder: Path) -> tuple[list, dict[str, torch.Tensor]]:
    edited = EditedModel.from_pretrained(tiny_model(), edits=folder, tokenizer=tiny_tokenizer())
    ids = [edit.id for edit in edited.edits]
    found = {name: tensor.clone() for name, tensor in edited.method.state().items()}
    edited.detach()
    return ids, found


@pytest.fixture
def alone(wrap, tmp_path):
    """What one process writes."""
    edited = wrap(tiny_model(), tiny_tokenizer(), CONFIGS["associative"])
    edited.edit(STREAM)
    edited.save_pretrained(tmp_path / "alone")
    return state(tmp_path / "alone")


def check_same(folder: Path, alone) -> None:
    ids, found = state(folder)
    assert ids == alone[0]
    for name, tensor in alone[1].items():
        assert same_bits(tensor, found[name]), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_write_the_bits_of_one(alone, tmp_path, ranks):
    for process in start(ranks, tmp_path / "edits"):
        process.join(300)
        assert process.exitcode == 0
    check_same(tmp_path / "edits", alone)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_stream_goes_on_after_a_rank_was_killed(alone, tmp_path, killed):
    started = multiprocessing.get_context("fork").Semaphore(0)
    processes = start(2, tmp_path / "edits", started=started)
    started.acquire()
    started.acquire()
    os.kill(processes[killed].pid, signal.SIGKILL)
    processes[killed].join(60)
    for process in processes:  # the other one notices, or is ended as torchrun does
        process.join(5)
        process.kill()
        process.join(60)
    for process in start(2, tmp_path / "edits"):
        process.join(300)
        assert process.exitcode == 0
    check_same(tmp_path / "edits", alone)


class Group:
    """A process group, as far as a refusal looks at it."""

    def rank(self):
        return 0


def test_methods_whose_edits_depend_on_each_other_say_so(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), CONFIGS["memoir"])
    with pytest.raises(CorrigendaError, match='"memoir" depends on those before it: write them with one process'):
        edited.edit(EDITS, group=Group())
    assert edited.edits == []
