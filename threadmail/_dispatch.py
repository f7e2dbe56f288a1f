"""Who does a ThreadedSender's work.

Owns the queue and the lanes: executor tasks that each drain the queue on one thread with that thread's client. Decides
when a lane starts and ends, who may dial, what a failed attempt means for its message, for the connection limit and for
the pace. Guarantees: every job is settled exactly once; a message is tried again only if the policy says that this
cannot send it twice; nothing is waited for or called under the lock but the lock's own conditions. What happens outside
the lock is in `_lane`; batches, callbacks and exit are in `sender`.
"""

from __future__ import annotations

import copy
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ._deadline import Deadline, now
from ._jobs import Job, JobQueue, JobState
from ._lane import Do, Lane, Withdrawn, as_it_stands, note, report
from ._pace import Pace, has_enough
from .client import Client
from .config import ServerConfig
from .errors import CONNECTING, Aborted, Closed, MailError, Outcome, QueueFull, TimedOut
from .receipt import Receipt
from .retry import Dial, DialGate, RetryPolicy
from .throttle import Throttle
from .transaction import Transaction

_Start = tuple[ThreadPoolExecutor, Lane]

#: No lane sleeps longer than this without a look around, in seconds.
LONGEST_WAIT = 60.0

#: Seconds for all lanes together to say goodbye once they were told to end.
FAREWELL = 10.0


