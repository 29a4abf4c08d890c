"""What `corrigenda doctor` shows: everything that decides how fast Corrigenda runs here, and why it is not faster."""

from __future__ import annotations

import os
import platform

import torch
from rich.console import Console
from rich.table import Table

from ..kernels import dispatch
from .base import packaged_model
from .errors import CorrigendaError
from .report import versions


def show(console: Console) -> None:
    """Print versions, devices, the packaged model and the kernels' backends."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, found in versions().items():
        facts.add_row(name, found or "not installed")
    facts.add_row("platform", f"{platform.system()} {platform.machine()}")
    facts.add_row("CPU threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    facts.add_row("CUDA", _cuda())
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        facts.add_row(f"cuda:{number}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    facts.add_row("smollm2", _packaged())
    facts.add_row("kernels", f"CORRIGENDA_BACKEND={os.environ.get('CORRIGENDA_BACKEND', 'auto')}")
    console.print(facts)
    console.print(_backends())


def _cuda() -> str:
    if torch.cuda.is_available():
        return f"{torch.version.cuda}, {torch.cuda.device_count()} device(s)"
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    return f"none: torch is built for CUDA {torch.version.cuda}, but finds no device"


def _packaged() -> str:
    try:
        return f"installed: {packaged_model()}"
    except CorrigendaError as error:
        return str(error)


def _backends() -> Table:
    table = Table(title="Kernels, in the order in which they are tried", title_justify="left")
    for heading in ("operation", "backend", "", "why not"):
        table.add_column(heading)
    before = None
    for state in dispatch.report():
        table.add_row(
            state.op if state.op != before else "",
            state.backend,
            "[green]live[/green]" if state.live else "[dim]off[/dim]",
            state.reason,
        )
        before = state.op
    return table
