"""What an edited layer knows of the sequences in a forward pass: buffers that a provider fills before the pass."""

from __future__ import annotations

import torch
from torch import Tensor


class RoutingContext:
    """Per-token and per-slot buffers; a *slot* is a sequence, a *route* is the edit applied to it, or -1.

    A provider (for transformers: `generation.py`) writes them before each forward; edited layers only read them, so
    one layer serves eager, compiled and captured passes. The buffers keep their addresses while the capacity suffices.

    Per token, in the order in which the layer sees the tokens:
        slot   int32   the sequence it belongs to
        gate   bool    the memory may act on this token
        first  bool    the last prompt token, from which the first answer token is predicted
        weight float32 its weight in the pooled fingerprint of the prompt (0: padding or generated)
    Per slot:
        route  int32   the edit that answers this sequence, -1 for none
    """

    def __init__(self, device: torch.device, tokens: int = 4096, slots: int = 64) -> None:
        self.device = device
        self.tokens = 0
        self.slots = 0
        self.active = False
        # True in a pass that holds whole prompts whose features decide the route (mask routers).
        self.deciding = False
        self._allocate(tokens, slots)

    def _allocate(self, tokens: int, slots: int) -> None:
        self.slot = torch.zeros(tokens, dtype=torch.int32, device=self.device)
        self.gate = torch.zeros(tokens, dtype=torch.bool, device=self.device)
        self.first = torch.zeros(tokens, dtype=torch.bool, device=self.device)
        self.weight = torch.zeros(tokens, dtype=torch.float32, device=self.device)
        self.route = torch.full((slots,), -1, dtype=torch.int32, device=self.device)

    def start(self, route: Tensor) -> None:
        """Begin sequences, one slot each, with the routes already known (-1 where a feature router is to decide)."""
        if len(route) > len(self.route):
            self._allocate(len(self.slot), max(len(route), 2 * len(self.route)))
        self.slots = len(route)
        self.route[: self.slots].copy_(route)

    def fill(self, gate: Tensor, first: Tensor, weight: Tensor, *, deciding: bool) -> None:
        """Describe the next pass: `[slots, length]` each, row i belonging to slot i."""
        rows, length = gate.shape
        count = rows * length
        if count > len(self.slot):
            route = self.route.clone()
            self._allocate(max(count, 2 * len(self.slot)), len(route))
            self.route.copy_(route)
        self.slot[:count].copy_(torch.arange(rows, device=self.device).repeat_interleave(length))
        self.gate[:count].copy_(gate.reshape(-1))
        self.first[:count].copy_(first.reshape(-1))
        self.weight[:count].copy_(weight.reshape(-1))
        self.tokens = count
        self.deciding = deciding
        self.active = True

    def token_routes(self, count: int) -> Tensor:
        """int32 `[count]`: the edit to read at each token of the pass, -1 for none."""
        route = self.route[self.slot[:count].long()]
        return torch.where(self.gate[:count], route, -1)

    def stop(self) -> None:
        """End: until the next `fill`, edited layers are the base model's."""
        self.active = False
        self.deciding = False
