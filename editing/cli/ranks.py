"""Several processes of one command, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """Within: the group of the processes that `torchrun` has started, each with a GPU of its own; None for one alone.

    All of them have come this far when it begins.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield None
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    try:
        dist.barrier()
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
