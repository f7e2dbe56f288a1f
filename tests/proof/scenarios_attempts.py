"""A message and its attempts, and what may come between: with workers alone, and all accounts closed at the end.

Put off and tried again, partly accepted, refused the second time; taken back, called off, overdue or closed between two
attempts, or as the second one begins. A run that another worker takes over while its owner replaces its connection,
begins with a message, or is told that it was cancelled. Connections that have had their number of messages. A hook
before the end of data that says no.
"""

from __future__ import annotations

import time
from typing import Any

from tests.detsched.smtpmodel import Faults
from threadmail import RetryPolicy, Throttle
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job
from threadmail._protocol.transaction import Transaction

from .scenario import LOST, Scenario
from .scenarios_lanes import Other, abort, cancel, close, expire, of_lanes

FIRST, SECOND = "r0.T0m0@there.test", "r1.T0m0@there.test"
LATER = "450 4.2.0 later"
NO = "550 5.1.1 no"
BUSY = ("RecipientsRefused [450]", "RecipientsRefused [450, 550]", "RecipientsRefused [550]")
ENDED = ("cancelled", "Aborted", "Closed", "TimedOut")
#: The server hangs up after the first message, as with one that was idle: the next one is met by that.
STALE = Faults(hang_up_after={0: 1})


def _attempts(name: str, schedules: int | None, *others: Other, **settings: Any) -> Scenario:
    settings = {"failures": (*BUSY, *ENDED), "recipients": 2, **settings}
    return of_lanes(f"attempts, {name}", schedules, 1, settings.pop("messages", 1), others=others, **settings)


def _stolen(name: str, schedules: int | None, *others: Other, messages: int = 2, **settings: Any) -> Scenario:
    """Two workers with a connection; the first has all messages in its run."""
    settings = {"failures": ENDED, "throttle": Throttle, "connected": True, "ahead": messages, **settings}
    return of_lanes(f"stolen, {name}", schedules, 2, messages, others=others, **settings)


def _says_no(transaction: Transaction, tag: object) -> None:
    if transaction.envelope.sender == "T0m0@here.test":
        raise ValueError("not this one")


def _held(name: str, schedules: int | None, *others: Other, offers: tuple[str, ...] = (), **settings: Any) -> Scenario:
    settings = {"failures": (*ENDED, "MailError", *LOST), "before_final": _says_no, **settings}
    return of_lanes(f"held back, {name}", schedules, 1, 2, *offers, others=others, **settings)


def _slow(_: Transaction, __: object) -> None:
    time.sleep(2.0)


def _cancel_late(dispatcher: Dispatcher, jobs: list[Job]) -> None:
    time.sleep(2.0)
    jobs[1].future.cancel()


_ONE = {"recipients": 1}
_LATE_ONE = {"ends": {0: 1.0}, "recipients": 1}
_TWO = {"messages": 2, "recipients": 1}
_TAKEN = {"connected": True, "ahead": 2, "throttle": Throttle, "before_final": _slow, **_TWO}
#: EHLO, MAIL, two RCPT and DATA, then MAIL, RCPT and DATA of the second attempt.
_PARTLY = {"answers": {SECOND: [LATER]}}
_WAITING = {"answers": {SECOND: [LATER]}, "retry": RetryPolicy(base=8.0)}
_ALL_WAIT = {"answers": {FIRST: [LATER], SECOND: [LATER]}, "retry": RetryPolicy(base=8.0)}
_REFUSED = {"answers": {FIRST: [LATER, NO], SECOND: [LATER]}}

SCENARIOS = [
    _attempts("partly put off", 1, **_PARTLY),
    _attempts("partly put off, cancelled", 39, cancel(0), **_PARTLY),
    _attempts("partly put off, called off", 50, abort(0), **_PARTLY),
    _attempts("partly put off, called off by two", 330, abort(0), abort(0), **_WAITING),
    _attempts("partly put off, called off while it waits", 31, abort(0), **_WAITING),
    _attempts("partly put off, overdue", 76, expire(20.0), ends={0: 10.0}, **_WAITING),
    _attempts("partly put off, closed", 271, close(), **_WAITING),
    _attempts("partly put off, closed and worked off", 330, close(drain=True), **_PARTLY),
    _attempts("partly put off, then lost before its content", 1, faults=Faults(drop={0: 8}), **_PARTLY),
    _attempts("put off, then refused in part", 1, **_REFUSED),
    _attempts("put off, then refused in part, cancelled", 34, cancel(0), **_REFUSED),
    _attempts("put off for ever", 1, answers={FIRST: 9 * [LATER]}, recipients=1),
    _attempts("put off, overdue", 76, expire(20.0), ends={0: 10.0}, **_ALL_WAIT),
    _attempts("overdue in the queue", 117, expire(2.0), ends={1: 1.0}, **_TWO),
    _attempts("too late when its turn comes, and cancelled", 24, _cancel_late, ends={1: 1.0}, **_TAKEN),
    _attempts("two messages for each connection", 1, messages=3, recipients=1, limits={"max_messages": 2}),
    _attempts(
        "one for each connection, cancelled", 42, cancel(1), messages=2, recipients=1, limits={"max_messages": 1}
    ),
    _attempts("connections too old at once", 1, **_TWO, limits={"max_age": 1e-9}),
    _stolen("two messages", 1418),
    _held("alone", 1),
    _held("ahead of another", 1, offers=("PIPELINING",)),
    _held("ahead of another, which is cancelled", 83, cancel(1), offers=("PIPELINING",)),
    _held("ahead of another, which is called off", 73, abort(1), offers=("PIPELINING",)),
    _held("in a window", 1, offers=("PIPELINING", "CHUNKING"), window=2),
]

#: Each in a bound for the suite and its mutants, and in full in `stress/`.
_LARGE: list[tuple[str, tuple[Other, ...], dict[str, Any]]] = [
    ("one is cancelled", (cancel(1),), {}),
    ("one is called off", (abort(1),), {}),
    ("while the connection is replaced", (), {"faults": STALE}),
    ("closed", (close(),), {}),
    ("three messages", (), {"messages": 3}),
]
SMALL = [
    *(_stolen(f"{name}, in part", None, *others, limit=300, **more) for name, others, more in _LARGE),
    _attempts("both cancelled, in part", None, cancel(0), cancel(1), limit=300, **_TWO),
]
LONG = [
    *(_stolen(name, None, *others, long=True, **more) for name, others, more in _LARGE),
    _attempts("overdue in the queue, cancelled", None, expire(2.0), cancel(0), **_LATE_ONE, long=True),
    _attempts("cancelled by two", None, cancel(0), cancel(0), **_ONE, long=True),
]
