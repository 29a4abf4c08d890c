"""The command line, `corrigenda`: a module for each group of commands.

Every command imports what it works with when it runs, so that `--help` does not wait for torch.
"""

from . import commands, comparing, fleet, history, routing, serve, upkeep, weights
from .app import app, main

__all__ = ["app", "commands", "comparing", "fleet", "history", "main", "routing", "serve", "upkeep", "weights"]
