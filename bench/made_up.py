"""Edits of the usual size that nobody solved: what a store or a router costs does not depend on what rows hold."""

from __future__ import annotations

import contextlib

import torch

from corrigenda.editing.memories.row_banks import RowBanks
from corrigenda.editing.methods.record import Record, Solved, Written


@contextlib.contextmanager
def random_rows(edited, rows=6):
    """Within: an associative model's edits get random rows at once instead of being solved."""
    method = edited.method
    method.prepare()
    generator = torch.Generator().manual_seed(0)

    def solve(edits):
        solved = []
        for known in method.fingerprints(edits):
            keys = torch.randn(rows, method.form.key_dimensions or method.width, generator=generator)
            values = torch.randn(rows, method.out_width, generator=generator)
            kept = method.form.kept(keys, values, method.banks.dtype)
            solved.append(Solved(Written(0.0, 0), Record(kept.tensors, {}, known)))
        return solved

    method.solve = solve
    try:
        yield
    finally:
        del method.solve


def filled_banks(edits, width, outputs, device, rows=8):
    """Associative banks of bfloat16 that hold so many edits, at once: one by one 100,000 would take minutes."""
    banks = RowBanks(width, outputs, beta=10.0, device=device, dtype=torch.bfloat16)
    for bank in banks.lay_out(edits, rows):
        bank.normal_(std=width**-0.5)
    return banks
