"""One thread's part in a ThreadedSender's work.

Owns what a worker does on its own thread and with its own client: dial, send what is in its run, tell. Guarantees:
whatever ends an attempt, the job has a receipt that is true; the client gets its farewell. What is to be done next, and
what an attempt means, the dispatcher decides.

A worker's lock is a leaf: it is taken alone, by its own thread, or inside the dispatcher's, by others. It guards what
the worker has in its hands (run, prefetched, current, finished) and the states of those jobs, so that a message that is
simply sent needs no lock that others want. **Ownership is proved by the place and never by the state**: who claims a
job finds it at the head of his own run, or as his own current one. (A job that was stolen and begun by another worker
is ON_WIRE too.)
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any, Protocol, TypeAlias

from .._protocol.transaction import Terms, Transaction
from .._runtime.deadline import Deadline, now, out_of_time
from .._runtime.locks import new_rlock
from .._runtime.logs import say
from .._session.delivery import Follower
from ..client import Client
from ..config import ServerConfig
from ..envelope import Envelope
from ..errors import Aborted, ConnectFailed, ConnectionLost, MailError, Outcome, TimedOut, detach, printable
from ..receipt import Receipt
from .job import Job, JobState
from .schedule import Do

log = logging.getLogger("threadmail.sender")

TAKEN, ON_WIRE, DONE = JobState.TAKEN, JobState.ON_WIRE, JobState.DONE
_SENT = Outcome.SENT

#: Called with the transaction of a message and its tag, as the very last thing before the write that holds the end of
#: data: on the worker's thread, with no lock of ours held. If it raises, the message is surely not sent.
BeforeFinal: TypeAlias = Callable[[Transaction, Any], object]


def note(level: int, text: str, *details: object, exc_info: bool = False) -> None:
    """Log. What a handler raises must not end the thread that has messages to settle."""
    try:
        say(log, level, text, *details, exc_info=exc_info, stacklevel=2)
    except Exception:  # noqa: BLE001 - there is nobody left to tell
        pass


class Withdrawn(BaseException):
    """Raised in the last moment before MAIL or a dial: it is not to be sent here and now. No error, so no Exception."""


class Boss(Protocol):
    """What a worker asks and tells. All but `tell` are steps under the dispatcher's lock."""

    def next(self, worker: Worker) -> Do: ...
    def may_dial(self, worker: Worker) -> bool: ...
    def dialled(self, worker: Worker, error: MailError | None) -> None: ...
    def judged(self, worker: Worker, job: Job, receipt: Receipt | None) -> bool: ...
    def resumed(self, worker: Worker, resumable: Transaction | None) -> Job | None: ...
    def refill(self, worker: Worker) -> bool: ...
    def settle_overdue(self) -> None: ...
    def announce_some(self) -> bool: ...
    def fail_queue(self) -> None: ...
    def ended(self, worker: Worker) -> None: ...
    def tell(self, job: Job) -> None: ...
    @property
    def is_paused(self) -> bool: ...
    @property
    def others_idle(self) -> bool: ...
    @property
    def dials(self) -> bool: ...


