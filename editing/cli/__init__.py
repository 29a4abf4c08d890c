"""The command line, `corrigenda`: a module for each group of commands.

Every command imports what it works with when it runs, so that `--help` does not wait for torch.
"""

import sys

from .interrupts import check, ended, heeded

try:
    with heeded():
        from . import commands, comparing, fleet, history, routing, serve, upkeep, weights
        from .app import app, main

        check()
except KeyboardInterrupt:  # Ctrl-C ends a command in one line from its first moment on
    sys.stderr.write("Stopped.\n")
    raise SystemExit(ended()) from None

__all__ = ["app", "commands", "comparing", "fleet", "history", "main", "routing", "serve", "upkeep", "weights"]
