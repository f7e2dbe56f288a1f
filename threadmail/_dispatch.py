"""Who does a ThreadedSender's work.

Owns the lanes: executor tasks that each drain the queue on one thread with that thread's client. Decides when a lane
starts and ends, who may dial, what a failed attempt means for its message, for the connection limit and for the pace.
Guarantees: every job is settled exactly once; a message is tried again only if the policy says that this cannot
send it twice; nothing is waited for or called under the lock. Leaves batches, callbacks and exit to `ThreadedSender`.
"""

from __future__ import annotations

import copy
import enum
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ._deadline import Deadline, now
from ._jobs import Job, JobQueue, JobState
from ._pace import Pace
from .client import Client
from .config import ServerConfig
from .errors import CONNECTING, Aborted, Closed, MailError, Outcome, QueueFull, TimedOut, detach
from .receipt import Receipt
from .retry import Dial, DialGate, RetryPolicy
from .throttle import Throttle
from .transaction import Transaction

log = logging.getLogger("threadmail.sender")

#: No lane sleeps longer than this without a look around, in seconds.
LONGEST_WAIT = 60.0

#: Seconds for all lanes together to say goodbye once they were told to end.
FAREWELL = 10.0


class _Withdrawn(BaseException):
    """Raised at the last moment before MAIL, when the job was cancelled meanwhile. Not an error, so no Exception."""


class _Do(enum.Enum):
    """What a lane is to do when it is not to send."""

    DIAL = "connect: there is work"
    REST = "close the connection: nothing is due for a while"
    FAIL = "give the queue up: the server refuses for good"
    END = "nothing is left to do"