class Worker:
    """A thread with its client.

    Attributes:
        run: jobs it has taken and not begun; others may take them back.
        prefetched: jobs that were begun behind the current one, in order.
        current: the job it is about.
        finished: sent at the first attempt and told, to be counted the next time it comes by.
        left: what it is to tell of, and whoever buries it if it has not.
        connected, dialling, idle_since, begun, over: as the dispatcher last saw it, and guarded by its lock.
        asks: its thread is in `before_final`.
        wasted: it ended early, with a connection on which nothing was sent; as long as nobody has taken note.
        needed_until: how long the connection it is to make is of use to anybody.
    """

    def __init__(
        self, boss: Boss, config: ServerConfig, rng: random.Random, before_final: BeforeFinal | None = None
    ) -> None:
        self._boss = boss
        self._final_timeout = config.timeouts.final
        self.client = Client(
            config, rng=rng, watch_idle=False, before_dial=self._before_dial, after_dial=self._after_dial
        )
        self.lock = new_rlock()  # see above; re-entrant as the dispatcher's is, and for the same reason
        self.run: deque[Job] = deque()
        self.prefetched: deque[Job] = deque()
        self.current: Job | None = None
        self.finished: list[Job] = []
        self.left: list[Job] = []
        self.connected = self.dialling = self.begun = self.over = False
        self.asks = self.wasted = False
        self.buried = False  # nothing is left to be done about it
        self.idle_since = now()
        self.needed_until = Deadline()
        self._offered: Job | None = None  # what `transmit` was called for; of this thread alone
        self._letter: Envelope | None = None  # of the job that was last looked at, as it was then
        self._own_dial = False
        self._hook = before_final
        # Bound once: a closure for each message costs more than its call.
        self._claims = self._claim
        self._follows = self._follow
        self._before_final = None if before_final is None else self._ask_before_final

    def work(self) -> None:
        """Work until there is nothing to do for a while."""
        boss = self._boss
        try:
            while (task := boss.next(self)) is not Do.END:
                if task is Do.SEND:
                    self._send()
                elif task is Do.DIAL:
                    self._dial()
                elif task is Do.REST:
                    self.client.close_idle()
                elif task is Do.EXPIRE:
                    boss.settle_overdue()
                elif task is Do.ANNOUNCE:
                    boss.announce_some()
                else:
                    boss.fail_queue()
        except BaseException:  # noqa: BLE001 - the log says so, and `ended` sees to what is left
            self.wasted = self.connected and not self.client._answers
            note(logging.ERROR, "a worker ended early", exc_info=True)
        finally:
            try:
                self.client.close()
            finally:
                boss.ended(self)

    # ------------------------------------------------------------ sending

    def _send(self) -> None:
        """Work the run off."""
        boss = self._boss
        while (job := self._next_job()) is not None:
            receipt = self._transmit(job)
            if receipt is not None and receipt.outcome is _SENT and job.receipt is None:
                with self.lock:
                    job.receipt = receipt
                    job.state = DONE
                    self.finished += (job,)
                boss.tell(job)
            elif not boss.judged(self, job, receipt):
                return

    def _next_job(self) -> Job | None:
        with self.lock:
            self.current = self._offered = self._letter = None  # who is idle holds nobody's message
            if not self.prefetched:
                return self._head()
            resumable = self.client.prefetched
            job = self.prefetched[0]
            if resumable is not None and job.transaction is resumable and not job.called_off:
                self.current = job
                del self.prefetched[0]
                return job
        return self._boss.resumed(self, resumable) or self._next_job()  # nothing is left of those

    def _head(self) -> Job | None:
        """The first of the run. It stays there, to be cancelled or stolen, until its MAIL is about to be written."""
        if self._boss.is_paused:
            return None  # `next` gives the run back
        run = self.run
        while run:
            job = run[0]
            if job.state is TAKEN:
                if not job.taken_first:
                    job.taken_first = now()
                self._letter = job.envelope
                return job
            del run[0]  # somebody was interrupted while he took it out
        return None

    def _transmit(self, job: Job) -> Receipt | None:
        """One attempt. Returns its receipt, or None if it was not to be made."""
        # One that is not ours may have been stolen since it was looked at, or taken back: its transaction is another
        # worker's then, and its content gone.
        is_ours = self.current is job
        begun = job.transaction if is_ours else None
        letter = job.envelope if is_ours else self._letter
        assert letter is not None
        if begun is not None and begun is not self.client.prefetched:
            return begun.receipt()  # it was lost, and says so
        end = job.end
        if end.at != inf and begun is None and end.passed:
            return self._too_late(job)
        try:
            self._offered = job
            return self.client.transmit(
                letter,
                deadline=end,
                before_mail=self._claims,
                before_final=self._before_final,
                follow=self._follows,
                begun=begun,
            )
        except Withdrawn:
            return None
        except MailError as error:
            detach(error)
            return Receipt.after(letter, error)
        except BaseException as exc:  # noqa: BLE001 - the receipt and the log say so
            # An exception raised in this thread from outside, or a mistake of ours. The transaction knows what is true.
            name = printable(letter.message_id or "")
            note(logging.ERROR, "a worker was interrupted at message %s", name, exc_info=True)
            cause = type(exc).__name__
            return this_attempt(job, cause) if self.current is job else Receipt.not_sent(letter, _interruption(cause))

    def _too_late(self, job: Job) -> Receipt | None:
        with self.lock:
            if not self._claimed(job):
                return None
        return Receipt.not_sent(job.envelope, too_late())

    def _claim(self, transaction: Transaction) -> None:
        """The MAIL of the job on offer is about to be written: the last moment to take it back."""
        job = self._offered
        assert job is not None
        with self.lock:
            if not self._claimed(job):
                raise Withdrawn
            job.transaction = transaction

    def _claimed(self, job: Job) -> bool:
        """Begin with a job, unless it was cancelled or stolen. Under the lock."""
        if self.current is job:
            return True  # its connection went stale and was replaced
        # The place first: what became of one that is not here any more is not guarded by this lock.
        if not self.run or self.run[0] is not job or job.state is not TAKEN:
            return False
        self.current = job
        job.state = ON_WIRE
        del self.run[0]
        return True

    def _follow(self) -> Follower | None:
        """A job whose commands may leave with the content of the one on offer.

        None while another worker has nothing to do, where its deadline might pass while the one ahead is waited for,
        and where it has lost its connection that way before.
        """
        boss = self._boss
        if boss.others_idle or boss.is_paused:
            return None
        with self.lock:
            if self.prefetched and self.prefetched[0].transaction is not self.client.prefetched:
                return None  # this is another connection than theirs: they are to be seen to first
            follower = self._prefetch() if self.run else None
            if follower is None and self.run:
                return None
        if follower is None:
            if not boss.refill(self):
                return None
            with self.lock:
                follower = self._prefetch() if self.run else None
        return follower

    def _prefetch(self) -> Follower | None:
        """Have the first of the run behind the one on offer, if that is fit for it. Under the lock."""
        job, ahead = self.run[0], self._offered
        assert ahead is not None
        if job.alone or job.state is not TAKEN:
            return None
        if job.end.at != inf and job.end.at < self._last_end_ahead(ahead):
            return None
        if not job.taken_first:
            job.taken_first = now()
        follower = Follower(job.envelope, job.begun)  # here: who calls it off next lets its content go
        self.prefetched += (job,)
        job.state = ON_WIRE
        del self.run[0]
        return follower

    def _last_end_ahead(self, ahead: Job) -> float:
        if self.prefetched:
            return max(job.end.at for job in self.prefetched)
        return ahead.end.within(self._final_timeout).at

    def _ask_before_final(self, transaction: Transaction) -> None:
        assert self._hook is not None
        # No lock comes between. The current job is this thread's, and in a window nobody takes one away from behind it;
        # without one somebody may, but then it is the current one that is asked for.
        job = self.current
        if job is None or job.transaction is not transaction:
            job = next((each for each in self.prefetched if each.transaction is transaction), job)
        assert job is not None
        try:
            self.asks = True  # nobody is called back in the middle of this
            self._hook(transaction, job.tag)
        except MailError:
            raise
        except Exception as exc:
            raise MailError(f"it was held back before its last bytes: {type(exc).__name__}") from exc
        finally:
            self.asks = False

    # ------------------------------------------------------------ connecting

    def _dial(self) -> None:
        self._own_dial = True
        try:
            self.client.connect(deadline=self.needed_until)
        except MailError as error:
            self._boss.dialled(self, detach(error))
        except BaseException as exc:
            # From outside, or out of a callable that gives credentials. It counts as a failed dial: one that is raised
            # at each dial would else be asked for again by the next worker, hundreds of times a second.
            self._boss.dialled(self, ConnectFailed(f"interrupted by {type(exc).__name__}"))
            raise
        else:
            self._boss.dialled(self, None)
        finally:
            self._own_dial = False

    def _before_dial(self) -> None:
        """A connection is to be replaced in the middle of an attempt: that is a dial like any other."""
        if not self._boss.dials:
            raise Aborted("the sender is closed")  # it was so before the call began, which an `abort` then does not end
        if not self._own_dial and not self._boss.may_dial(self):
            raise Withdrawn

    def _after_dial(self, error: MailError | None) -> None:
        if not self._own_dial:
            self._boss.dialled(self, error)


