"""What a sender is to do next: its decisions, and nothing else.

Owns where every job of a sender is: in the queue, waiting for its next attempt, with a worker, or settled and to be
told; who may dial; how many workers may run; who waits for a place. Has no lock and no thread, and does no I/O: the
time is an argument, so that a table can test it and a plain model can be held against it. `Dispatcher` calls it under
its lock. Guarantees: each job is in one place; every operation is O(log n), and what settles many does so a slice at a
time; what has left holds no memory.

    NEW -> READY                      submit
    READY, LATER (due) -> TAKEN       a worker takes it, into its run
    TAKEN -> READY (first)            given back: the pause began, the worker ended, no session
    TAKEN -> TAKEN (another's)        stolen by an idle worker
    TAKEN -> ON_WIRE                  claimed: its MAIL is about to be written (by its worker, see `_dispatch.worker`)
    ON_WIRE -> LATER                  tried again
    ON_WIRE -> READY (first)          no session, or lost while prefetched: nothing was sent, no attempt
    READY, LATER, TAKEN -> DONE       cancelled, called off, expired, closed: taken out, then told
    ON_WIRE -> DONE                   its last attempt is over

**Interrupted anywhere.** An exception from outside (Ctrl-C, a time limit of a job queue), a signal handler and a
finaliser come up when something is called and where a loop turns, not between two plain statements. So each move first
calls what it needs, then checks again and is made in plain statements alone (subscripts, `del`, `+=`), new place first:
who is interrupted has moved a job or has not, and a call of the same thread in between, which the re-entrant lock lets
pass, finds everything in order. A loop goes over a copy (`list`, which is one step) for the same reason: from 3.12 on
the collector, and with it a finaliser, comes up where a loop turns.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from .._connection.breaker import CircuitBreaker, Dial
from .._runtime.deadline import NEVER, Deadline
from ..errors import Outcome
from ..receipt import Receipt
from .job import Ending, Job, JobState
from .limits import ConcurrencyLimit
from .timeheap import TimeHeap

NEW, READY, LATER, TAKEN, ON_WIRE, DONE = (
    JobState.NEW,
    JobState.READY,
    JobState.LATER,
    JobState.TAKEN,
    JobState.ON_WIRE,
    JobState.DONE,
)

#: Jobs that a worker takes in one step at most. Measured: 3.5 us a message are saved against one at a time, and no more
#: by 64.
RUN = 16

#: Jobs that are settled in one step at most: about a millisecond.
SLICE = 256

#: Retries that may wait, for each place in the queue. They take no place from new messages (one domain with a greylist
#: would stop all others), but without any bound they would be a queue without one.
RETRIES_A_PLACE = 10


class Do(enum.Enum):
    """What a worker is to do."""

    SEND = "what is in its run"
    DIAL = "connect: there is work"
    REST = "close the connection: nothing is due for a while"
    FAIL = "settle what waits for a server that refuses for good"
    EXPIRE = "settle those whose time has passed"
    ANNOUNCE = "call back for messages that a caller has settled"
    WAIT = "for so many seconds, or until it is woken"
    END = "nothing is left to do"


class Action(NamedTuple):
    """What a worker is to do, and for WAIT how many seconds at most."""

    do: Do
    seconds: float = 0.0


class Worker(Protocol):
    """What the schedule knows of a worker. `run` is changed under the worker's own lock as well."""

    connected: bool
    dialling: bool
    begun: bool
    idle_since: float
    run: deque[Job]
    current: Job | None
    left: list[Job]

    @property
    def lock(self) -> AbstractContextManager[object]: ...


class Waiter(Protocol):
    """Who waits for a place; `wake` is called under the dispatcher's lock."""

    def wake(self) -> None: ...


_W = TypeVar("_W", bound=Worker)


