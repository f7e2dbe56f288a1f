"""The lanes of a ThreadedSender: which there are, and what becomes of them.

Owns the one lock of a sender and what it guards: the queue, the states of jobs, the lanes (executor tasks that each
drain the queue on one thread with that thread's client), and the numbers that are told of them. Decides when a lane
starts and when it is over. Guarantees: a lane that ends, in whatever way, leaves no job behind that nobody sees to, and
is counted no more; nothing is waited for or called under the lock but the lock's own conditions. What a lane does next,
and what an attempt means, is decided in `_dispatch`.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ._jobs import Job, JobQueue, JobState
from ._lane import Boss, Lane, LaneLife, as_it_stands, note, report
from ._pace import Pace
from .client import Client
from .config import ServerConfig
from .errors import Outcome
from .receipt import Receipt
from .retry import DialGate, RetryPolicy
from .throttle import Throttle

_Start = tuple[ThreadPoolExecutor, Lane]


class Crew(Boss):
    """The lanes of one sender, in one process.

    Args:
        settled: called with each job when it has its final receipt, on a lane's thread, without a lock.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        workers: int,
        policy: RetryPolicy,
        throttle: Throttle,
        rng: random.Random,
        settled: Callable[[Job], None],
    ) -> None:
        self.config = config
        self.workers = workers
        self._rng = rng
        self._settled = settled
        self._local = threading.local()  # each lane's thread keeps its lane, and so its client, here
        # Guards everything below: the queue, the states of jobs, how many lanes there are and what they do.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # lanes wait for something to do
        # close() waits for jobs to be settled, then for lanes to end. One thread at a time does: see ThreadedSender.
        self._calm = threading.Condition(self._lock)
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
        self._executor: ThreadPoolExecutor | None = None
        self._outcomes: Counter[Outcome] = Counter()
        self._retries = 0
        self._opened = 0  # connections of lanes that have ended
        self._closed: Counter[str] = Counter()

    def settled(self, job: Job) -> None:
        self._settled(job)

    # ------------------------------------------------------------ a lane's beginning

    @property
    def in_lane(self) -> bool:
        """Whether the calling thread is one of the lanes."""
        return getattr(self._local, "lane", None) is not None

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
                if lane.life is LaneLife.RUNNING and lane not in self._lanes:
                    lane.life = LaneLife.OVER  # should it begin after all, it ends at once
                    self._lane_count -= 1
                    self._calm.notify()

    def _lane(self, lane: Lane) -> None:
        self._local.lane = lane
        try:
            lane.run()
        finally:
            self._local.lane = None

    # ------------------------------------------------------------ what it has done

    def _count(self, lane: Lane, connected: bool) -> None:
        self._connected += connected - lane.connected
        lane.connected = connected
        if lane.finished:
            for job in lane.finished:
                self._in_flight.pop(job, None)
            lane.finished.clear()
            if not self._in_flight:
                self._calm.notify()  # nobody waits for less

    def _finish(self, job: Job, receipt: Receipt, owner: Lane | None = None) -> Receipt:
        """The job has its final receipt; it stays in flight until that has been told."""
        owner = self._in_flight.get(job, owner)
        job.state = JobState.DONE
        job.receipt = receipt
        self._in_flight[job] = owner
        self._outcomes[receipt.outcome] += 1
        return receipt

    def _announce(self, jobs: list[Job]) -> None:
        """Tell of jobs that another thread than a lane has finished."""
        for job in jobs:
            report(job)
            self.settled(job)
        with self._lock:
            for job in jobs:
                self._in_flight.pop(job, None)
            self._calm.notify()

    # ------------------------------------------------------------ its end

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
            lane.life = LaneLife.BURIED
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
        if lane.life is LaneLife.RUNNING:
            stats = lane.client.stats()
            self._lanes.pop(lane, None)
            self._dialling.pop(lane, None)
            self._leaving.pop(lane, None)
            lane.life = LaneLife.OVER
            self._lane_count -= 1
            self._opened += stats.opened
            self._closed.update(stats.closed)
        if self._gate.probing and not self._dialling:
            self._gate.gave_up()  # it was interrupted before it could say so
        self._calm.notify()
        return self._wake() if self._queue else None

    def _surely_ended(self, lane: Lane) -> None:
        if lane.life is not LaneLife.BURIED:
            self.ended(lane)

    # ------------------------------------------------------------ looking at them

    def numbers(self) -> tuple[int, int, int, int, int, dict[Outcome, int], int, int, dict[str, int]]:
        """The fields of `SenderStats`, as of one moment; but the connections of running lanes are counted after it."""
        with self._lock:
            later = self._queue.waiting_for_retry
            working = sum(job.state in (JobState.TAKEN, JobState.ON_WIRE) for job in self._in_flight)
            jobs = len(self._queue) - later, later, working
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
