"""How messages go out again before they are sent.

Owns what ends a message that no worker sends to its end: its caller takes it back or calls it off, its time passes, the
server lets nobody in, the sender is closed. Guarantees: who is taken out is told of, whatever comes up meanwhile; many
are taken out a slice at a time, and their receipts are made without the lock; who waits for a place has it at once.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from .._runtime.deadline import now
from ..errors import Aborted, Closed, MailError, Outcome, TimedOut
from ..receipt import Receipt
from .closing import Closing
from .job import Ending, Job
from .schedule import DONE, ON_WIRE, Schedule
from .teller import Teller
from .worker import Worker, too_late


class Withdrawal:
    """Takes jobs out of one sender.

    Args:
        lock: guards the schedule; a worker's is taken inside it, where that has the job.
        window: messages that a connection may have under way, content and all.
    """

    def __init__(self, lock: Any, schedule: Schedule[Worker], teller: Teller, closing: Closing, *, window: int) -> None:
        self._lock = lock
        self._schedule = schedule
        self._teller = teller
        self._closing = closing
        self._window = window

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool:
        """Take a job back that is not on the wire, and that nobody has received anything of; it ends with `error`."""
        out: list[Job] = []
        try:
            with self._lock, self._hands_of(job):
                # Only of one that is taken out here: who took it out before has said whether it was cancelled.
                if self._is_whole(job) and self._schedule.take_out(job, out, partial(_ended_by, error)):
                    job.cancelled = cancelled
                self._schedule.wake_first()
        finally:
            if out:
                try:
                    self._teller.end(out)
                except BaseException:  # from outside, and perhaps before it began
                    self._schedule.unannounced += out  # whoever comes by ends it, should a second one come up
                    self._teller.end(out)
                    raise
        return bool(out)

    @staticmethod
    def _is_whole(job: Job) -> bool:
        """Whether nobody has received anything of it. What was taken out is its taker's, receipt and all."""
        return job.state is not DONE and (job.receipt is None or job.receipt.outcome is Outcome.NOT_SENT)

    def abort(self, job: Job) -> bool:
        """End a job now: out of the queue or a worker's run, or with the connection it is on.

        Returns:
            False if it was settled.
        """
        out: list[Job] = []
        try:
            with self._lock, self._hands_of(job):
                if job.state is ON_WIRE:
                    return self._abort_on_wire(job, out)
                self._schedule.take_out(job, out, _ended_as_called_off)
                self._schedule.wake_first()
        finally:
            if out:
                try:
                    self._teller.end(out)
                except BaseException:  # from outside, and perhaps before it began
                    self._schedule.unannounced += out  # whoever comes by ends it, should a second one come up
                    self._teller.end(out)
                    raise
        return bool(out)

    def _abort_on_wire(self, job: Job, out: list[Job]) -> bool:
        worker = self._schedule.in_flight[job]
        job.called_off = True
        if job not in worker.prefetched:
            # Under its worker's lock, so that it cannot have gone on to another message. It blocks nobody: the socket
            # is shut down, nothing is sent or awaited.
            worker.client.abort()
        elif self._window == 1:
            self._out_of_prefetched(worker, job, out, _ended_as_called_off)
        # Else its connection is also that of those ahead, who would be in doubt; it is dropped when they are settled.
        return True

    def _out_of_prefetched(self, worker: Worker, job: Job, out: list[Job], ending: Ending) -> None:
        """Its commands were written, and nothing of its content: what else is behind them is for the worker to find."""
        out += (job,)
        self._schedule.untold[job] = None
        job.ending = ending
        job.state = DONE
        worker.prefetched.remove(job)
        self._schedule.forget(job)
        self._schedule.return_token()

    def _hands_of(self, job: Job) -> AbstractContextManager[object]:
        """The lock of the worker that has a job."""
        worker = self._schedule.in_flight.get(job)
        return nullcontext() if worker is None else worker.lock

    def settle_overdue(self) -> None:
        """Settle those whose time has passed before anybody began with them."""
        more = True
        while more:
            over: list[Job] = []
            try:
                with self._lock:
                    self._schedule.expired(now(), over, self._overdue)
                    self._schedule.wake_first()
            finally:
                if over:
                    try:
                        self._teller.end(over)
                    except BaseException:  # from outside, and perhaps before it began
                        self._schedule.unannounced += over  # whoever comes by ends it, should a second one come up
                        self._teller.end(over)
                        raise
            more = bool(over)

    def _overdue(self, job: Job) -> Receipt:
        """Its own deadline has passed; or the retry policy's time for all attempts, and then the last one decides."""
        if job.end.passed:
            return job.ended_by(too_late())
        cause = self._schedule.breaker.error or self._schedule.limit.not_let_in or _nobody_came()
        return job.receipt or job.ended_by(copy.copy(cause))

    def fail_queue(self, cause: MailError | None = None) -> None:
        """Settle everything that waits, because of `cause`, or because the server does not let us in."""
        more = True
        while more:
            out: list[Job] = []
            try:
                with self._lock:
                    error = cause or self._schedule.breaker.error
                    if error is not None:
                        self._schedule.drained(out, partial(_ended_by, error))
                        self._schedule.wake_first()
            finally:
                if out:
                    try:
                        self._teller.end(out)
                    except BaseException:  # from outside, and perhaps before it began
                        self._schedule.unannounced += out  # whoever comes by ends it, should a second one come up
                        self._teller.end(out)
                        raise
            more = bool(out)

    def cut(self, closed: Closed) -> None:
        """Take back what nobody will send: the queue, and those begun behind others, of whose content nothing left."""
        ending = partial(_ended_by, closed)
        more = True
        while more:
            out: list[Job] = []
            try:
                with self._lock:
                    for worker in list(self._schedule.workers):
                        with worker.lock:
                            self._schedule.give_back_run(worker)
                            while self._window == 1 and worker.prefetched:
                                self._out_of_prefetched(worker, worker.prefetched[-1], out, ending)
                    self._schedule.drained(out, ending)
                    self._closing.cut_short.update(dict.fromkeys(out))
                    self._schedule.wake_first()
            finally:
                if out:
                    try:
                        self._teller.end(out, here=True)
                    except BaseException:  # from outside, and perhaps before it began
                        self._schedule.unannounced += out  # whoever comes by ends it, should a second one come up
                        self._teller.end(out, here=True)
                        raise
            more = bool(out)


def _ended_by(error: MailError, job: Job) -> Receipt:
    return job.ended_by(copy.copy(error))


def _ended_as_called_off(job: Job) -> Receipt:
    return job.receipt or Receipt.not_sent(job.envelope, _called_off())


def _nobody_came() -> TimedOut:
    """Nobody who gave no deadline is told that it passed."""
    return TimedOut("all workers were busy with others for as long as its retry policy allows (RetryPolicy.total)")


def _called_off() -> Aborted:
    return Aborted("the message was called off")
