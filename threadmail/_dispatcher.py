"""The lock of a sender, who waits at it, and its threads. What is decided is in `_schedule`.

Owns one sender's schedule and life in one process: callers bring jobs and take them back, workers come for the next
thing to do and bring what became of it, and whoever closes sees all of it to its end. Guarantees: nothing is told,
logged, waited for or made that grows with a message's recipients under the lock; what settles many jobs does so a slice
at a time; every job is told of once, by one path; whoever waits is woken in the same step that ends his waiting.

**Locks.** The dispatcher's comes before a worker's, which is a leaf; two workers' only by one who has the dispatcher's.
It is re-entrant, so that a signal handler or a finaliser which comes up inside a step gets in and not stuck:
`_schedule` says why it finds everything in order there. A waiting thread does not hold it.
"""

from __future__ import annotations

import copy
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ._breaker import CircuitBreaker, Dial
from ._deadline import Deadline, now, out_of_time
from ._job import Job
from ._life import Life
from ._limits import has_enough
from ._schedule import DONE, LATER, NEW, ON_WIRE, READY, TAKEN, Do, Schedule, Waiter
from ._verdict import Verdict, judge
from ._worker import BeforeFinal, Worker, as_it_stands, lost_prefetched, note, too_late
from .client import Client, ClientStats
from .config import ServerConfig
from .errors import Aborted, Closed, MailError, Outcome, Phase, QueueFull
from .receipt import Receipt
from .retry import RetryPolicy
from .throttle import Throttle
from .transaction import Transaction

#: Seconds for all workers together to end, once their connections were dropped. A dial cannot be ended before its own
#: time is over.
FAREWELL = 10.0

#: Nobody sleeps longer than this without a look around, in seconds.
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class SenderStats:
    """What a sender is doing, and has done.

    Attributes:
        queued: messages waiting for a worker.
        retrying: messages waiting for their next attempt.
        in_flight: messages that a worker has, begun or about to be.
        lanes: workers running; connected: those with a connection.
        outcomes: settled messages by outcome.
        retries: attempts after the first.
        opened: connections made.
        closed: connections ended, by reason (see `ClientStats`).
    """

    queued: int = 0
    retrying: int = 0
    in_flight: int = 0
    lanes: int = 0
    connected: int = 0
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    retries: int = 0
    opened: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)


class _Waiter:
    """A caller that waits for a place in the queue."""

    def __init__(self, lock: Any) -> None:
        self._woken = threading.Condition(lock)
        self.wake = self._woken.notify
        self.wait = self._woken.wait