class Schedule(Generic[_W]):
    """The jobs of one sender and what is decided about them.

    Args:
        workers: at most.
        queue_size: jobs that may wait for a worker.
        idle_timeout: seconds after which a connection that nobody uses is closed; None: never.
        breaker: who may dial.
        take_token: takes a token of the throttle and gives 0.0, or gives the seconds until it is worth asking again.
        return_token: gives one back that was taken for nothing.
        is_limited: whether the throttle counts: then nobody takes more than one job ahead.
    """

    def __init__(
        self,
        *,
        workers: int,
        queue_size: int,
        idle_timeout: float | None,
        breaker: CircuitBreaker,
        take_token: Callable[[], float],
        return_token: Callable[[], None],
        is_limited: Callable[[], bool],
    ) -> None:
        self.queue_size = queue_size
        self.breaker = breaker
        self.limit = ConcurrencyLimit(workers)
        self._most_under_way = queue_size + 2 * workers
        self._most_later = RETRIES_A_PLACE * queue_size
        self._idle_timeout = inf if idle_timeout is None else idle_timeout
        self._take_token = take_token
        self.return_token = return_token
        self._is_limited = is_limited
        self.ready: OrderedDict[Job, None] = OrderedDict()
        self.later: TimeHeap[Job] = TimeHeap()
        self.ends: TimeHeap[Job] = TimeHeap()  # of those in the three places above and below
        self.in_flight: dict[Job, _W] = {}  # TAKEN or ON_WIRE; SENT as well, until its worker comes by to say so
        self.untold: dict[Job, None] = {}  # DONE otherwise, and not told yet
        self.unannounced: deque[Job] = deque()  # of them: settled by a caller, whose callbacks a worker is to run
        self.workers: dict[_W, None] = {}  # running, or about to
        self.leaving: dict[_W, None] = {}  # of them: told to end. Each counts until its connection is gone
        self.ending: dict[_W, None] = {}  # none of them any more; their threads still tell of what they have left
        self.idle = 0  # workers that wait
        self.line: OrderedDict[Waiter, int] = OrderedDict()  # who waits for a place, in that order; and on which thread
        self.working = True
        self.outcomes: Counter[Outcome] = Counter(dict.fromkeys(Outcome, 0))
        self.retries = 0
        self._latest_end = 0.0  # of those in `ends`, and of some that have left

    # ------------------------------------------------------------ places

    def __len__(self) -> int:
        """Jobs that wait, for a worker or for their next attempt."""
        return len(self.ready) + len(self.later)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to be done or told."""
        return not (self.ready or len(self.later) or self.in_flight or self.untold)

    def with_workers(self) -> list[Job]:
        """Those that workers have, and the newest of those to be told: no more of these than a slice."""
        return [*list(self.in_flight), *islice(reversed(self.untold), SLICE)]

    def places(self) -> int:
        """How many jobs may come in now."""
        if len(self.later) >= self._most_later:
            return 0
        ready = len(self.ready)
        # What workers have taken ahead, and what they have not counted yet, is in memory as well.
        return min(self.queue_size - ready, self._most_under_way - ready - len(self.in_flight))

    def admits(self, waiter: Waiter | None) -> bool:
        """Whether this caller may come in now; None: one that has not waited yet. Nobody overtakes who waits."""
        if self.places() <= 0:
            return False
        return not self.line or (waiter is not None and next(iter(self.line)) is waiter)

    def wake_first(self) -> None:
        """Have the first of those who wait for a place look, if there is one. After whatever may have made room."""
        if self.line and self.places() > 0:
            next(iter(self.line)).wake()

    # ------------------------------------------------------------ in and out

    def submit(self, job: Job) -> None:
        """Queue a new job."""
        if job.end.at != inf:
            self._ends_at(job, job.end.at)
        if job.state is DONE:  # a signal handler has refused it in the middle of this
            self.ends.discard(job)
            return
        job.state = READY
        self.ready[job] = None

    def take_back(self, job: Job) -> None:
        """Undo `submit`, in the same step."""
        job.state = NEW
        self.ready.pop(job, None)
        self.ends.discard(job)

    def take_out(self, job: Job, out: list[Job], ending: Ending | None = None) -> bool:
        """Take a job out that no worker has begun: it is DONE, and whoever took it out has to end and tell it.

        Args:
            out: what was taken out is added here, in the same moment. Where a worker has the job in its run, that
                worker's lock is held as well.
            ending: makes its receipt, later.
        """
        if not self._can_leave(job):
            return False
        taken = job.state is TAKEN
        out += (job,)
        self.untold[job] = None
        job.ending = ending
        job.state = DONE
        if job in self.ready:
            del self.ready[job]
        self.forget(job)
        if taken:
            self.return_token()
        return True

    def _can_leave(self, job: Job) -> bool:
        if job.state is TAKEN:
            worker = self.in_flight.get(job)
            # Its worker claims it at the head of its own run, under the same lock: one of the two finds it.
            return worker is not None and job in worker.run
        return job.state is READY or job.state is LATER

    def forget(self, job: Job) -> None:
        """Sweep up what is left of a job that is DONE."""
        worker = self.in_flight.pop(job, None)
        if worker is not None and job in worker.run:
            worker.run.remove(job)
        self.later.discard(job)
        self.ends.discard(job)

    def expired(self, now: float, out: list[Job], ending: Ending | None = None) -> None:
        """Take out those whose time has passed and that nobody has begun, some at a time. No more: nothing is added."""
        while len(out) < SLICE and (job := self.ends.first_due(now)) is not None:
            worker = self.in_flight.get(job)
            if worker is None:
                self.take_out(job, out, ending)
            else:
                with worker.lock:
                    self.take_out(job, out, ending)
            self.ends.discard(job)  # who is on the wire sees to it himself; should he come back, he is added again

    def drained(self, out: list[Job], ending: Ending | None = None) -> None:
        """Take out jobs that wait, some at a time, because nobody will send them. No more: nothing is added."""
        while len(out) < SLICE and self.ready:
            job = next(iter(self.ready))
            if not self.take_out(job, out, ending) and job in self.ready:
                del self.ready[job]
        while len(out) < SLICE and (later := self.later.first_due(inf)) is not None:
            self.take_out(later, out, ending)
            self.later.discard(later)

    def finish(self, job: Job, receipt: Receipt, worker: _W) -> None:
        """A job that its worker has begun has its final receipt, and that worker is to tell of it."""
        worker.left += (job,)  # first: whoever buries the worker finds it there, should it be struck before it has told
        self.untold[job] = None
        job.receipt = receipt
        job.state = DONE
        self.forget(job)

    def hand_over(self, jobs: list[Job]) -> bool:
        """Let a worker call back for them. False: there is none."""
        # One that has not begun may never do so.
        if not self.working or not any(each.begun and each not in self.leaving for each in list(self.workers)):
            return False
        self.unannounced += jobs
        return True

    def some_unannounced(self, out: list[Job]) -> None:
        """Take some out. `out` has each before it is taken, so that an interrupt loses none of them."""
        while self.unannounced and len(out) < SLICE:
            job = self.unannounced[0]
            out += (job,)
            del self.unannounced[0]

    def told(self, jobs: Iterable[Job]) -> None:
        """They were told: they are counted, and nobody's any more."""
        for job in jobs:
            if job in self.untold and job.ending is None:
                assert job.receipt is not None
                outcome = job.receipt.outcome
                self.outcomes[outcome] += 1
                del self.untold[job]

    def sent(self, jobs: list[Job]) -> None:
        """Their worker has sent them at the first attempt, and told of it; they are counted already."""
        self.limit.count_good(len(jobs))
        self.breaker.answered()
        in_flight, ends = self.in_flight, self.ends
        bounded = len(ends) > 0
        for job in jobs:
            in_flight.pop(job, None)
            if bounded:
                ends.discard(job)

    # ------------------------------------------------------------ workers

    def next_action(self, worker: _W, now: float) -> Action:
        """What a worker is to do that has nothing begun. SEND: there is something in its run."""
        surplus = worker in self.leaving or not self.is_wanted
        if surplus and not self._is_spare(worker):
            return _END
        if now >= self.ends.first_at():
            return _EXPIRE
        if self.unannounced:
            return _ANNOUNCE
        if surplus and (stays := self._stays(worker, now)) is not None:
            return stays
        if not worker.connected:
            wait = 0.0 if self.ready else self.later.first_at() - now
            return self._unconnected(worker, now) if wait <= 0.0 else self._nothing_due(worker, wait, now)
        if worker.run:
            return _SEND
        wait = 0.0 if self.ready else self.later.first_at() - now
        if wait > 0.0:
            return _SEND if self._steal(worker) else self._nothing_due(worker, wait, now)
        worker.idle_since = now
        pause = self._take_token()
        if pause:
            return self._wait(pause, now)
        self.take_run(worker, now)
        return _SEND

    @property
    def is_wanted(self) -> bool:
        """Whether a worker is to go on."""
        # Less those that end already: else each that looks before the first of them is gone would end as well.
        return self.working and len(self.workers) - len(self.leaving) <= self.limit.workers

    def _is_spare(self, worker: _W) -> bool:
        """Whether one too many is to stay a while: all those who are connected may wait for a server that stalls.

        Where they move, or one of them has nothing to do, they need nobody.
        """
        return self.working and self.limit.stands_still and not worker.connected and not self.idle and len(self) > 0

    def _stays(self, worker: _W, now: float) -> Action | None:
        """A spare one waits for the others to move, as one that leaves. None: they do not, and it is tried."""
        left = self.limit.again_at - now
        if left > 0.0:
            self.leaving[worker] = None
            return self._wait(left, now)
        self.limit.one_more()
        self.leaving.pop(worker, None)
        return None

    def _wait(self, seconds: float, now: float) -> Action:
        return Action(Do.WAIT, min(seconds, self.ends.first_at() - now))

    def _nothing_due(self, worker: _W, wait: float, now: float) -> Action:
        """One worker waits for a retry; of several the others end."""
        left = worker.idle_since + self._idle_timeout - now
        if left <= 0.0 and (wait == inf or self.idle):
            return _END
        if not worker.connected:
            return self._wait(left if wait == inf else wait, now)
        return _REST if left <= 0.0 else self._wait(min(wait, left), now)

    def _unconnected(self, worker: _W, now: float) -> Action:
        breaker = self.breaker
        if breaker.ask(now) is Dial.NOW:
            worker.dialling = True
            return _DIAL
        pause = breaker.pause(now)
        if pause is not None and breaker.is_final():
            return _FAIL
        return self._wait(inf if pause is None else pause, now)

    def _ends_at(self, job: Job, at: float) -> None:
        self._latest_end = max(at, self._latest_end) if len(self.ends) else at
        self.ends.add(job, at)

    def needed_until(self, now: float) -> Deadline:
        """How long a connection that is made now is of use: until the last deadline of those that wait."""
        waiting = len(self.ready) + len(self.later) + len(self.in_flight)
        # One that has passed would end each dial before it began. Those it is of are on the wire, or are settled next.
        bounded = len(self.ends) >= waiting and self._latest_end > now
        return Deadline(self._latest_end) if bounded else NEVER

    def take_run(self, worker: _W, now: float) -> None:
        """Give a worker what it is to do next, on its own thread.

        A share that leaves enough for all who could work: who takes much while little is there lets others idle.
        """
        share = 1 if self._is_limited() else min(RUN, 1 + len(self.ready) // (2 * self.limit.workers))
        later = self.later
        while share and (job := later.first_due(now)) is not None:
            if job.state is LATER:
                self._take(job, worker)
                share -= 1
            later.discard(job)
        while share and self.ready:
            job = next(iter(self.ready))
            if job.state is READY:
                self._take(job, worker)
                share -= 1
            if job in self.ready:
                del self.ready[job]

    def _take(self, job: Job, worker: _W) -> None:
        # In this order: where memory ends in one of the two it is still READY, and where whoever comes next finds it.
        self.in_flight[job] = worker
        worker.run += (job,)
        job.state = TAKEN
        job.pauses_seen = self.limit.pauses

    def _steal(self, worker: _W) -> bool:
        """Take over half of what the busiest other worker has not begun: it may have met a slow message."""
        victim = max((each for each in list(self.workers) if each is not worker), key=_to_spare, default=None)
        if victim is None or not (spare := _to_spare(victim)):
            return False
        with victim.lock:
            first = max(0, len(victim.run) - spare)
            while len(victim.run) > first:
                job = victim.run[first]
                # Plain statements alone, or an exception from outside would leave it with both, and both would send it.
                if job.state is TAKEN:
                    worker.run += (job,)
                    self.in_flight[job] = worker
                del victim.run[first]
        return bool(worker.run)

    # ------------------------------------------------------------ back from workers

    def give_back(self, job: Job) -> None:
        """A job that was taken, and nothing of it was sent, is the first again: it was no attempt."""
        job.state = READY  # first: its worker claims only what is TAKEN
        self.ready[job] = None
        self.ready.move_to_end(job, last=False)
        job.transaction = None
        self.in_flight.pop(job, None)
        self.return_token()
        if job not in self.ends and job.end.at != inf:
            self._ends_at(job, job.end.at)

    def give_back_run(self, worker: _W) -> None:
        """What a worker has not begun goes to whoever comes first. On its own thread, or with its lock held."""
        run = worker.run
        while run:
            job = run[-1]
            # One that was given back before, and is another worker's by now, is only dropped here.
            if job.state is TAKEN and self.in_flight.get(job) is worker:
                self.give_back(job)
            del run[-1]

    def again(self, job: Job, at: float, until: float) -> None:
        """Another attempt is to be made.

        Args:
            at: when, on the monotonic clock.
            until: what is not begun by then is settled as it is.
        """
        job.transaction = None
        self.later.add(job, at)
        if until != inf:
            self._ends_at(job, until)
        job.state = LATER
        self.in_flight.pop(job, None)
        self.retries += 1

    def expires(self, job: Job, at: float) -> None:
        """What is not begun by then is settled as it is, if its deadline is not before."""
        if at < self.ends.at(job):
            self._ends_at(job, at)


def _to_spare(worker: Worker) -> int:
    """How many of its run may be taken from a worker: half of it, and the last one too where another is in its way.

    Who is about to begin with its last one keeps it: else two workers could take it from each other for ever.
    """
    with worker.lock:
        waits = worker.current is not None or not worker.connected
        return (len(worker.run) + waits) // 2


_SEND, _DIAL, _REST, _FAIL, _EXPIRE, _ANNOUNCE, _END = (
    Action(do) for do in (Do.SEND, Do.DIAL, Do.REST, Do.FAIL, Do.EXPIRE, Do.ANNOUNCE, Do.END)
)
