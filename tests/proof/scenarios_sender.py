"""A sender, its callers and its lanes with the whole executor; and lanes alone, where the executor is too much."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.oracle import NOT_SENT, SENT, Job, Report, describe, failed_outcome
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import Faults
from threadmail import Envelope, MailError, RetryPolicy, ThreadedSender

from .scenario import CONFIG, OWNER, QUIET, SENDER, Scenario, no_exit_hook
from .scenarios_lanes import abort, cancel, close, lanes_alone


def dispatched(
    lanes: int,
    messages: int,
    *,
    callers: int = 1,
    faults: Faults | None = None,
    failures: tuple[str, ...] = (),
    beside: Callable[[ThreadedSender, list[Any]], object] | None = None,
    wait_for_submit: bool = True,
    drain: bool = True,
    **settings: Any,
) -> Program:
    """Callers submit to one `ThreadedSender`, wait for their futures, and the last one closes it."""

    def program(run: Run) -> None:
        run.context.enter_context(no_exit_hook())
        office = PostOffice(run, ModelServer(bound=lanes, faults=faults), failures=failures)
        sender = ThreadedSender(CONFIG, workers=lanes, retry=RetryPolicy(base=0.0), **settings)
        futures: list[Any] = []
        submitted = threading.Event()
        left = [callers]
        last = threading.Lock()

        def call(jobs: list[Job]) -> None:
            mine = []
            for job in jobs:
                try:
                    future = sender.submit(Envelope(job.sender, list(job.recipients), job.content))
                except MailError as error:
                    office.ledger.report(job, Report(NOT_SENT, detail=describe(error)))
                    continue
                mine.append((job, future))
                futures.append(future)
            submitted.set()
            for job, future in mine:
                try:
                    receipt = future.result()
                except CancelledError:
                    office.ledger.report(job, Report(NOT_SENT, detail="cancelled"))
                except MailError as error:
                    office.ledger.report(job, Report(failed_outcome(error), detail=describe(error)))
                else:
                    office.ledger.report(job, Report(SENT, frozenset(receipt.refused)))
            with last:
                left[0] -= 1
                done = not left[0]
            if done:
                sender.close(drain=drain, timeout=None)

        for caller in range(callers):
            jobs = office.jobs(caller, messages)
            run.thread(partial(call, jobs), f"caller{caller}")
        if beside is not None:

            def other() -> None:
                if wait_for_submit:
                    submitted.wait()
                beside(sender, futures)

            run.thread(other, "other")

    return program


def cancel_all(_: ThreadedSender, futures: list[Any]) -> None:
    for future in list(futures):
        future.cancel()


def abort_all(sender: ThreadedSender, futures: list[Any]) -> None:
    for future in list(futures):
        sender.abort(future)


def close_it(sender: ThreadedSender, _: list[Any]) -> None:
    sender.close(timeout=None)


def _sender(
    name: str, program: Program, schedules: int | None = None, *, long: bool = False, **options: Any
) -> Scenario:
    return Scenario(name, program, schedules, False, SENDER, OWNER, {**QUIET, **options}, long)


_BUSY_AT_FIRST = Faults(greet_421=frozenset([0]))
#: The server hangs up after the first message, and greets the next connection with 421.
_IN_VAIN = Faults(hang_up_after={0: 1}, greet_421=frozenset([1]))
replaced_in_vain = lanes_alone(1, 2, faults=_IN_VAIN, failures=("cancelled",), others=[cancel(1)])
put_back_late = lanes_alone(1, 2, faults=_IN_VAIN, failures=("Closed",), others=[close()])


SCENARIOS = [
    # The executor differs between versions of Python, and the numbers with it.
    _sender("sender, 1 lane, 1 message", dispatched(1, 1)),
    _sender("sender, 1 lane, 2 messages", dispatched(1, 2)),
    _sender("sender, 1 lane, 1 message, cancelled", lanes_alone(1, 1, others=[cancel(0)], failures=["cancelled"]), 23),
    _sender("sender, 1 lane, 1 message, called off", lanes_alone(1, 1, others=[abort(0)], failures=["Aborted"]), 28),
    _sender("sender, 1 lane, 1 message, closed", lanes_alone(1, 1, others=[close()], failures=["Closed"]), 215),
    _sender("sender, 2 lanes, 2 messages", lanes_alone(2, 2, connected=True), 184),
    _sender("sender, cancel while a connection is replaced in vain", replaced_in_vain, 110, timeouts=1),
    _sender("sender, retry after a refused session", lanes_alone(1, 1, faults=_BUSY_AT_FIRST), 1, timeouts=3),
]

LONG = [
    _sender("sender, 2 lanes, 2 messages, which dial", lanes_alone(2, 2), long=True),
    _sender("sender, closed while a message is put back", put_back_late, timeouts=1, long=True),
    _sender("sender, lane ends idle while work arrives", dispatched(1, 1), timeouts=2, long=True),
    _sender("sender, cancel beside it", dispatched(1, 1, beside=cancel_all, failures=("cancelled",)), long=True),
    _sender(
        "sender, abort beside it", dispatched(1, 1, beside=abort_all, failures=("cancelled", "Aborted")), long=True
    ),
    _sender(
        "sender, closed while work arrives",
        dispatched(1, 1, beside=close_it, wait_for_submit=False, failures=("Closed",)),
        long=True,
    ),
    _sender("sender, full queue, 2 callers", dispatched(1, 1, callers=2, queue_size=1), long=True),
    _sender("sender, 2 lanes, 2 messages, with caller and executor", dispatched(2, 2), long=True),
]
