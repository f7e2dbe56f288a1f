"""After a thousand failures of every kind the process holds what it held before: no file, no thread, no object more."""

from __future__ import annotations

import gc
import logging
import re
import tracemalloc
from collections.abc import Iterator

import pytest

from stress import failures
from tests.reliability.failing import KINDS, WAYS, Census, fail
from threadmail import Client
from threadmail.testing import CaptureServer

EACH = 16  # failures of each kind in each way; 24 kinds in 3 ways make 1,152
GROWTH = 64 * 1024  # bytes that caches of the interpreter may take on the way


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """What pytest has caught of the log holds on to receipts and errors."""
    logger = logging.getLogger("threadmail")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is closed only when the garbage collector comes by is not closed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# CPython drops a TLS socket whose peer resets it between two of its own steps, and what it held with it: once in some
# hundred runs. Its warning would be an error that pytest keeps, frames and all; what is left open is counted here.
DROPPED_BY_CPYTHON = pytest.mark.filterwarnings(
    "ignore:Exception ignored.*<ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed <ssl.SSLSocket:ResourceWarning",
)


@DROPPED_BY_CPYTHON
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", WAYS)
def test_failures_leave_nothing_behind(way: str) -> None:
    fail(way, 2 if way == "Client" else 4)  # what is made once, and kept
    before = Census.take()
    found = fail(way, EACH)
    after = Census.take()
    print(f"{way}: {sum(found.values())} failures of {len(found)} kinds; {sum(before.files.values())} files before")
    assert dict(found) == dict.fromkeys(KINDS, EACH)
    assert after.files == before.files
    assert after.threads == before.threads
    assert after.objects == before.objects


@DROPPED_BY_CPYTHON
def test_memory_is_where_it_began() -> None:
    """By the interpreter's own count of what is allocated; what grows does so each time."""
    tracemalloc.start()
    try:
        fail("Client", 2)
        gc.collect()
        growths = []
        for _ in range(2):
            before = tracemalloc.get_traced_memory()[0]
            fail("Client", 4)
            gc.collect()
            growths.append(tracemalloc.get_traced_memory()[0] - before)
        growth = min(growths)
    finally:
        tracemalloc.stop()
    print(f"{len(KINDS) * 4} failures, {growth} bytes more")
    assert growth < GROWTH


def test_a_census_sees_what_is_left() -> None:
    """A client, its connection and its thread."""
    before = Census.take()
    with CaptureServer() as server, Client(server.url) as client:
        client.noop()
        after = Census.take()
    left = after.objects - before.objects
    assert left["threadmail.client.Client"] == 1
    assert left["threadmail._transport.wire.Wire"] == 1
    assert (after.files - before.files)["socket"] >= 2
    assert any("idle" in name for name in set(after.threads) - set(before.threads))
    assert (Census.take().files, Census.take().threads) == (before.files, before.threads)


def test_the_long_run_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.main(["--each", "4", "--way", "ClientPool"]) == 0
    assert re.fullmatch(r"ClientPool: 96 failures of 24 kinds in .*: even\n", capsys.readouterr().out)
