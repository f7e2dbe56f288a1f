"""Messages whose commands leave with the content of the one ahead, and what may happen to either meanwhile.

With lanes: the lane's next message is prefetched; it, or the one ahead, is taken back or called off, the sender is
closed, the connection lost at each of the places where that makes a difference. With one `Client` and the batches of
several threads, which take turns on it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any
from unittest import mock

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.oracle import IN_DOUBT, NOT_SENT, Job, Report, describe
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import EVERY, Faults
from threadmail import Client, Envelope, MailError, Throttle, TimedOut
from threadmail import client as client_module
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.worker import Worker
from threadmail._session.delivery import Pipeline

from .scenario import CLIENT, CONFIG, LOST, OWNER, Scenario, by_envelope, orders
from .scenarios_lanes import Other, abort, cancel, close, of_lanes
from .stage import also


def riding(
    name: str, schedules: int | None, lanes: int, messages: int, *others: Other, long: bool = False, **settings: Any
) -> Scenario:
    """Lanes alone, on a server with PIPELINING."""
    return of_lanes(f"riding, {name}", schedules, lanes, messages, "PIPELINING", others=others, long=long, **settings)


class _Interrupt(BaseException):
    """Comes from outside."""


def interrupted_asking(dispatcher: Dispatcher, worker: Worker) -> None:
    """A worker that is interrupted while it is given a message to have prefetched."""
    _interrupted(dispatcher, worker, "wake_first", "_follow")


def interrupted_beginning(dispatcher: Dispatcher, worker: Worker) -> None:
    """A worker that is interrupted when it has a message prefetched, of which nothing has been written."""
    _interrupted(dispatcher, worker, "begun", "send")


def _interrupted(dispatcher: Dispatcher, worker: Worker, called: str, by: str) -> None:
    def look(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or frame.f_code.co_name != called:
            return
        above = frame.f_back
        while above and above.f_code.co_name != by and above.f_code.co_filename != __file__:
            above = above.f_back
        if above and above.f_code.co_name == by:
            sys.setprofile(None)
            raise _Interrupt

    sys.setprofile(look)
    try:
        dispatcher._starter.work(worker)
    finally:
        sys.setprofile(None)


# ---------------------------------------------------------------- batches of one client


def batches(
    threads: int,
    messages: int,
    *,
    turn: int = 50,
    singles: int = 0,
    window: int = 1,
    other: Callable[[Client], object] | None = None,
    faults: Faults | None = None,
    failures: Iterable[str] = (),
) -> Program:
    """Threads call `send_all` on one `Client`, and take turns of so many messages; others send a single one each.

    Args:
        window: messages that may be under way, content and all.
        other: what a thread does beside them.
    """

    def program(run: Run) -> None:
        run.context.enter_context(mock.patch.object(client_module, "TURN", turn))
        steady = faults is None and other is None
        offered = ("PIPELINING", "CHUNKING") if window > 1 else ("PIPELINING",)
        server = ModelServer(*offered, faults=faults, bound=1 if steady else None, lockset=steady, ordered=True)
        office = PostOffice(run, server, failures=failures)
        client = Client(replace(CONFIG, window=window), watch_idle=False)

        def send_all(jobs: list[Job]) -> None:
            letters = [Envelope(job.sender, list(job.recipients), job.content) for job in jobs]
            try:
                reports = [Report.of_receipt(receipt) for receipt in client.send_all(letters)]
            except MailError as error:
                reports = [Report(NOT_SENT, detail=describe(error)) for _ in jobs]
            for job, report in zip(jobs, reports, strict=True):
                office.ledger.report(job, report)

        for thread in range(threads):
            run.thread(partial(send_all, office.jobs(thread, messages)), f"T{thread}")
        for number in range(singles):
            (single,) = office.jobs(threads + number, 1)
            run.thread(partial(office.ledger.send, single, by_envelope(client.send)), f"single{number}")
        if other is not None:
            run.thread(partial(other, client), "other")

        def open_accounts() -> list[str]:
            stats = client.stats()
            doubts = sum(report.outcome == IN_DOUBT for report in office.ledger.reports.values())
            told = sum(report.outcome == "sent" for report in office.ledger.reports.values())
            lost = stats.closed.get("lost", 0) + stats.closed.get("stale", 0)
            right = {
                "more in doubt than connections lost": doubts <= window * lost,
                "messages were counted wrongly": stats.sent == told,
                "connections were counted wrongly": stats.opened - sum(stats.closed.values()) == client.is_connected,
            }
            return [wrong for wrong, holds in right.items() if not holds]

        also(run, office, open_accounts)

    return program


def close_anyway(client: Client) -> None:
    """Close; every timed wait may time out at any moment, so that close() may say that it gave up."""
    with contextlib.suppress(TimedOut):
        client.close()


def of_batches(
    name: str, program: Program, schedules: int | None, *, formula: bool = False, long: bool = False
) -> Scenario:
    return Scenario(f"Client, {name}", program, schedules, formula, (*CLIENT, Pipeline), OWNER, long=long)


ENDED = ("Closed", "Aborted")
DROPPED = Faults(drop_final={0: 1})
BETWEEN = Faults(hang_up_after={0: 1})
CLOSING = Faults(closing={0: 6})
REFUSED = Faults(refuse=frozenset(["r0.T0m0@there.test"]))
SPAM = Faults(refuse_content={"T0m0@here.test": "554 5.7.1 spam"})
ALL_REFUSED = "RecipientsRefused [550]"


def one_token() -> Throttle:
    return Throttle(1, per=5.0)


SCENARIOS = [
    riding("1 lane, 3 messages", 1, 1, 3),
    riding("1 lane, 3 messages, 2 of them late", 30, 1, 3, late=2),
    riding("2 lanes, 2 messages", 500, 2, 2, connected=True),
    riding("the one prefetched cancelled", 51, 1, 2, cancel(1), failures=["cancelled"]),
    riding("the one prefetched called off", 55, 1, 3, abort(1), failures=["Aborted"]),
    riding("the one ahead called off", 50, 1, 3, abort(0), failures=["Aborted"]),
    riding("closed, and the queue worked off", 7, 1, 2, close(drain=True)),
    riding("closed", 535, 1, 2, close(), failures=["Closed"]),
    riding("dropped at the final reply", 1, 1, 3, faults=DROPPED, failures=LOST),
    riding(
        "each connection dropped at its first final reply", 1, 1, 3, faults=Faults(drop_final={EVERY: 1}), failures=LOST
    ),
    riding(
        "dropped at the final reply, the one prefetched cancelled",
        75,
        1,
        2,
        cancel(1),
        faults=DROPPED,
        failures=(*LOST, "cancelled"),
    ),
    riding(
        "dropped at the final reply, the one prefetched called off",
        70,
        1,
        2,
        abort(1),
        faults=DROPPED,
        failures=(*LOST, "Aborted"),
    ),
    riding(
        "dropped at the final reply, and closed when the queue is worked off",
        40,
        1,
        2,
        close(drain=True),
        faults=DROPPED,
        failures=LOST,
    ),
    riding("hung up on after the final reply", 1, 1, 3, faults=BETWEEN),
    riding(
        "hung up on after the final reply, the one prefetched called off",
        47,
        1,
        2,
        abort(1),
        faults=BETWEEN,
        failures=["Aborted"],
    ),
    riding("hung up on in the middle of the replies to the one prefetched", 1, 1, 3, faults=Faults(drop={0: 6})),
    riding("421 to the one prefetched", 1, 1, 3, faults=CLOSING),
    riding("421 to the one prefetched, called off", 47, 1, 2, abort(1), faults=CLOSING, failures=["Aborted"]),
    riding("421 to the content", 1, 1, 3, faults=Faults(refuse_content={"T0m0@here.test": "421 4.3.2 closing"})),
    riding("one recipient refused", 1, 1, 3, recipients=2, faults=REFUSED),
    riding("all recipients refused", 1, 1, 3, faults=REFUSED, failures=[ALL_REFUSED]),
    riding(
        "all recipients refused, the next one called off",
        55,
        1,
        2,
        abort(1),
        faults=REFUSED,
        failures=[ALL_REFUSED, "Aborted"],
    ),
    riding("content refused", 1, 1, 3, faults=SPAM, failures=["DataRefused 554"]),
    riding(
        "content refused, the one prefetched called off",
        60,
        1,
        2,
        abort(1),
        faults=SPAM,
        failures=["DataRefused 554", "Aborted"],
    ),
    riding("content put off", 1, 1, 3, faults=Faults(refuse_content={"T0m0@here.test": "451 4.3.0 later"})),
    riding("interrupted as one is prefetched", 1, 1, 3, body=interrupted_asking, failures=["MailError"]),
    riding(
        "interrupted as one is prefetched, which is cancelled",
        62,
        1,
        2,
        cancel(1),
        body=interrupted_asking,
        failures=["MailError", "cancelled"],
    ),
    riding(
        "interrupted as one is prefetched, which is called off",
        55,
        1,
        2,
        abort(1),
        body=interrupted_asking,
        failures=["MailError", "Aborted"],
    ),
    riding(
        "interrupted as one begins, which is called off",
        60,
        1,
        2,
        abort(1),
        body=interrupted_beginning,
        failures=["MailError", "Aborted"],
    ),
    riding("no token for the next one", 1, 1, 2, throttle=one_token),
    riding("no token for the next one, 2 lanes", 16, 2, 2, connected=True, throttle=one_token),
    riding("a deadline too short to be prefetched", 1, 1, 2, ends={1: 100.0}),
    # Batches hold the one lock over a turn, so turns are what is counted.
    *(of_batches(f"batches, {t}x{m}", batches(t, m), orders(t, 1), formula=True) for t, m in [(2, 2), (2, 3), (3, 2)]),
    of_batches("batches, 2x4 in turns of 2", batches(2, 4, turn=2), 33),
    of_batches("batches, 2x2 beside a message", batches(2, 2, singles=1), orders(3, 1), formula=True),
    of_batches("batches, dropped at the final reply, 2x2", batches(2, 2, faults=DROPPED, failures=LOST), 2),
    of_batches("batches, hung up on after the final reply, 2x2", batches(2, 2, faults=BETWEEN), 2),
    of_batches("batches, 421 to the one prefetched, 2x2", batches(2, 2, faults=CLOSING), 2),
    of_batches("batches, content refused, 2x2", batches(2, 2, faults=SPAM, failures=["DataRefused 554"]), 2),
    of_batches("batches, all recipients refused, 2x2", batches(2, 2, faults=REFUSED, failures=[ALL_REFUSED]), 2),
    of_batches("batches, 1x2 beside close()", batches(1, 2, other=close_anyway, failures=ENDED), 168),
    of_batches("batches, 1x2 beside abort()", batches(1, 2, other=Client.abort, failures=ENDED), 137),
]

LONG = [
    riding("both called off", None, 1, 2, abort(0), abort(1), failures=["Aborted"], long=True),
    riding("1 message, closed in a hurry", None, 1, 1, close(timeout=1.0), failures=ENDED, timeouts=1, long=True),
    riding("3 messages, closed", None, 1, 3, close(), failures=["Closed"], long=True),
    riding("2 messages, closed in a hurry", None, 1, 2, close(timeout=1.0), failures=ENDED, timeouts=1, long=True),
    riding(
        "dropped at the final reply, and closed",
        None,
        1,
        2,
        close(),
        faults=DROPPED,
        failures=(*LOST, "Closed"),
        long=True,
    ),
    riding(
        "hung up on after the final reply, and closed",
        None,
        1,
        2,
        close(),
        faults=BETWEEN,
        failures=["Closed"],
        long=True,
    ),
    riding("dropped at the final reply, 2 lanes", None, 2, 2, connected=True, faults=DROPPED, failures=LOST, long=True),
    of_batches("batches, 2x2 beside close()", batches(2, 2, other=close_anyway, failures=ENDED), 1658, long=True),
    riding("2 lanes, 2 messages, which dial", None, 2, 2, long=True),
    riding("2 lanes, 3 messages", None, 2, 3, connected=True, long=True),
    riding(
        "2 lanes, 2 messages, one is cancelled",
        None,
        2,
        2,
        cancel(1),
        connected=True,
        failures=["cancelled"],
        long=True,
    ),
]
