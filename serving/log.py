"""What a server logs: one line a record, whatever a folder or a request has put into it."""

from __future__ import annotations

import logging

from ..editing.shown import shown


class _Shown(logging.Filter):
    """Escapes what a terminal obeys, and line feeds: an id could begin a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), ()
        return True


def logger_of(name: str) -> logging.Logger:
    """The logger of a name, whose records are each one line."""
    logger = logging.getLogger(name)
    if not any(isinstance(known, _Shown) for known in logger.filters):
        logger.addFilter(_Shown())
    return logger