class Dispatcher:
    """Queue and lanes of one sender, in one process.

    Args:
        settled: called with each job and its final receipt, on a lane's thread, without a lock.
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
        settled: Callable[[Job, Receipt], None],
    ) -> None:
        self.config = config
        self.workers = workers
        self.queue_size = queue_size
        self._policy = policy
        self._throttle = throttle
        self._rng = rng
        self._settled = settled
        self._local = threading.local()  # each lane's thread keeps its client here
        # Guards everything below: the queue, the states of jobs, how many lanes there are and what they do.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # lanes wait for something to do
        self._room = threading.Condition(self._lock)  # callers wait for a place in the queue
        self._calm = threading.Condition(self._lock)  # close() waits for jobs to be settled, then for lanes to end
        self._accepting = True
        self._working = True
        self._queue = JobQueue()
        # Dictionaries in the place of sets, for their order: the same work gives the same run.
        self._in_flight: dict[Job, None] = {}
        self._clients: dict[Client, None] = {}  # of all lanes
        self._dialling: dict[Client, None] = {}
        self._lanes = 0
        self._idle_lanes = 0
        self._connected = 0  # lanes that have a connection
        self._pace = Pace(workers, throttle)
        self._gate = DialGate(policy, rng)
        self._executor: ThreadPoolExecutor | None = None
        self.outcomes: Counter[Outcome] = Counter()
        self.retries = 0
        self.opened = 0
        self.closed: Counter[str] = Counter()

    # ------------------------------------------------------------ jobs in and out

    def put(self, job: Job) -> None:
        """Queue a job; waits for a place.

        Raises:
            TimedOut: there was none before the job's deadline.
            QueueFull: there is none, and the caller is a lane, which would wait for itself.
            Closed: no more jobs are taken.
        """
        with self._lock:
            while True:
                if not self._accepting:
                    raise Closed("this sender is closed")
                if len(self._queue) < self.queue_size:
                    break
                if self.in_lane:
                    raise QueueFull("the queue is full, and a callback of the sender must not wait for a place in it")
                if job.end.passed:
                    raise TimedOut("the deadline passed while waiting for a place in the queue")
                self._room.wait(job.end.remaining())
            self._queue.put(job)
            new_lane = self._wake()
        if new_lane:
            self._start_lane()

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
            self._calm.notify_all()
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
            job.state = JobState.DONE
            self._in_flight[job] = None
        self._settle(job, job.receipt or Receipt.not_sent(job.envelope, Aborted("the message was called off")))
        return True

    @property
    def in_lane(self) -> bool:
        """Whether the calling thread is one of the lanes."""
        return getattr(self._local, "client", None) is not None

    # ------------------------------------------------------------ lanes

    def _wake(self) -> bool:
        """Have somebody look at the queue. Under the lock. Returns whether a new lane should be started."""
        if self._idle_lanes:
            # While the server is not to be dialled, only some lanes can work, and one of the others might be woken.
            if self._gate.healthy:
                self._work.notify()
            else:
                self._work.notify_all()
        if self._lanes < self._pace.lane_limit and self._idle_lanes < len(self._queue) and self._working:
            self._lanes += 1
            return True
        return False

    def _start_lane(self) -> None:
        try:
            with self._lock:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="threadmail-lane")
                executor = self._executor
            executor.submit(self._lane)
        except RuntimeError as exc:
            # The executor was shut down, or the interpreter is going and starts no threads any more.
            log.warning("no lane could be started: %s", exc)
            with self._lock:
                self._lanes -= 1
                self._calm.notify_all()

    def _lane(self) -> None:
        client = self._local.client = Client(self.config, rng=self._rng, watch_idle=False)
        with self._lock:
            self._clients[client] = None
        try:
            while self._take_part(client):
                pass
        except BaseException:
            log.exception("a lane ended early")
        finally:
            connected = client.is_connected
            client.close()
            self._local.client = None
            stats = client.stats()
            with self._lock:
                self._clients.pop(client, None)
                self._connected -= connected
                self._lanes -= 1
                self.opened += stats.opened
                self.closed.update(stats.closed)
                new_lane = self._working and bool(self._queue) and self._wake()
                self._calm.notify_all()
            if new_lane:
                self._start_lane()

    def _take_part(self, client: Client) -> bool:
        """Do the next thing there is to do. Returns False when this lane is not needed any more."""
        connected = client.is_connected
        with self._lock:
            job = self._next(connected)
        if isinstance(job, Job):
            self._attempt(job, client)
        elif job is _Do.DIAL:
            self._dial(client)
        elif job is _Do.REST:
            client.close_idle()
        elif job is _Do.FAIL:
            self._fail_queue()
        with self._lock:
            self._connected += client.is_connected - connected
        return job is not _Do.END

    def _next(self, connected: bool) -> Job | _Do:
        """Wait for something to do. Under the lock."""
        idle_until = Deadline.after(self.config.idle_timeout)
        while self._working and self._lanes <= self._pace.lane_limit:
            pause = self._queue.pause(now())
            if pause != 0.0:
                if idle_until.passed and (pause is None or self._idle_lanes):
                    break  # of several lanes that wait for a retry one stays
                if idle_until.passed and connected:
                    return _Do.REST
                limit = idle_until if connected or pause is None else Deadline()
                pause = limit.within(pause).remaining()
            elif not connected:
                if self._gate.ask(now()) is Dial.NOW:
                    return _Do.DIAL
                pause = self._gate.pause(now())
                if pause is not None and self._gate.error is not None and not self._gate.error.transient:
                    return _Do.FAIL
            else:
                pause = self._throttle.take()
                if pause == 0.0:
                    job = self._queue.take(now())
                    assert job is not None
                    self._in_flight[job] = None
                    self._room.notify()
                    return job
            self._idle_lanes += 1
            try:
                # Without a pause of its own the wait ends when somebody dialled, or called; the bound is for the worst.
                self._work.wait(LONGEST_WAIT if pause is None else min(pause, LONGEST_WAIT))
            finally:
                self._idle_lanes -= 1
        return _Do.END

    # ------------------------------------------------------------ attempts

    def _attempt(self, job: Job, client: Client) -> None:
        receipt = self._transmit(job, client)
        with self._lock:
            withdrawn = receipt is None or job.state is JobState.WITHDRAWN
            # A connection that had to be replaced could not be. That says nothing about the message.
            no_session = receipt is not None and receipt.outcome is Outcome.NOT_SENT and receipt.phase in CONNECTING
            if withdrawn or (no_session and not job.called_off):
                self._in_flight.pop(job, None)
                if not withdrawn:
                    self._queue.put_first(job)
                self._calm.notify_all()
        if receipt is None or withdrawn:
            self._throttle.give_back()
        elif no_session and not job.called_off:
            assert receipt.error is not None
            self._dial_failed(receipt.error)
        else:
            self._judge(job, receipt)

    def _transmit(self, job: Job, client: Client) -> Receipt | None:
        """One attempt. Returns its receipt, or None if the job was withdrawn in the last moment."""
        if job.end.passed:
            return Receipt.not_sent(job.envelope, TimedOut("the deadline passed before the message was on the wire"))
        job.client = client
        job.transaction = None
        if job.first_attempt is None:
            job.first_attempt = now()

        def on_wire(transaction: Transaction) -> None:
            with self._lock:
                if job.state is JobState.WITHDRAWN:
                    raise _Withdrawn
                job.state = JobState.ON_WIRE
                job.transaction = transaction

        try:
            return client.transmit(job.envelope, deadline=job.end, before_mail=on_wire)
        except _Withdrawn:
            return None
        except MailError as error:
            detach(error)
            return error.receipt or Receipt.not_sent(job.envelope, error)
        except BaseException as exc:
            # An exception raised in this thread from outside, or a mistake of ours. The transaction knows what is true.
            log.exception("a lane was interrupted at message %s", job.envelope.message_id)
            return self._interrupted(job, MailError(f"the attempt was interrupted by {type(exc).__name__}"))

    def _interrupted(self, job: Job, error: MailError) -> Receipt:
        if job.transaction is None:
            return Receipt.not_sent(job.envelope, error)
        job.transaction.blame(error)
        return job.transaction.receipt()

    def _judge(self, job: Job, receipt: Receipt) -> None:
        """Settle the job, or have it tried again."""
        merged = receipt if job.receipt is None else job.receipt.followed_by(receipt)
        with self._lock:
            self._pace.learn(receipt, self._lanes)
            pause = None
            if not job.called_off and job.first_attempt is not None:
                pause = self._policy.next_attempt(merged, now() - job.first_attempt, self._rng)
            if pause is not None and now() + pause < job.end.at:
                job.receipt = merged
                job.envelope = job.envelope.for_recipients(self._policy.recipients(merged))
                job.due = now() + pause
                self._in_flight.pop(job, None)
                self._queue.put(job)
                self.retries += 1
                self._work.notify()
                return
        self._settle(job, merged)

    def _settle(self, job: Job, receipt: Receipt) -> None:
        with self._lock:
            job.state = JobState.DONE
            job.receipt = receipt
            self.outcomes[receipt.outcome] += 1
        if receipt.outcome not in (Outcome.SENT, Outcome.PARTIAL):
            # What close() takes back it also returns; a line for each would bury the one that says how many.
            level = logging.INFO if isinstance(receipt.error, Closed) else logging.WARNING
            log.log(level, "message %s: %s", receipt.message_id or "without Message-ID", receipt)
        try:
            self._settled(job, receipt)
        finally:
            with self._lock:
                self._in_flight.pop(job, None)
                self._calm.notify_all()

    # ------------------------------------------------------------ what the server tells about itself

    def _dial(self, client: Client) -> None:
        with self._lock:
            self._dialling[client] = None
        try:
            client.connect()
        except MailError as error:
            self._dial_failed(detach(error))
        except BaseException:
            with self._lock:
                self._gate.gave_up()
            raise
        else:
            with self._lock:
                self._gate.succeeded()
                self._work.notify_all()
        finally:
            with self._lock:
                self._dialling.pop(client, None)

    def _dial_failed(self, error: MailError) -> None:
        with self._lock:
            give_up = False
            if isinstance(error, (Aborted, TimedOut)) and error.phase is None:
                self._gate.gave_up()  # somebody's patience ended, not the server
            elif error.transient and self._connected:
                self._gate.gave_up()  # a server that has enough connections is not dead
                self._pace.fewer(self._lanes)
            else:
                self._gate.failed(error, now())
                give_up = not error.transient or self._gate.failures >= self._policy.attempts
            self._work.notify_all()
        log.warning("cannot connect to %s: %s", self.config.address, error)
        if give_up:
            self._fail_queue()

    def _fail_queue(self) -> None:
        """The server does not let us in: everything that waits for it ends with the reason why."""
        with self._lock:
            cause = self._gate.error
            jobs = self._clear_queue()
        assert cause is not None
        for job in jobs:
            error = copy.copy(cause)
            error.receipt = None
            fresh = Receipt.not_sent(job.envelope, error)
            self._settle(job, job.receipt.followed_by(fresh) if job.receipt is not None else fresh)

    def _clear_queue(self) -> list[Job]:
        """Take all jobs out, to be settled by the caller. Under the lock."""
        jobs = self._queue.clear()
        for job in jobs:
            job.state = JobState.DONE  # from here on it is too late to cancel
        self._in_flight.update(dict.fromkeys(jobs))
        self._room.notify_all()
        return jobs

    # ------------------------------------------------------------ the end

    def close(self, *, drain: bool, end: Deadline) -> list[Job]:
        """Take no more jobs, work the queue off or not, and end all lanes.

        Returns:
            The jobs that were cut short: taken out of the queue, or dropped on the wire. All are settled.
        """
        with self._lock:
            self._accepting = False
            self._room.notify_all()
            self._wait(lambda: not (drain and self._lanes and (self._queue or self._in_flight)), end)
        unsent = self._take_back()
        with self._lock:
            self._wait(lambda: not self._in_flight, end)
            cut = list(self._in_flight)
            for job in cut:
                job.called_off = True
            for client in [*self._dialling, *(job.client for job in cut if job.client is not None)]:
                client.abort()
            self._working = False
            self._work.notify_all()
            self._wait(lambda: not self._lanes, Deadline.after(FAREWELL))
            executor, self._executor = self._executor, None
            ended = not self._lanes
        if executor is not None:
            executor.shutdown(wait=ended)
        return unsent + self._take_back() + cut  # once more, for what was put back for another attempt meanwhile

    def _take_back(self) -> list[Job]:
        """Settle what is queued as not sent."""
        with self._lock:
            jobs = self._clear_queue()
        for job in jobs:
            self._settle(
                job, job.receipt or Receipt.not_sent(job.envelope, Closed("the sender was closed before it was sent"))
            )
        return jobs

    def _wait(self, done: Callable[[], object], end: Deadline) -> None:
        while not done() and not end.passed:
            self._calm.wait(end.remaining())

    def numbers(self) -> tuple[int, int, int, int, int]:
        """Queued, waiting for a retry, in flight, lanes, connected lanes."""
        with self._lock:
            later = self._queue.waiting_for_retry
            return len(self._queue) - later, later, len(self._in_flight), self._lanes, self._connected

    def connections(self) -> tuple[int, Counter[str]]:
        """Connections opened, and closed by reason."""
        with self._lock:
            clients, opened, closed = list(self._clients), self.opened, Counter(self.closed)
        for client in clients:
            opened += client.stats().opened
            closed.update(client.stats().closed)
        return opened, closed
