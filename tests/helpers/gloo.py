"""The same function in several processes of one group, as torchrun starts them."""

import multiprocessing
import pickle
import socket
import traceback
from contextlib import closing

import torch
import torch.distributed as dist


def in_processes(count, function, *args):
    """What `function(rank, *args)` gives in each of them, rank by rank; what it raises is given as its exception."""
    with closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=_run, args=(rank, count, port, answers, function, args), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    found = {}
    while len(found) < count and (answers.empty() is False or any(process.is_alive() for process in processes)):
        if answers.empty():
            processes[len(found)].join(0.05)
            continue
        rank, value = answers.get()
        found[rank] = pickle.loads(value)
    for process in processes:
        process.join(60)
        process.kill()
    assert len(found) == count, f"only {sorted(found)} of {count} processes came to an end"
    return [found[rank] for rank in range(count)]


def _run(rank, count, port, answers, function, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=count)
    try:
        value = function(rank, *args)
    except Exception as error:
        value = RuntimeError("".join(traceback.format_exception(error)))
    answers.put((rank, pickle.dumps(value)))  # tensors by their values: a queue would send them by open files
    dist.barrier()
    dist.destroy_process_group()
