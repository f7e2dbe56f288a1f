"""Lanes alone: each with its client, on a queue that is full when they start; no caller and no executor beside them.

Beyond what the oracle asks of every run, all accounts must be closed at the end: each job told of once, nothing queued,
in flight or connected, the numbers of `stats()` those of what happened, no token of the throttle lost, and no more
messages in doubt than connections were lost (a window of them for each where there is one).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tests.detsched import Run, Verdict
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.oracle import NOT_SENT, Report, verdict
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import Faults
from threadmail import Envelope, Outcome, Receipt, RetryPolicy, ThreadedSender, Throttle
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.worker import BeforeFinal, Worker
from threadmail._runtime.deadline import Deadline

from .scenario import CONFIG, OWNER, QUIET, SENDER, Scenario
from .stage import Answering

TOKENS = 20
AT_ONCE = RetryPolicy(base=0.0)

#: What another thread does beside the lanes.
Other = Callable[[Dispatcher, list[Job]], object]


class Lanes:
    """One run: the server, the dispatcher with its jobs in the queue, and the lanes."""

    def __init__(
        self,
        run: Run,
        lanes: int,
        messages: int,
        server: ModelServer,
        *,
        failures: Iterable[str] = (),
        throttle: Throttle,
        ends: Mapping[int, float],
        recipients: int,
        connected: bool,
        late: int,
        window: int,
        body: Callable[[Dispatcher, Worker], object],
        retry: RetryPolicy,
        limits: Mapping[str, Any],
        before_final: BeforeFinal | None,
        ahead: int,
    ) -> None:
        self.run = run
        config = replace(CONFIG, window=window, **limits)
        self.office = PostOffice(run, server, failures=failures)
        self.throttle = throttle
        self.heard: list[Receipt] = []
        self.sender = ThreadedSender(
            config,
            workers=lanes,
            queue_size=10,
            retry=retry,
            throttle=throttle,
            rng=random.Random(1),
            on_receipt=self.heard.append,
        )
        self.dispatcher = self.sender._dispatcher
        schedule = self.dispatcher._schedule
        schedule.working = False  # no workers of its own while the queue is filled
        self.given = self.office.jobs(0, messages, recipients)
        self.jobs = []
        for number, job in enumerate(self.given):
            envelope = Envelope(job.sender, list(job.recipients), job.content)
            self.jobs.append(Job(envelope, Deadline.after(ends.get(number)), self.dispatcher))
            if number < messages - late:
                self.dispatcher.put(self.jobs[-1])
        schedule.working = True
        for number in range(lanes):
            worker = Worker(self.dispatcher, config, random.Random(1), before_final)
            schedule.workers[worker] = None
            while ahead:
                first = next(iter(schedule.ready))
                schedule._take(first, worker)
                del schedule.ready[first]
                ahead -= 1
            if connected:
                worker.connected = worker.begun = True
                worker.client.connect()
            run.thread(partial(body, self.dispatcher, worker), f"lane{number}")
        if late:
            run.thread(partial(self._put, self.jobs[-late:]), "caller")
        run.judge(self.judge)

    def _put(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.dispatcher.put(job)

    def judge(self) -> Verdict:
        given_up = self.run.scheduler.ending is not None
        office = self.office
        for mine, job in zip(self.given, self.jobs, strict=True):
            if job.cancelled:
                office.ledger.report(mine, Report(NOT_SENT, detail="cancelled"))
            elif job.receipt is not None:
                office.ledger.report(mine, Report.of_receipt(job.receipt))
        hear = office.ledger.listen()
        for receipt in self.heard:
            hear(receipt)
        usual = verdict(office.server, office.ledger, failures=office.failures, given_up=given_up)
        more = () if given_up else tuple(self.open_accounts())
        return Verdict((*usual.violations, *more), usual.outcome, usual.transcript)

    def open_accounts(self) -> list[str]:
        """What is not as it has to be when all is over."""
        stats, schedule, closed = self.dispatcher.stats(), self.dispatcher._schedule, self.dispatcher.stats().closed
        receipts = [job.receipt for job in self.jobs if job.receipt is not None]
        greeted = sum(c.number not in self.office.server.faults.greet_421 for c in self.office.server.connections)
        doubtful = self.dispatcher.config.window * (closed.get("lost", 0) + closed.get("stale", 0))
        right = {
            "something was left behind": schedule.is_empty and not (stats.lanes or stats.connected or stats.in_flight),
            "somebody is left in line, or idle": not (schedule.line or schedule.idle or schedule.leaving),
            "a deadline was left behind": not len(schedule.ends),
            "a job was not settled": all(job.state is JobState.DONE for job in self.jobs),
            "a future was not settled": all(job.future.done() for job in self.jobs),
            "outcomes were counted wrongly": Counter(stats.outcomes) == Counter(r.outcome for r in receipts),
            "connections were counted wrongly": stats.opened == sum(closed.values()) <= greeted,
            "a connection was left open": all(c.closed for c in self.office.server.connections),
            "more in doubt than connections lost": stats.outcomes.get(Outcome.IN_DOUBT, 0) <= doubtful,
            "tokens were lost or won": self.tokens_right(),
        }
        return [wrong for wrong, holds in right.items() if not holds]

    def tokens_right(self) -> bool:
        """Each attempt takes one. One that was called off may have taken one before it was any."""
        spent = TOKENS - self.throttle._bucket.tokens
        attempts = sum(job.receipt.attempts for job in self.jobs if job.receipt is not None)
        spare = sum(job.called_off for job in self.jobs)
        return self.throttle._burst != TOKENS or attempts <= round(spent) <= attempts + spare


def lanes_alone(
    lanes: int,
    messages: int,
    *extensions: str,
    faults: Faults | None = None,
    failures: Iterable[str] = (),
    others: Iterable[Other] = (),
    throttle: Callable[[], Throttle] = lambda: Throttle(TOKENS, per=1e9, burst=TOKENS),
    ends: Mapping[int, float] | None = None,
    recipients: int = 1,
    connected: bool = False,
    late: int = 0,
    window: int = 1,
    body: Callable[[Dispatcher, Worker], object] = lambda dispatcher, worker: dispatcher._starter.work(worker),
    retry: RetryPolicy = AT_ONCE,
    limits: Mapping[str, Any] | None = None,
    before_final: BeforeFinal | None = None,
    ahead: int = 0,
    answers: Mapping[str, Sequence[str]] | None = None,
) -> Program:
    """Each lane dials, sends, finds nothing more and ends.

    Args:
        connected: they have dialled when they begin.
        late: so many of the messages are not in the queue yet; a thread puts them there.
        window: messages that a lane may have under way, content and all.
        body: what each lane's thread runs.
        others: threads beside them.
        ends: deadlines of messages, in seconds.
        limits: of the config.
        ahead: so many are in the run of the first worker when it begins.
        answers: to MAIL of a sender or RCPT of a recipient, one after the other, in the place of the usual ones.
    """

    def program(run: Run) -> None:
        server = Answering(answers or {}, *extensions, bound=lanes, faults=faults)
        stage = Lanes(
            run, lanes, messages, server, failures=failures, throttle=throttle(), ends=ends or {},
            recipients=recipients, connected=connected, late=late, window=window, body=body, retry=retry,
            limits=limits or {}, before_final=before_final, ahead=ahead,
        )  # fmt: skip
        for other in others:
            run.thread(partial(other, stage.dispatcher, stage.jobs), other.__name__)

    return program


def of_lanes(
    name: str,
    schedules: int | None,
    lanes: int,
    messages: int,
    *extensions: str,
    timeouts: int | None = QUIET["timeouts"],
    long: bool = False,
    limit: int | None = None,
    **settings: Any,
) -> Scenario:
    """Lanes alone as a scenario; `settings` are those of `lanes_alone`. `limit`: runs, where it is not exhausted."""
    bounds = {"timeouts": timeouts} | ({} if limit is None else {"limit": limit})
    program = lanes_alone(lanes, messages, *extensions, **settings)
    return Scenario(f"sender, {name}", program, schedules, False, (*SENDER, Worker), OWNER, bounds, long)


def cancel(number: int) -> Other:
    """Take that message back."""

    def canceller(_: Dispatcher, jobs: list[Job]) -> None:
        future = jobs[number].future
        if future.cancel():
            assert future.cancelled(), "a message that was cancelled is told otherwise"

    return canceller


def abort(number: int) -> Other:
    """Call that message off."""

    def caller_off(dispatcher: Dispatcher, jobs: list[Job]) -> None:
        dispatcher.abort(jobs[number])

    return caller_off


def expire(seconds: float) -> Other:
    """Look for what is overdue, after a while."""

    def looker(dispatcher: Dispatcher, _: list[Job]) -> None:
        time.sleep(seconds)
        dispatcher.settle_overdue()

    return looker


def close(*, drain: bool = False, timeout: float | None = None) -> Other:
    """Close the dispatcher: the queue is worked off, or taken back."""

    def closer(dispatcher: Dispatcher, _: list[Job]) -> None:
        dispatcher.close(drain=drain, end=Deadline.after(timeout))

    return closer
