"""The lock of a sender, who waits at it, and its threads. What is decided is in `_dispatch.schedule`.

Owns one sender's schedule and life in one process: callers bring jobs and take them back, workers come for the next
thing to do and bring what became of it, and whoever closes sees all of it to its end. Guarantees: nothing is told,
logged, waited for or made that grows with a message's recipients under the lock; what settles many jobs does so a slice
at a time; every job is told of once, by one path; whoever waits is woken in the same step that ends his waiting.

**Locks.** The dispatcher's comes before a worker's, which is a leaf; nobody has two workers'. A worker's is there
against its own thread, which takes that one alone where it begins with a message or has sent it: so others take it
where they touch what that worker has, and the worker itself, which has the dispatcher's in every step here, does not.
Both are re-entrant, so that a signal handler or a finaliser which comes up inside a step gets in and not stuck:
`_dispatch.schedule` says why it finds everything in order there. A waiting thread does not hold them.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from .._connection.breaker import CircuitBreaker, Dial
from .._protocol.transaction import Transaction
from .._runtime.deadline import Deadline, now
from .._runtime.life import Life
from .._runtime.locks import is_owned, new_rlock
from ..client import Client, ClientStats
from ..config import ServerConfig
from ..errors import Aborted, Closed, MailError, Outcome
from ..receipt import Receipt
from ..retry import RetryPolicy
from ..throttle import Throttle
from . import outliving
from .admission import Admission
from .closing import LONGEST_WAIT, Closing
from .conclusions import learn, put_where_it_belongs, told_of_dial
from .entry import Entry
from .job import Job
from .recovery import left_by, lost_behind
from .schedule import ON_WIRE, SLICE, Do, Schedule, Waiter
from .sender_stats import SenderStats, seen, with_connections
from .starter import Starter
from .teller import Teller
from .verdict import judge
from .withdrawal import Withdrawal
from .worker import BeforeFinal, Worker, note


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
        self._policy = policy
        self._throttle = throttle
        self._rng = rng
        self._lock = new_rlock()  # guards everything below, and the schedule
        self._not_empty = threading.Condition(self._lock)  # workers wait for something to do
        self._schedule: Schedule[Worker] = Schedule(
            workers=workers,
            queue_size=queue_size,
            idle_timeout=config.idle_timeout,
            breaker=CircuitBreaker(policy, rng),
            take_token=throttle.take,
            return_token=self._return_token,
            is_limited=lambda: throttle.is_limited,
        )
        self._closing = Closing(self._lock, self._schedule, self.is_awaited_below)
        self._settled = self._closing.settled
        self._teller = Teller(
            self._lock,
            self._schedule,
            settle,
            announce,
            wake_worker=self._not_empty.notify,
            wake_closers=self._wake_closers,
            in_worker=lambda: self._starter.in_worker,
            in_between=lambda: self._starter.in_between,
        )
        self._starter = Starter(
            self._lock,
            self._schedule,
            workers,
            make=lambda: Worker(self, config, rng, before_final),
            ended=self.ended,
            over=self._over,
            nobody=self._no_threads,
            not_begun=self._wake_closers,
            is_over=lambda: self._closing.life is Life.CLOSED,
        )
        self._admission = Admission(
            self._lock,
            self._schedule,
            self._not_empty,
            self._starter,
            is_open=lambda: self._closing.life is Life.OPEN,
            in_callback=lambda: self.in_callback,
            is_awaited_below=self.is_awaited_below,
        )
        self.entry = Entry(self._lock, self._starter, self._teller)
        self._withdrawal = Withdrawal(self._lock, self._schedule, self._teller, self._closing, window=config.window)
        # What the parts do is asked of the whole: callers and workers know no others.
        self.fail_queue = self._withdrawal.fail_queue
        self.tell, self.announce_some = self._teller.tell, self._teller.announce_some
        self.call_back = self._teller.call_back
        self._opened = 0  # connections of workers that have ended
        self._closed: Counter[str] = Counter()
        self.dials = True  # set under the lock; read without it where a dial has begun
        self.others_idle = False  # read without the lock, as a hint: one that is stale costs a message its ride, or one

    # ------------------------------------------------------------ callers

    def put(self, job: Job) -> None:
        with self.entry:
            self._admission.put(job)

    def put_some(self, jobs: Sequence[tuple[int, Job]], waiter: Waiter) -> None:
        with self.entry:
            self._admission.put_some(jobs, waiter)

    def leave_line(self, waiter: Waiter) -> None:
        with self.entry:
            self._admission.leave_line(waiter)

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool:
        with self.entry:
            return self._withdrawal.withdraw(job, error, cancelled=cancelled)

    def abort(self, job: Job) -> bool:
        with self.entry:
            return self._withdrawal.abort(job)

    def settle_overdue(self) -> None:
        with self.entry:
            self._withdrawal.settle_overdue()

    # ------------------------------------------------------------ telling

    @property
    def in_callback(self) -> bool:
        """Whether the calling thread is a worker, or is telling of a message: it must not wait for another one."""
        return self._starter.in_worker or self._teller.is_telling

    @property
    def must_not_wait(self) -> bool:
        """Whether who waits here for a message would wait for himself.

        In a callback; and in a signal handler, or a finaliser, that came up while its thread had the lock, or was just
        starting a worker.
        """
        return self.in_callback or self._starter.in_the_middle or is_owned(self._lock)

    def is_awaited_below(self) -> bool:
        """Whether the frame under a signal handler has the lock of a future whose message a worker has.

        `concurrent.futures.wait` and `as_completed` have those of all their futures for a moment, and no worker can
        settle one meanwhile. Asked by who has waited for a while.
        """
        with self._lock:
            jobs = self._schedule.with_workers()
        self._teller.catch_up()  # who waits for a result has not come by `entry`
        return any(job.completion.is_held_here for job in jobs)

    def _wake_closers(self) -> None:
        """Have those who close look, if what they wait for has perhaps come about. After whatever may have done so."""
        if not self._schedule.in_flight or not self._schedule.workers:
            self._settled.notify_all()

    def _return_token(self) -> None:
        if self._throttle.is_limited:
            self._throttle.give_back()

    def _no_threads(self, reason: Exception) -> None:
        error = MailError(f"no thread could be started to send it: {reason}", transient=not outliving.has_begun())
        self.fail_queue(error)

    # ------------------------------------------------------------ workers: what to do

    def next(self, worker: Worker) -> Do:
        """Count what a worker has done, and wait for something to do."""
        connected = worker.client.is_connected
        self._teller.catch_up()
        try:
            with self._lock:
                if not worker.begun:
                    self._starter.has_begun(worker)
                if worker.over:
                    return Do.END
                self._account(worker, connected)
                if worker.prefetched:
                    return Do.SEND
                do = self._next(worker)
                # Callbacks may take their time, and what is queued does not wait for them.
                is_busy = do is Do.SEND or do is Do.ANNOUNCE or do is Do.EXPIRE
                another = is_busy and self._schedule.ready and self._starter.wanted()
            if another:
                self._starter.start()
        except BaseException:
            self._starter.abandon()
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
            if schedule.unannounced or self._teller.has_behind:
                return Do.ANNOUNCE  # a finaliser has come up in this step
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
        if worker.dialling:  # it is not, but was interrupted before it could say so
            worker.dialling = False
            schedule.breaker.gave_up()
        if worker.finished:
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
            schedule.take_run(worker, time)
            taken = bool(worker.run)
            schedule.wake_first()
            if not taken:
                self._return_token()
            return taken

    def resumed(self, worker: Worker, resumable: Transaction | None) -> Job | None:
        """Of the jobs that were begun behind the last one: the first that goes on, or must be told how it stands."""
        with self._lock:
            found = lost_behind(self._schedule, worker, resumable)
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
            self._not_empty.notify()  # of a retry, somebody who sleeps for longer has to know
            final = put_where_it_belongs(self._schedule, worker, job, verdict, self._policy)
            worker.current = None
            if pause := learn(self._schedule, worker, verdict, job.pauses_seen, now()):
                self._throttle.pause(pause)
            self._wake_closers()
            self._schedule.wake_first()
        if final:
            self._tell_final(worker, job)
        elif verdict.again is not None:
            job.completion.put_off()
        return not verdict.no_session

    def _not_made(self, worker: Worker, job: Job) -> None:
        """It was cancelled or stolen, or the breaker does not let its connection be replaced now."""
        called_off = False
        aborted: Receipt | None = None
        if worker.current is job:  # nobody else changes that
            aborted = job.ended_by(Aborted("the message was called off"))
        with self._lock:
            if aborted is not None:
                called_off = job.called_off
                if called_off:
                    self._schedule.finish(job, aborted, worker)
                else:
                    self._schedule.give_back(job)
                worker.current = None
            self._wake_closers()
        if called_off:
            self._tell_final(worker, job)

    def _tell_final(self, worker: Worker, job: Job) -> None:
        """Of one that is finished; with that it is no more what the worker leaves."""
        self._teller.announce([job])
        worker.left = []

    # ------------------------------------------------------------ workers: connecting

    def may_dial(self, worker: Worker) -> bool:
        """Whether a worker may replace its connection in the middle of an attempt."""
        with self._lock:
            worker.connected = False
            worker.dialling = self._schedule.breaker.ask(now()) is Dial.NOW
            return worker.dialling

    def dialled(self, worker: Worker, error: MailError | None) -> None:
        """A worker has connected, or not."""
        with self._lock:
            self._not_empty.notify_all()
            news, give_up = told_of_dial(self._schedule, worker, error, now())
        if error is not None:
            # What the messages meet, their receipts tell; of the server, once that it does not let us in any more.
            note(logging.WARNING if news else logging.INFO, "no connection: %s", error)
        if give_up:
            self.fail_queue(error)

    # ------------------------------------------------------------ workers: ending

    def ended(self, worker: Worker) -> None:
        """A worker has ended, in whatever way; another one may be needed. May be called twice."""
        if worker.buried:
            return
        stats = worker.client.stats()  # outside the lock: a client's numbers are behind its own
        try:
            with self._lock:
                told = self._left_by(worker, stats)
                # As many slices as nobody else comes by for.
                slices = 0 if self._schedule.workers else -(-len(self._schedule.unannounced) // SLICE)
                tells = bool(told) or slices > 0 or worker in self._schedule.ending
                if tells:  # it is no worker any more, and its thread is still to be waited for
                    self._schedule.ending[worker] = None
                another = len(self._schedule) and self._starter.wanted()
                self._not_empty.notify_all()
                self._wake_closers()
            if told:
                self._teller.announce(told)
            # What a callback raises comes up when all were told.
            self._teller.marked(lambda _: self.announce_some(), range(slices))
            if another:
                self._starter.start()
        except BaseException:
            self._starter.abandon()
            raise
        if tells:
            self._over(worker)
        worker.buried = True

    def _over(self, worker: Worker) -> None:
        """Nothing more is done about a worker."""
        with self._lock:
            self._schedule.ending.pop(worker, None)
            self._wake_closers()

    def _left_by(self, worker: Worker, stats: ClientStats) -> list[Job]:
        """Forget a worker. Returns what is to be told of what it has left lying, perhaps again. Under the lock."""
        schedule = self._schedule
        worker.over = True
        worker.left += worker.finished
        schedule.give_back_run(worker)
        self._account(worker, False)
        told = left_by(schedule, worker)
        if worker in schedule.workers:
            del schedule.workers[worker]
            self._opened += stats.opened
            self._closed.update(stats.closed)
        schedule.leaving.pop(worker, None)
        return told

    # ------------------------------------------------------------ the end

    def close(self, *, drain: bool, end: Deadline) -> list[Job]:
        """Take no more jobs, work the queue off or not, and end all workers; see `Closing`.

        Returns:
            The jobs that were cut short: taken out of the queue, or dropped on the wire. All are settled.
        """
        cut_short: list[Job] = []
        with self.entry:
            if self._see_off(drain=drain, end=end):
                self._withdrawal.cut(_closed())  # what was put back for another attempt meanwhile
                cut_short = self._closing.finish()
            self._starter.join()
        return cut_short

    def part(self, *, drain: bool, end: Deadline) -> None:
        """The first half of `close`, which sees it through: all of it but that threads are waited for."""
        with self.entry:
            self._see_off(drain=drain, end=end, stay=False)

    def _see_off(self, *, drain: bool, end: Deadline, stay: bool = True) -> bool:
        """Take no more jobs, and wait until all are told, or until the time is over. False: it is over already."""
        must_not_wait = self.must_not_wait
        self._starter.before_closing()
        if not self._closing.begin(drain=drain, end=end, must_not_wait=must_not_wait):
            return False
        self._withdrawal.cut(_closed())
        over = False
        while not over:
            untold, over = self._closing.see_off(self._drop_connections, stay=stay)
            if untold and (stay or not over):
                self._teller.announce(untold)
        return True

    @property
    def cut_short(self) -> list[Job]:
        """What closing has cut short so far. A copy is made in one step, which needs no lock."""
        return list(self._closing.cut_short)

    def _drop_connections(self) -> None:
        """Under what is still on the wire, and under who is dialling. Under the lock."""
        self.dials = False  # before anything is aborted: who begins to dial looks after that
        for worker in list(self._schedule.workers):
            with worker.lock:
                self._schedule.give_back_run(worker)
                hit = [
                    job
                    for job, owner in list(self._schedule.in_flight.items())
                    if owner is worker and job.state is ON_WIRE
                ]
                for job in hit:
                    job.called_off = True
                    self._closing.cut_short[job] = None
                if hit or worker.dialling:
                    worker.client.abort()
        self._schedule.working = False
        self._not_empty.notify_all()

    # ------------------------------------------------------------ looking at it

    def stats(self) -> SenderStats:
        """What the sender is doing now, and has done so far."""
        with self.entry, self._lock:
            stats = seen(self._schedule)
            workers, opened, closed = list(self._schedule.workers), self._opened, Counter(self._closed)
        return with_connections(stats, opened, closed, workers)

    def inherited(self) -> list[Client]:
        """In a forked child, the clients of all workers; and nobody there waits for the lock of a future.

        Without the lock, which a thread may have that did not come along.
        """
        schedule = self._schedule
        for job in [*schedule.ready, *schedule.later, *schedule.in_flight, *schedule.untold]:
            job.completion.orphan()
        return [worker.client for worker in list(schedule.workers)]


def _closed() -> Closed:
    return Closed("the sender was closed before it was sent")