def too_late() -> TimedOut:
    """The error of a message that nobody took up in time."""
    return out_of_time("the deadline passed before the message was on the wire")


def as_it_stands(job: Job) -> Receipt:
    """The receipt of a job whose worker was interrupted: what all attempts have come to, as far as is known."""
    this = this_attempt(job, "an exception")
    return this if job.receipt is None else job.receipt.followed_by(this)


def this_attempt(job: Job, cause: str) -> Receipt:
    """The receipt of an attempt that was interrupted."""
    interrupted = _interruption(cause)
    if job.transaction is None:
        return Receipt.not_sent(job.envelope, interrupted)
    receipt = job.transaction.receipt()
    if receipt.outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT) and receipt.error is None:
        job.transaction.blame(interrupted)
        receipt = job.transaction.receipt()
    return receipt


def seen_from_outside(job: Job, error: MailError) -> Receipt | None:
    """What is known of a job, also where its worker is still about it; nothing of it is changed.

    Args:
        error: what it is to say where its worker has not come to an end with it.
    """
    transaction = job.transaction
    if job.state is DONE:
        return job.receipt
    if transaction is None:
        return job.ended_by(error)
    this = transaction.receipt()
    if this.error is None and this.outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT):
        error.phase, error.outcome = this.phase, this.outcome
        this = replace(this, error=error)
        error.receipt = this
    return this if job.receipt is None else job.receipt.followed_by(this)


def _interruption(cause: str) -> MailError:
    return MailError(f"the attempt was interrupted by {cause}")


def lost_prefetched(job: Job) -> None:
    """Note in its transaction that a job lost its connection while the one ahead was seen through."""
    if job.transaction is None:
        job.transaction = Transaction(job.envelope, Terms())  # its worker was interrupted before it could begin it
    job.transaction.blame(
        Aborted("the message was called off")
        if job.called_off
        else ConnectionLost("the connection was lost before the server answered")
    )
