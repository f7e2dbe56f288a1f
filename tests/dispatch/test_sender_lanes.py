"""Lanes that a server does not let in while it serves another one, which may have to wait itself."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from tests.support.mail import envelope
from threadmail import Envelope, Outcome, ThreadedSender
from threadmail.testing import Drop, Pause, Reply, ScriptedServer, Serve, Signal, Step

PATIENCE = 20.0


def one(name: str) -> Envelope:
    """An envelope with a single recipient."""
    return envelope(name).for_recipients(f"to-{name}@example.net")


@pytest.mark.parametrize(
    "refusal",
    [
        [Drop()],
        [Reply("421 4.3.2 too many connections"), Drop()],
        [Reply("554 5.7.0 too many connections"), Drop()],
    ],
)
def test_one_dial_that_fails_does_not_leave_all_behind_a_lane_that_stands_still(refusal: list[Step]) -> None:
    """The one that is connected waits for a reply: what else is queued gets another lane after a pause."""
    reached, answer = threading.Event(), threading.Event()
    stalled = [Serve(until="."), Signal(reached), Pause(answer, PATIENCE), Reply("250 ok"), Serve()]
    with ScriptedServer(stalled, refusal, [Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=16) as sender:
            slow = sender.submit(one("slow"))
            assert reached.wait(PATIENCE)
            others = [sender.submit(one(f"m{i}")) for i in range(20)]
            left = wait(others, PATIENCE / 2).not_done
            was_slow = not slow.done()
            answer.set()
            assert not left
            assert was_slow
            assert all(future.result(PATIENCE).outcome is Outcome.SENT for future in (slow, *others))


def test_a_554_for_more_than_one_connection_is_not_the_end_of_the_queue() -> None:
    """The lane that was let in sends all of it."""
    with ScriptedServer([Serve()], [Reply("554 5.7.0 too many connections"), Drop()], last="repeat") as server:
        with ThreadedSender(server.url, workers=4) as sender:
            sender.send(one("first"))
            report = sender.send_all([one(f"m{i}") for i in range(60)], deadline=PATIENCE)
    assert [receipt.outcome for receipt in report] == [Outcome.SENT] * 60
