"""Whoever closes tells of what was left for others to tell of.

They may be dialling, may never begin, or may be the frame under the signal handler that closes, and waits for them.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import Envelope, Outcome, Receipt, SendFuture, ThreadedSender, Throttle
from threadmail._dispatch.closing import LONGEST_WAIT
from threadmail._dispatch.job import Job
from threadmail._dispatch.starter import Starter
from threadmail.testing import Pause, ScriptedServer, Serve, Signal

PATIENCE = 20.0


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


def test_what_was_taken_back_while_its_worker_dials_does_not_keep_close_waiting() -> None:
    """It was handed to that worker, to be called back for: nobody else would have until the dial is over."""
    reached, go = threading.Event(), threading.Event()
    told: list[Receipt] = []
    with ScriptedServer([Signal(reached), Pause(go, PATIENCE)], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, on_receipt=told.append)
        future = sender.submit(one("a"))
        assert reached.wait(PATIENCE)
        assert future.cancel()
        begun = time.monotonic()
        assert sender.close(drain=False, timeout=LONGEST_WAIT) == []
        assert time.monotonic() - begun < LONGEST_WAIT / 2
        go.set()
    assert [receipt.outcome for receipt in told] == [Outcome.NOT_SENT]


def test_a_message_that_is_taken_back_before_its_worker_begins_is_told_as_soon_as_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker may never begin: the system gives no thread. But not in the middle of its start."""
    told: list[Receipt] = []
    heard_first: list[int] = []
    futures: list[SendFuture] = []

    def no_thread(*_: object) -> Any:
        futures[0].cancel()
        heard_first.append(len(told))
        raise RuntimeError("can't start new thread")

    with ScriptedServer([Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, on_receipt=told.append)
        put = sender._dispatcher.put

        def put_and_note(job: Job) -> None:
            futures.append(job.future)
            put(job)

        monkeypatch.setattr(sender._dispatcher, "put", put_and_note)
        monkeypatch.setattr(Starter, "_able", no_thread)
        assert sender.submit(one("a")).cancelled()
        assert (heard_first, len(told)) == ([0], 1)
        assert sender.close(timeout=0.0) == []
    assert len(told) == 1


def test_closing_that_is_interrupted_at_its_very_end_says_what_was_cut_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    throttle, join = Throttle(), Starter.join
    throttle.pause(3600.0)
    struck: list[bool] = []

    def interrupted(starter: Starter) -> None:
        join(starter)
        if not struck:
            struck.append(True)
            raise KeyboardInterrupt

    with ScriptedServer([Serve()], last="repeat") as server:
        sender = ThreadedSender(server.url, workers=1, throttle=throttle)
        futures: list[Future[Receipt]] = [sender.submit(one(f"m{number}")) for number in range(3)]
        monkeypatch.setattr(Starter, "join", interrupted)
        with caplog.at_level(logging.ERROR, "threadmail.sender"), pytest.raises(KeyboardInterrupt):
            sender.close(drain=False)
    assert "the closing was interrupted, and 3 messages were not sent" in caplog.text
    assert all(future.done() for future in futures)