class Dispatcher:
    """Queue and lanes of one sender, in one process.

    Args:
        settled: called with each job when it has its final receipt, on a lane's thread, without a lock.
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
        settled: Callable[[Job], None],
    ) -> None:
        self.config = config
        self.workers = workers
        self.queue_size = queue_size
        self._policy = policy
        self._throttle = throttle
        self._rng = rng
        self.settled = settled
        self._local = threading.local()  # each lane's thread keeps its lane, and so its client, here
        # Guards everything below: the queue, the states of jobs, how many lanes there are and what they do.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # lanes wait for something to do
        self._room = threading.Condition(self._lock)  # callers wait for a place in the queue
        # close() waits for jobs to be settled, then for lanes to end. One thread at a time does: see ThreadedSender.
        self._calm = threading.Condition(self._lock)
        self._accepting = True
        self._working = True
        self._queue = JobQueue()
        # Dictionaries in the place of sets, for their order: the same work gives the same run.
        self._in_flight: dict[Job, Lane | None] = {}  # and which lane has to see to it; None: the one who calls
        self._lanes: dict[Lane, None] = {}  # running, so that each client gets its farewell
        self._dialling: dict[Lane, None] = {}
        self._lane_count = 0  # running, or about to
        self._leaving: dict[Lane, None] = {}  # still among them, and told to end
        self._idle_lanes = 0
        self._connected = 0  # lanes that have a connection
        self._pace = Pace(workers, throttle)
        self._gate = DialGate(policy, rng)
        self._cut_short: dict[Job, None] = {}  # by close()
        self._executor: ThreadPoolExecutor | None = None
        self._outcomes: Counter[Outcome] = Counter()
        self._retries = 0
        self._opened = 0  # connections of lanes that have ended
        self._closed: Counter[str] = Counter()

    # ------------------------------------------------------------ jobs in and out

    def put(self, job: Job) -> None:
        """Queue a job; waits for a place.

        Raises:
            TimedOut: there was none before the job's deadline.
            QueueFull: there is none, and the caller is a lane, which would wait for itself.
            Closed: no more jobs are taken.
        """
        try:
            with self._lock:
                self._wait_for_room(job)
                self._queue.put(job)
                start = self._wake()
            self._start_lane(start)
        except BaseException:
            self._abandon_start()
            raise

    def _wait_for_room(self, job: Job) -> None:
        while True:
            if not self._accepting:
                raise Closed("this sender is closed")
            if len(self._queue) < self.queue_size:
                return
            if self.in_lane:
                raise QueueFull("the queue is full, and a callback of the sender must not wait for a place in it")
            if job.end.passed:
                raise TimedOut("the deadline passed while waiting for a place in the queue")
            self._room.wait(job.end.remaining())

    def withdraw(self, job: Job) -> bool:
        """Take a job back that is not on the wire, and that nobody has received anything of."""
        with self._lock:
            if job.receipt is not None and job.receipt.outcome is not Outcome.NOT_SENT:
                return False
            if job.state is JobState.QUEUED:
                self._queue.withdraw(job)
                self._room.notify()
            elif job.state is JobState.TAKEN:
                job.state = JobState.WITHDRAWN  # the lane finds out before it writes MAIL
            else:
                return False
            self._calm.notify()
            return True

    def abort(self, job: Job) -> bool:
        """Drop the connection under a job that is on the wire, or end its retries. Returns False if it was settled."""
        with self._lock:
            if job.state is JobState.ON_WIRE:
                job.called_off = True
                assert job.client is not None
                # Under the lock, so that the lane cannot have gone on to another message. It blocks nobody: the socket
                # is shut down, nothing is sent or awaited.
                job.client.abort()
                return True
            if job.state is not JobState.QUEUED:
                return False
            self._queue.withdraw(job)
            self._finish(job, job.receipt or Receipt.not_sent(job.envelope, Aborted("the message was called off")))
        self._announce([job])
        return True

    @property
    def in_lane(self) -> bool:
        """Whether the calling thread is one of the lanes."""
        return getattr(self._local, "lane", None) is not None

    # ------------------------------------------------------------ lanes

    def _wake(self) -> _Start | None:
        """Have somebody look at the queue. Under the lock. Returns the lane that is to start, and on what."""
        if self._idle_lanes:
            # While the server is not to be dialled, only some lanes can work, and one of the others might be woken.
            if self._gate.healthy:
                self._work.notify()
            else:
                self._work.notify_all()
        if not self._working or self._lane_count >= self._pace.lane_limit or self._idle_lanes >= len(self._queue):
            return None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="threadmail-lane")
        lane = Lane(self, self.config, self._rng)
        self._local.starting = lane
        self._lane_count += 1
        return self._executor, lane

    def _start_lane(self, start: _Start | None) -> None:
        if start is None:
            return
        executor, lane = start
        try:
            # The callback is for a lane that was interrupted where it cannot help itself: before its first line.
            executor.submit(self._lane, lane).add_done_callback(lambda _: self._surely_ended(lane))
        except RuntimeError as exc:
            # The executor was shut down, or the interpreter is going and starts no threads any more.
            note(logging.WARNING, "no lane could be started: %s", exc)
            self._abandon_start()
        self._local.starting = None

    def _abandon_start(self) -> None:
        """This thread was to start a lane, and perhaps has not."""
        lane: Lane | None = getattr(self._local, "starting", None)
        if lane is not None:
            with self._lock:
                self._local.starting = None
                if lane not in self._lanes:
                    lane.over = True  # should it begin after all, it ends at once
                    self._lane_count -= 1
                    self._calm.notify()

    def _surely_ended(self, lane: Lane) -> None:
        if not lane.buried:
            self.ended(lane)

    def _lane(self, lane: Lane) -> None:
        self._local.lane = lane
        try:
            lane.run()
        finally:
            self._local.lane = None

    # Each of the following, up to `ended`, is one step of a lane under the lock.

    def next(self, lane: Lane) -> Job | Do:
        """Count what the lane has done, and wait for something to do."""
        connected = lane.client.is_connected
        with self._lock:
            if lane.over:
                return Do.END
            self._lanes[lane] = None
            self._count(lane, connected)
            return self._next(lane)

    def _count(self, lane: Lane, connected: bool) -> None:
        self._connected += connected - lane.connected
        lane.connected = connected
        if lane.finished:
            for job in lane.finished:
                self._in_flight.pop(job, None)
            lane.finished.clear()
            self._calm.notify()

    def _next(self, lane: Lane) -> Job | Do:
        idle_until = Deadline.after(self.config.idle_timeout)
        # Less those that end already: else each lane that looks before the first of them is gone would end as well.
        while self._working and self._lane_count - len(self._leaving) <= self._pace.lane_limit:
            if now() >= self._queue.ends_at:
                return Do.EXPIRE
            pause = self._queue.pause(now())
            if pause != 0.0:
                if idle_until.passed and (pause is None or self._idle_lanes):
                    break  # of several lanes that wait for a retry one stays
                if idle_until.passed and lane.connected:
                    return Do.REST
                limit = idle_until if lane.connected or pause is None else Deadline()
                pause = limit.within(pause).remaining()
            elif not lane.connected:
                if self._gate.ask(now()) is Dial.NOW:
                    self._dialling[lane] = None
                    lane.needed_until = self._queue.last_end()
                    return Do.DIAL
                pause = self._gate.pause(now())
                if pause is not None and self._gate.error is not None and not self._gate.error.transient:
                    return Do.FAIL
            else:
                pause = self._throttle.take()
                if pause == 0.0:
                    job = self._queue.first(now())
                    assert job is not None
                    job.pauses_seen = self._pace.pauses
                    self._in_flight[job] = lane
                    self._queue.take(job, now())
                    self._room.notify()
                    return job
            self._idle_lanes += 1
            try:
                # Without a pause of its own the wait ends when somebody dialled, or called; the bound is for the worst.
                longest = LONGEST_WAIT if pause is None else min(pause, LONGEST_WAIT)
                self._work.wait(max(0.0, min(longest, self._queue.ends_at - now())))
            finally:
                self._idle_lanes -= 1
        self._leaving[lane] = None
        return Do.END

    def on_wire(self, job: Job, transaction: Transaction) -> None:
        """The job's MAIL is about to be written: the last moment to take it back."""
        with self._lock:
            if job.state is JobState.WITHDRAWN:
                raise Withdrawn
            job.state = JobState.ON_WIRE
            job.transaction = transaction

    def judge(self, job: Job, receipt: Receipt | None) -> MailError | Receipt | None:
        """Decide what an attempt means.

        Returns:
            The final receipt if the job is settled; the error if there was no session to try it in, which says nothing
            about the message; None if it is back in the queue, or was withdrawn.
        """
        with self._lock:
            if receipt is None or job.state is JobState.WITHDRAWN:
                self._throttle.give_back()
                return self._off_the_lane(job, None)
            if receipt.outcome is Outcome.NOT_SENT and receipt.phase in CONNECTING and not job.called_off:
                self._queue.put_first(job)
                return self._off_the_lane(job, receipt.error)
            job.spared += self._pace.learn(receipt, self._lane_count, job.pauses_seen)
            merged = receipt if job.receipt is None else job.receipt.followed_by(receipt)
            pause = self._pause_before_next(job, merged)
            if pause is None:
                return self._finish(job, merged)
            job.receipt = merged
            job.transaction = None
            job.envelope = job.envelope.for_recipients(self._policy.recipients(merged))
            job.due = now() + pause
            self._queue.put(job)
            self._retries += 1
            self._work.notify()
            return self._off_the_lane(job, None)

    def _pause_before_next(self, job: Job, receipt: Receipt) -> float | None:
        if job.called_off:
            return None
        pause = self._policy.next_attempt(receipt, now() - job.taken_first, self._rng, spared=job.spared)
        return None if pause is None or now() + pause >= job.end.at else pause

    def _off_the_lane(self, job: Job, error: MailError | None) -> MailError | None:
        job.client = job.transaction = None
        self._in_flight.pop(job, None)
        self._calm.notify()
        return error

    def _finish(self, job: Job, receipt: Receipt, owner: Lane | None = None) -> Receipt:
        """The job has its final receipt; it stays in flight until that has been told."""
        owner = self._in_flight.get(job, owner)
        job.state = JobState.DONE
        job.receipt = receipt
        self._in_flight[job] = owner
        self._outcomes[receipt.outcome] += 1
        return receipt

    def dialled(self, lane: Lane, error: MailError | None, *, answered: bool = True) -> list[Job]:
        """A lane has connected, or not.

        Args:
            answered: whether the error says something about the server.
        Returns:
            Jobs that end with it, to be announced.
        """
        with self._lock:
            self._dialling.pop(lane, None)
            self._work.notify_all()
            if error is None:
                self._count(lane, True)  # not at its next step: whoever's dial fails meanwhile must know of it
                self._gate.succeeded()
            elif not answered or isinstance(error, Aborted):
                self._gate.gave_up()
            elif error.transient and self._connected > lane.connected:
                self._gate.gave_up()  # a server that has enough connections is not dead
                self._pace.fewer(self._lane_count)
            else:
                self._gate.failed(error, now())
                if not error.transient or self._gate.given_up(alive=has_enough(error)):
                    return self._end_all(error, lane)
            return []

    def fail_queue(self, lane: Lane) -> list[Job]:
        """The server does not let us in: everything that waits for it ends with the reason why."""
        with self._lock:
            return self._end_all(self._gate.error, lane) if self._gate.error is not None else []

    def expire(self, lane: Lane | None = None) -> list[Job]:
        """Messages that nobody could take up in time, for the server or the throttle let nobody through."""
        with self._lock:
            over = [job for job in self._queue.jobs() if job.end.passed]
            for job in over:
                late = Receipt.not_sent(
                    job.envelope, TimedOut("the deadline passed before the message was on the wire")
                )
                self._finish(job, late if job.receipt is None else job.receipt.followed_by(late), lane)
            self._queue.count()
            self._room.notify_all()
            return over

    def settle_overdue(self) -> None:
        """As `expire`, for a thread that waits for a message and is no lane."""
        self._announce(self.expire())

    def ended(self, lane: Lane) -> None:
        """A lane is over, in whatever way; another one may be needed. May be called twice."""
        start = None
        try:
            with self._lock:
                owed = self._owed_by(lane)
                if not owed:
                    start = self._bury(lane)
            if owed:
                self._announce(owed)
                with self._lock:
                    start = self._bury(lane)
            self._start_lane(start)
            lane.buried = True
        except BaseException:
            self._abandon_start()
            raise

    def _owed_by(self, lane: Lane) -> list[Job]:
        """Put back or finish what an interrupted lane has left lying. Returns what is to be announced."""
        self._count(lane, False)
        left = [job for job, owner in self._in_flight.items() if owner is lane]
        for job in left:
            if job.state is JobState.QUEUED:
                self._queue.restore(job)
            elif job.state in (JobState.TAKEN, JobState.ON_WIRE):
                self._finish(job, as_it_stands(job))
            if job.state is not JobState.DONE or job.future.done():
                del self._in_flight[job]
        if left:
            self._queue.count()
        return [job for job in left if job in self._in_flight]

    def _bury(self, lane: Lane) -> _Start | None:
        """Forget a lane that owes nothing. Under the lock."""
        if not lane.over:
            stats = lane.client.stats()
            self._lanes.pop(lane, None)
            self._dialling.pop(lane, None)
            self._leaving.pop(lane, None)
            lane.over = True
            self._lane_count -= 1
            self._opened += stats.opened
            self._closed.update(stats.closed)
        if self._gate.probing and not self._dialling:
            self._gate.gave_up()  # it was interrupted before it could say so
        self._calm.notify()
        return self._wake() if self._queue else None

    # ------------------------------------------------------------ the end

    def _end_all(self, cause: MailError, owner: Lane | None = None) -> list[Job]:
        """Take the queue out and finish every job in it as not sent, because of `cause`. Under the lock."""
        jobs = self._queue.jobs()
        for job in jobs:
            if owner is None:
                self._cut_short[job] = None
            error = copy.copy(cause)
            error.receipt = None
            fresh = Receipt.not_sent(job.envelope, error)
            if job.receipt is None or isinstance(cause, Closed):
                self._finish(job, job.receipt or fresh, owner)
            else:
                self._finish(job, job.receipt.followed_by(fresh), owner)
        self._queue.clear()
        self._room.notify_all()
        return jobs

    def _announce(self, jobs: list[Job]) -> None:
        """Tell of jobs that another thread than a lane has finished."""
        for job in jobs:
            report(job)
            self.settled(job)
        with self._lock:
            for job in jobs:
                self._in_flight.pop(job, None)
            self._calm.notify()

    def close(self, *, drain: bool, end: Deadline) -> list[Job]:
        """Take no more jobs, work the queue off or not, and end all lanes. Called again if it was interrupted.

        Returns:
            The jobs that were cut short: taken out of the queue, or dropped on the wire. All are settled.
        """
        closed = Closed("the sender was closed before it was sent")
        with self._lock:
            self._accepting = False
            self._room.notify_all()
            self._wait(lambda: not (drain and self._lane_count and (self._queue or self._in_flight)), end)
            self._end_all(closed)
            unsent = [job for job in self._cut_short if not job.future.done()]
        if unsent:
            self._announce(unsent)
        with self._lock:
            self._wait(lambda: not self._in_flight, end)
            cut = list(self._in_flight)
            for job in cut:
                job.called_off = True
                self._cut_short[job] = None
            for client in [*(lane.client for lane in self._dialling), *(job.client for job in cut if job.client)]:
                client.abort()
            self._working = False
            self._work.notify_all()
            self._wait(lambda: not self._lane_count, Deadline.after(FAREWELL))
            late = self._end_all(closed)  # what was put back for another attempt meanwhile
            executor, self._executor = self._executor, None
            ended = not self._lane_count
        if late:
            self._announce(late)
        if executor is not None:
            executor.shutdown(wait=ended)
        return list(self._cut_short)

    def _wait(self, done: Callable[[], object], end: Deadline) -> None:
        while not done() and not end.passed:
            self._calm.wait(end.remaining())

    def numbers(self) -> tuple[int, int, int, int, int, dict[Outcome, int], int, int, dict[str, int]]:
        """The fields of `SenderStats`, as of one moment; but the connections of running lanes are counted after it."""
        with self._lock:
            later = self._queue.waiting_for_retry
            jobs = len(self._queue) - later, later, len(self._in_flight)
            lanes = self._lane_count, self._connected
            done = dict(self._outcomes), self._retries
            running, opened, closed = list(self._lanes), self._opened, Counter(self._closed)
        for lane in running:  # outside the lock: a client's numbers are behind its own
            stats = lane.client.stats()
            opened += stats.opened
            closed.update(stats.closed)
        return (*jobs, *lanes, *done, opened, dict(closed))

    def clients(self) -> list[Client]:
        """The clients of all lanes. Without the lock: for a forked child, where a dead thread may hold it."""
        return [lane.client for lane in self._lanes]
