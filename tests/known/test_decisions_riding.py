"""Whether something may ride behind the end of data, each decision at its boundaries."""

from __future__ import annotations

import logging

import pytest

from threadmail._known.riding import MOST_HANG_UPS, Riding


def test_nothing_is_known_of_a_new_server() -> None:
    riding = Riding()
    assert (riding.ended, riding.hang_ups) == (False, 0)


def test_the_third_in_a_row_that_is_hung_up_on_is_the_last() -> None:
    riding = Riding()
    found = []
    for _ in range(4):
        riding.hung_up("server:25", "it hung up")
        found.append((riding.hang_ups, riding.ended))
    assert found == [(1, False), (2, False), (3, True), (4, True)]
    assert MOST_HANG_UPS == 3


def test_a_good_one_ends_the_row() -> None:
    riding = Riding()
    for _ in range(2):
        riding.hung_up("server:25", "it hung up")
    riding.hang_ups = 0
    for _ in range(2):
        riding.hung_up("server:25", "it hung up")
    assert not riding.ended


def test_that_it_ends_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    riding = Riding()
    with caplog.at_level(logging.WARNING, "threadmail.client"):
        for _ in range(3):
            riding.end("server:25", "it hung up")
    assert riding.ended
    [record] = caplog.records
    assert "server:25 seems to mind" in record.getMessage()
    assert "(it hung up)" in record.getMessage()


def test_a_broken_log_handler_changes_nothing() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError

    log = logging.getLogger("threadmail.client")
    handler = Broken()
    log.addHandler(handler)
    riding = Riding()
    try:
        riding.end("server:25", "it hung up")
    finally:
        log.removeHandler(handler)
    assert riding.ended