class Dispatcher:
    """The queue of one sender in one process, and those who work it off.

    Args:
        settle, announce: called with each job when it has its final receipt, without a lock: to settle its completion,
            which takes no time, and then to call back whoever watches, which may. May be called twice with one job.
        before_final: see `BeforeFinal`.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        workers: int,
        queue_size: int,
        policy: RetryPolicy,
        throttle: Throttle,
        rng: random.Random,
        settle: Callable[[Job], None],
        announce: Callable[[Job], None],
        before_final: BeforeFinal | None = None,
    ) -> None:
        self.config = config
        self._workers = workers
        self._policy = policy
        self._throttle = throttle
        self._rng = rng
        self._before_final = before_final
        self._settle_completion = settle
        self._announce_job = announce
        self._local = threading.local()  # each worker's thread keeps its worker, and so its client, here
        self._lock = threading.RLock()  # guards everything below, and the schedule
        self._not_empty = threading.Condition(self._lock)  # workers wait for something to do
        self._settled = threading.Condition(self._lock)  # who closes waits for jobs to be told, then for workers to end
        self._schedule: Schedule[Worker] = Schedule(
            workers=workers,
            queue_size=queue_size,
            idle_timeout=config.idle_timeout,
            breaker=CircuitBreaker(policy, rng),
            take_token=throttle.take,
            return_token=self._return_token,
            is_limited=lambda: throttle.is_limited,
        )
        self._life = Life.OPEN
        self._drain = True  # what is queued is worked off before the end; once False it stays so
        self._close_by = Deadline()  # only ever becomes earlier
        self._cut_short: dict[Job, None] = {}  # by closing
        self._executor: ThreadPoolExecutor | None = None
        self._opened = 0  # connections of workers that have ended
        self._closed: Counter[str] = Counter()
        self.others_idle = False  # read without the lock, as a hint: one that is stale costs a message its ride, or one

    # ------------------------------------------------------------ callers: in

    @property
    def in_callback(self) -> bool:
        """Whether the calling thread is a worker, or is telling of a message: it must not wait for another one."""
        local = self._local
        return getattr(local, "worker", None) is not None or getattr(local, "telling", 0) > 0

    def put(self, job: Job) -> None:
        """Queue a job; waits for a place, in the order of asking.

        Raises:
            TimedOut: there was none before the job's deadline.
            QueueFull: there is none, and the caller is a callback, which would wait for itself.
            Closed: no more jobs are taken.
        """
        try:
            with self._lock:
                start = self._put_in_turn(job)
            self._start(start)
        except BaseException:
            self._abandon_start()
            with self._lock:
                self._schedule.wake_first()  # who left the line may have been interrupted before he passed it on
            raise

    def _put_in_turn(self, job: Job) -> Worker | None:
        schedule, waiter = self._schedule, None
        try:
            while not schedule.admits(waiter):
                self._require_open()
                if self.in_callback:
                    raise QueueFull("the queue is full, and a callback of the sender must not wait for a place in it")
                if job.end.passed:
                    raise out_of_time("the deadline passed while waiting for a place in the queue")
                if waiter is None:
                    waiter = _Waiter(self._lock)
                    schedule.line[waiter] = None
                left = job.end.remaining()
                waiter.wait(LONGEST_WAIT if left is None else min(left, LONGEST_WAIT))
            self._require_open()
            return self._submit(job)
        finally:
            if waiter is not None:
                schedule.line.pop(waiter, None)
                schedule.wake_first()  # there may be a place for the next one too

    def put_some(self, jobs: Sequence[tuple[int, Job]], waiter: Waiter) -> None:
        """Queue the first of `jobs`, as many as there are places for, in one step. Waits for nothing.

        May be called again with the same jobs: those that are queued are passed over.

        Args:
            jobs: each with its caller's number.
            waiter: stands in the line of those who wait for a place until its turn comes, or until `leave_line`.
        Raises:
            Closed: no more jobs are taken.
        """
        try:
            with self._lock:
                self._require_open()
                schedule = self._schedule
                if not schedule.admits(waiter):
                    schedule.line[waiter] = None
                    return
                starts = [self._submit(job) for _, job in islice(jobs, schedule.places()) if job.state is NEW]
                if schedule.line:
                    schedule.line.pop(waiter, None)
                    schedule.wake_first()
            for start in starts:
                if start is not None:
                    self._start(start)
        except BaseException:
            self._abandon_start()
            raise

    def leave_line(self, waiter: Waiter) -> None:
        """This waiter does not wait any more."""
        with self._lock:
            self._schedule.line.pop(waiter, None)
            self._schedule.wake_first()

    def _require_open(self) -> None:
        if self._life is not Life.OPEN:
            raise Closed("this sender is closed")

    def _submit(self, job: Job) -> Worker | None:
        """Queue a job. Returns a worker that is to be started for it. Under the lock."""
        schedule = self._schedule
        if schedule.idle:
            # First: one that wakes too early looks for himself, one that is not woken sleeps on. While the server is
            # not to be dialled, only some workers can work, and one of the others might be woken.
            if schedule.breaker.is_closed:
                self._not_empty.notify()
            else:
                self._not_empty.notify_all()
        schedule.submit(job)
        return self._wanted()

    # ------------------------------------------------------------ callers: out

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool:
        """Take a job back that is not on the wire, and that nobody has received anything of; it ends with `error`."""
        out: list[Job] = []
        try:
            with self._lock, self._hands_of(job):
                if job.receipt is None or job.receipt.outcome is Outcome.NOT_SENT:
                    job.cancelled = self._schedule.take_out(job, out) and cancelled
                self._schedule.wake_first()
        finally:
            if out:
                self._end(out, lambda job: job.ended_by(error))
        return bool(out)

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
                self._schedule.take_out(job, out)
                self._schedule.wake_first()
        finally:
            if out:
                self._end(out, lambda job: job.receipt or Receipt.not_sent(job.envelope, _called_off()))
        return bool(out)

    def _abort_on_wire(self, job: Job, out: list[Job]) -> bool:
        worker = self._schedule.in_flight[job]
        job.called_off = True
        if job not in worker.prefetched:
            # Under its worker's lock, so that it cannot have gone on to another message. It blocks nobody: the socket
            # is shut down, nothing is sent or awaited.
            worker.client.abort()
        elif self.config.window == 1:
            self._out_of_prefetched(worker, job, out)
        # Else its connection is also that of those ahead, and is dropped when they are settled.
        return True

    def _out_of_prefetched(self, worker: Worker, job: Job, out: list[Job]) -> None:
        """Its commands were written, and nothing of its content: what else is behind them is for the worker to find."""
        out += (job,)
        self._schedule.untold[job] = None
        job.state = DONE
        worker.prefetched.remove(job)
        self._schedule.finish(job)
        self._return_token()

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
                    self._schedule.expired(now(), over)
                    self._schedule.wake_first()
            finally:
                if over:
                    self._end(over, self._overdue)
            more = bool(over)

    def _overdue(self, job: Job) -> Receipt:
        """Its own deadline has passed; or the retry policy's time for all attempts, and then the last one decides."""
        if job.end.passed:
            return job.ended_by(too_late())
        cause = self._schedule.breaker.error
        return job.receipt or job.ended_by(copy.copy(cause) if cause is not None else too_late())

    def fail_queue(self, cause: MailError | None = None) -> None:
        """Settle everything that waits, because of `cause`, or because the server does not let us in."""
        more = True
        while more:
            out: list[Job] = []
            try:
                with self._lock:
                    error = cause or self._schedule.breaker.error
                    if error is not None:
                        self._schedule.drained(out)
                        self._schedule.wake_first()
            finally:
                if out and error is not None:
                    self._end(out, lambda job, error=error: job.ended_by(copy.copy(error)))  # type: ignore[misc]
            more = bool(out)

    # ------------------------------------------------------------ telling

    def tell(self, job: Job) -> None:
        """Tell of a job: first who waits for it, then who watches."""
        try:
            self._settle_completion(job)
        finally:
            self._announce_job(job)

    def _end(self, jobs: list[Job], receipt: Callable[[Job], Receipt]) -> None:
        """Tell of jobs that were taken out: their receipts are made here, without the lock."""
        ended: set[Job] = set()
        try:
            self._end_each(jobs, receipt, ended)
        except BaseException:  # from outside: what is left undone is done now, for nobody else would come by
            self._end_each(jobs, receipt, ended)
            raise

    def _end_each(self, jobs: list[Job], receipt: Callable[[Job], Receipt], ended: set[Job]) -> None:
        local = self._local
        depth = getattr(local, "telling", 0)
        for job in jobs:
            if job not in ended:
                job.receipt = receipt(job)
                ended.add(job)
            try:
                local.telling = depth + 1  # who has the future may be called back here
                self._settle_completion(job)
            finally:
                local.telling = depth
        # A caller has a deadline, and callbacks may take their time: so a worker runs them, if there is one.
        if not self.in_callback:
            with self._lock:
                if self._life is Life.OPEN:
                    self._not_empty.notify()
                    if self._schedule.hand_over(jobs):
                        self._schedule.wake_first()
                        return
        self._announce(jobs)

    def announce_some(self) -> bool:
        """Call back for messages that callers have settled. Returns whether there were any."""
        with self._lock:
            jobs = self._schedule.some_unannounced()
        self._announce(jobs)
        return bool(jobs)

    def _announce(self, jobs: Iterable[Job]) -> None:
        """Tell of jobs, perhaps again."""
        local = self._local
        depth = getattr(local, "telling", 0)
        try:
            local.telling = depth + 1
            for job in jobs:
                self.tell(job)
        finally:
            local.telling = depth
        with self._lock:
            self._schedule.told(jobs)
            self._wake_closers()
            self._schedule.wake_first()

    def _wake_closers(self) -> None:
        """Have those who close look, if what they wait for has perhaps come about. After whatever may have done so."""
        if not self._schedule.in_flight or not self._schedule.workers:
            self._settled.notify_all()

    def _return_token(self) -> None:
        if self._throttle.is_limited:
            self._throttle.give_back()

    # ------------------------------------------------------------ workers: beginning

    def _wanted(self) -> Worker | None:
        """A worker that is to be started, if there is more to do than those there are can do. Under the lock."""
        schedule = self._schedule
        if (
            not schedule.working
            or len(schedule.workers) >= schedule.limit.workers
            or schedule.idle >= len(schedule.ready) + len(schedule.later)
        ):
            return None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="threadmail-lane")
        worker = Worker(self, self.config, self._rng, self._before_final)
        self._local.starting = worker
        schedule.workers[worker] = None
        return worker

    def _start(self, worker: Worker | None) -> None:
        if worker is None:
            return
        executor = self._executor
        try:
            if executor is None:
                raise RuntimeError("the sender was closed meanwhile")
            # The callback is for a worker that was interrupted where it cannot help itself: before its first line.
            executor.submit(self._work, worker).add_done_callback(lambda _: self.ended(worker))
        except RuntimeError as exc:  # the system gives no thread, or the interpreter is going and starts none any more
            note(logging.WARNING, "no worker could be started: %s", exc)
            self._local.starting = None
            if self._not_begun(worker):
                self.fail_queue(MailError(f"no thread could be started to send it: {exc}", transient=True))
        self._local.starting = None

    def _not_begun(self, worker: Worker) -> bool:
        """A worker could not be started. Returns whether there is nobody left to come to the queue."""
        with self._lock:
            if not worker.begun:
                worker.over = True  # should it begin after all, it ends at once
                self._schedule.workers.pop(worker, None)
            self._wake_closers()
            return not self._schedule.workers

    def _abandon_start(self) -> None:
        """This thread was to start a worker, and perhaps was interrupted before it had."""
        worker: Worker | None = getattr(self._local, "starting", None)
        if worker is None:
            return
        self._local.starting = None
        if self._not_begun(worker):
            with self._lock:
                another = self._wanted() if len(self._schedule) else None
            self._start(another)

    def _work(self, worker: Worker) -> None:
        self._local.worker = worker
        try:
            worker.work()
        finally:
            self._local.worker = None

    # ------------------------------------------------------------ workers: what to do

    def next(self, worker: Worker) -> Do:
        """Count what a worker has done, and wait for something to do."""
        connected = worker.client.is_connected
        try:
            with self._lock:
                worker.begun = True
                if worker.over:
                    return Do.END
                self._account(worker, connected)
                if worker.prefetched:
                    return Do.SEND
                do = self._next(worker)
                # Callbacks may take their time, and what is queued does not wait for them.
                is_busy = do is Do.SEND or do is Do.ANNOUNCE or do is Do.EXPIRE
                another = self._wanted() if is_busy and self._schedule.ready else None
            self._start(another)
        except BaseException:
            self._abandon_start()
            raise
        return do

    def _next(self, worker: Worker) -> Do:
        schedule = self._schedule
        worker.idle_since = now()
        while True:
            action = schedule.next_action(worker, now())
            if action.do is Do.DIAL:
                worker.needed_until = schedule.needed_until(now())
            elif action.do is Do.SEND:
                schedule.wake_first()
            elif action.do is Do.END:
                worker.over = True
                schedule.leaving[worker] = None  # in the same step, so that no two end for one reason
            if action.do is not Do.WAIT:
                return action.do
            try:
                schedule.idle += 1
                self.others_idle = True
                self._not_empty.wait(max(0.0, min(LONGEST_WAIT, action.seconds)))
            finally:
                schedule.idle -= 1
                self.others_idle = schedule.idle > 0

    def _account(self, worker: Worker, connected: bool) -> None:
        """Note how it stands with a worker, and count what it has sent since it last came by. Under the lock."""
        schedule = self._schedule
        worker.connected = connected
        if worker.finished:
            with worker.lock:
                finished = worker.finished
                schedule.outcomes[Outcome.SENT] += len(finished)
                worker.finished = []
            try:
                schedule.sent(finished)
            except BaseException:  # from outside: they are counted, and nobody else would forget them
                schedule.sent(finished)
                raise
            schedule.wake_first()
            self._wake_closers()
        if worker.run and (not connected or self._throttle.is_paused):
            with worker.lock:
                schedule.give_back_run(worker)

    @property
    def is_paused(self) -> bool:
        return self._throttle.is_paused

    def refill(self, worker: Worker) -> bool:
        """More for a worker that is in the middle of a message, counted in the same step."""
        with self._lock:
            self._account(worker, worker.connected)
            schedule, time = self._schedule, now()
            if schedule.idle or not schedule.is_wanted:
                return False
            if not schedule.ready and schedule.later.first_at() > time:
                return False
            if self._throttle.take() != 0.0:
                return False
            with worker.lock:
                schedule.take_run(worker, time)
                taken = bool(worker.run)
            schedule.wake_first()
            if not taken:
                self._return_token()
            return taken

    def resumed(self, worker: Worker, resumable: Transaction | None) -> Job | None:
        """Of the jobs that were begun behind the last one: the first that must be told how it stands."""
        found: Job | None = None
        with self._lock, worker.lock:
            lost: list[Job] = []
            while worker.prefetched and found is None:
                job = worker.prefetched[0]
                begun = job.transaction
                if job.called_off:
                    worker.client.abort()
                    found = job
                elif begun is not None and (begun is resumable or begun.phase is Phase.FINAL):
                    found = job
                else:
                    # The connection was lost under the one ahead: nothing of this was sent, and it was no attempt.
                    lost += (job,)
                worker.current = found
                del worker.prefetched[0]
            if found is not None and (found.transaction is None or found.transaction is not resumable):
                lost_prefetched(found)
            if lost:
                self._schedule.give_back_run(worker)  # else it would stand ahead of those who came before
            for job in reversed(lost):
                job.alone = True
                self._schedule.give_back(job)
            self._wake_closers()
        return found

    # ------------------------------------------------------------ workers: what became of it

    def judged(self, worker: Worker, job: Job, receipt: Receipt | None) -> bool:
        """Bring what came of an attempt that was not simply sent; None: it was not to be made.

        Returns:
            Whether the worker may go on with its run.
        """
        if receipt is None:
            self._not_made(worker, job)
            return worker.client.is_connected
        verdict = judge(job, receipt, self._policy, self._rng, now())
        with self._lock:
            with worker.lock:
                final = self._settle(worker, job, verdict)
                worker.current = None
            self._learn(worker, verdict, job.pauses_seen)
            self._wake_closers()
            self._schedule.wake_first()
        if final:
            self._announce([job])
        elif verdict.again is not None:
            job.completion.put_off()
        return not verdict.no_session

    def _not_made(self, worker: Worker, job: Job) -> None:
        """It was cancelled or stolen, or the breaker does not let its connection be replaced now."""
        with self._lock, worker.lock:
            if worker.current is job:
                self._schedule.give_back(job)
                worker.current = None
            self._wake_closers()

    def _settle(self, worker: Worker, job: Job, verdict: Verdict) -> bool:
        """Have a job where it belongs after an attempt. Returns whether it is to be told. Under both locks."""
        schedule = self._schedule
        begun = worker.current is job
        if not begun and not (worker.run and worker.run[0] is job and job.state is TAKEN):
            return False  # it was taken from us before its MAIL: what was found out is about the server only
        until = job.taken_first + self._policy.total
        if verdict.no_session and not job.called_off:
            schedule.give_back(job)
            if begun:
                worker.current = None
            if self._policy.attempts > 1:
                schedule.expires(job, until)  # `total` runs from the first time it was taken, whatever came of that
            return False
        if not verdict.made:
            self._return_token()
        job.receipt = verdict.receipt
        if verdict.again is None or job.called_off:
            schedule.finish(job)
            return True
        job.spared += verdict.signs.spares
        job.envelope = verdict.again
        self._not_empty.notify()
        schedule.again(job, verdict.at, min(job.end.at, until))
        return False

    def _learn(self, worker: Worker, verdict: Verdict, pauses_seen: int) -> None:
        schedule = self._schedule
        if verdict.no_session:
            return  # the dial has told
        if verdict.sent:
            schedule.limit.count_good(1)
        elif pause := schedule.limit.learn(verdict.signs, len(schedule.workers), pauses_seen):
            self._throttle.pause(pause)
        if verdict.answered:
            schedule.breaker.answered()
        elif verdict.lost is not None and not self._others_connected(worker):
            schedule.breaker.lost(verdict.lost, now())

    # ------------------------------------------------------------ workers: connecting

    def may_dial(self, worker: Worker) -> bool:
        """Whether a worker may replace its connection in the middle of an attempt."""
        with self._lock:
            worker.connected = False
            worker.dialling = self._schedule.breaker.ask(now()) is Dial.NOW
            return worker.dialling

    def dialled(self, worker: Worker, error: MailError | None) -> None:
        """A worker has connected, or not."""
        give_up = news = False
        with self._lock:
            schedule, breaker = self._schedule, self._schedule.breaker
            self._not_empty.notify_all()
            worker.dialling = False
            if error is None:
                worker.connected = True  # not at its next step: whoever's dial fails meanwhile must know of it
                breaker.connected()
            elif error.deadline_passed or isinstance(error, Aborted):
                breaker.gave_up()
            elif error.transient and self._others_connected(worker):
                breaker.gave_up()  # a server that has enough connections is not dead
                schedule.limit.fewer(len(schedule.workers))
            else:
                news = breaker.error is None
                breaker.failed(error, now())
                give_up = breaker.is_final() or breaker.given_up(alive=has_enough(error))
        if error is not None:
            # What the messages meet, their receipts tell; of the server, once that it does not let us in any more.
            note(logging.WARNING if news else logging.INFO, "no connection: %s", error)
        if give_up:
            self.fail_queue(error)

    def _others_connected(self, worker: Worker) -> bool:
        return any(each.connected for each in self._schedule.workers if each is not worker)

    # ------------------------------------------------------------ workers: ending

    def ended(self, worker: Worker) -> None:
        """A worker has ended, in whatever way; another one may be needed. May be called twice."""
        if worker.buried:
            return
        stats = worker.client.stats()  # outside the lock: a client's numbers are behind its own
        try:
            with self._lock:
                told = self._left_by(worker, stats)
                nobody_else = bool(self._schedule.unannounced) and not self._schedule.workers
                another = self._wanted() if len(self._schedule) else None
                self._not_empty.notify_all()
                self._wake_closers()
            if told:
                self._announce(told)
            while nobody_else:
                nobody_else = self.announce_some()
            self._start(another)
        except BaseException:
            self._abandon_start()
            raise
        worker.buried = True

    def _left_by(self, worker: Worker, stats: ClientStats) -> list[Job]:
        """Forget a worker, and put back or finish what it has left lying. Returns what is to be told, perhaps again.

        Under the lock.
        """
        schedule = self._schedule
        worker.over = True
        with worker.lock:
            told = list(worker.finished)
            schedule.give_back_run(worker)
        self._account(worker, False)
        left = [job for job, owner in schedule.in_flight.items() if owner is worker]
        with worker.lock:
            for job in left:
                if self._is_left(worker, job):
                    job.receipt = as_it_stands(job)
                    schedule.finish(job)
                if job.state is DONE:
                    told.append(job)
            worker.current = None
            worker.prefetched.clear()
        for job in left:
            if schedule.in_flight.get(job) is worker:
                del schedule.in_flight[job]
        worker.dialling = False
        if schedule.breaker.probing and not any(each.dialling for each in schedule.workers):
            schedule.breaker.gave_up()  # it was interrupted before it could say so
        if worker in schedule.workers:
            del schedule.workers[worker]
            self._opened += stats.opened
            self._closed.update(stats.closed)
        schedule.leaving.pop(worker, None)
        return told

    def _is_left(self, worker: Worker, job: Job) -> bool:
        """Whether a job of a worker that was interrupted is to end as it stands; it is put back if nothing was sent."""
        schedule = self._schedule
        if job.state in (READY, LATER, DONE):
            if job.state is READY:
                schedule.ready.setdefault(job, None)
            return False
        begun = job.transaction
        if not job.called_off and (
            begun is None or (job in worker.prefetched and begun.phase not in (Phase.FINAL, Phase.DONE))
        ):
            job.alone = begun is not None
            schedule.give_back(job)
            return False
        return True

    # ------------------------------------------------------------ the end

    def close(self, *, drain: bool, end: Deadline) -> list[Job]:
        """Take no more jobs, work the queue off or not, and end all workers.

        May be called by several threads at once, and by a signal handler inside itself: each of them sees the end
        through, by the earliest deadline that any of them gave, and gets the whole list.

        Returns:
            The jobs that were cut short: taken out of the queue, or dropped on the wire. All are settled.
        """
        schedule = self._schedule
        with self._lock:
            is_over = self._life is Life.CLOSED
            if not is_over:
                self._life = Life.CLOSING
                self._drain = self._drain and drain
                self._close_by = self._close_by.within(end)
                for waiter in list(schedule.line):
                    waiter.wake()
                self._settled.notify_all()
                self._wait(lambda: not (self._drain and schedule.workers) or not (len(schedule) or schedule.in_flight))
        if is_over:
            self._join()
            return []
        closed = Closed("the sender was closed before it was sent")
        self._cut(closed)
        with self._lock:
            self._wait(lambda: not (schedule.in_flight or schedule.untold))
            self._drop_connections()
            schedule.working = False
            self._not_empty.notify_all()
            farewell = Deadline.after(FAREWELL)
            while schedule.workers and not farewell.passed:
                self._settled.wait(farewell.remaining())
            # One without a receipt is in another thread's hands, or in those of the frame under a signal handler.
            untold = [job for job in schedule.untold if job.receipt is not None]
        if untold:
            self._announce(untold)  # what somebody was interrupted about
        self._cut(closed)  # what was put back for another attempt meanwhile
        with self._lock:
            self._life = Life.CLOSED
            self._settled.notify_all()
            cut_short = list(self._cut_short)
        self._join()
        return cut_short

    def _join(self) -> None:
        """See the threads off; each of those who close does, so that for all of them it is over."""
        with self._lock:
            executor, ended = self._executor, not self._schedule.workers
        if executor is None or getattr(self._local, "joining", False):
            return  # a signal handler, in the middle of this: the executor's locks are not for one thread twice
        try:
            self._local.joining = True
            executor.shutdown(wait=ended)
        finally:
            self._local.joining = False

    def _wait(self, done: Callable[[], object]) -> None:
        """Wait for it, or until the time for closing is over; somebody may shorten that meanwhile."""
        while not done() and not self._close_by.passed:
            left = self._close_by.remaining()
            self._settled.wait(LONGEST_WAIT if left is None else min(left, LONGEST_WAIT))

    def _cut(self, closed: Closed) -> None:
        """Take back what nobody will send: the queue, and those begun behind others, of whose content nothing left."""
        more = True
        while more:
            out: list[Job] = []
            try:
                with self._lock:
                    for worker in list(self._schedule.workers):
                        with worker.lock:
                            self._schedule.give_back_run(worker)
                            while self.config.window == 1 and worker.prefetched:
                                self._out_of_prefetched(worker, worker.prefetched[-1], out)
                    self._schedule.drained(out)
                    self._cut_short.update(dict.fromkeys(out))
                    self._schedule.wake_first()
            finally:
                if out:
                    self._end(out, lambda job: job.ended_by(copy.copy(closed)))
            more = bool(out)

    def _drop_connections(self) -> None:
        """Under what is still on the wire, and under who is dialling. Under the lock."""
        for worker in self._schedule.workers:
            with worker.lock:
                self._schedule.give_back_run(worker)
                hit = [
                    job for job, owner in self._schedule.in_flight.items() if owner is worker and job.state is ON_WIRE
                ]
                for job in hit:
                    job.called_off = True
                    self._cut_short[job] = None
                if hit or worker.dialling:
                    worker.client.abort()

    # ------------------------------------------------------------ looking at it

    def stats(self) -> SenderStats:
        """As of one moment; but the connections of running workers are counted after it."""
        with self._lock:
            schedule = self._schedule
            workers = list(schedule.workers)
            outcomes = Counter(schedule.outcomes)
            under_way = len(schedule.in_flight)
            for worker in workers:
                with worker.lock:
                    told = [job for job in worker.finished if job.completion.done()]
                outcomes[Outcome.SENT] += len(told)
                under_way -= len(told)
            outcomes.update(
                [job.receipt.outcome for job in list(schedule.untold) if job.receipt and job.completion.done()]
            )
            seen = SenderStats(
                queued=len(schedule.ready),
                retrying=len(schedule.later),
                in_flight=under_way,
                lanes=len(workers),
                connected=sum(worker.connected for worker in workers),
                outcomes={outcome: number for outcome, number in outcomes.items() if number},
                retries=schedule.retries,
            )
            opened, closed = self._opened, Counter(self._closed)
        for worker in workers:  # outside the lock: a client's numbers are behind its own
            stats = worker.client.stats()
            opened += stats.opened
            closed.update(stats.closed)
        return SenderStats(**{**seen.__dict__, "opened": opened, "closed": dict(closed)})

    def clients(self) -> list[Client]:
        """The clients of all workers. Without the lock: for a forked child, where a dead thread may hold it."""
        return [worker.client for worker in list(self._schedule.workers)]


def _called_off() -> Aborted:
    return Aborted("the message was called off")
