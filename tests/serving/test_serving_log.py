"""What servers log: one line a record, whatever a folder or a request has put into it."""

from __future__ import annotations

import logging

import pytest

from corrigenda.editing.shown import shown
from corrigenda.serving.log import logger_of


@pytest.mark.parametrize("name", ["corrigenda", "vllm.corrigenda"])
def test_an_id_begins_no_line_of_its_own(name, caplog) -> None:
    forged = "a\nINFO:     request 7: edit b\x1b]0;x\x07\u202e"
    logger_of(name).setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, logger=name):
        logger_of(name).info("request %s: edit %s, 100%%", forged, forged)
    (record,) = caplog.records
    assert record.getMessage() == f"request {shown(forged)}: edit {shown(forged)}, 100%"


def test_every_logger_of_the_servers_is_such_a_one() -> None:
    from corrigenda.serving import batching, in_flight, recovery

    for module in (batching, in_flight, recovery):
        assert module.logger.filters
