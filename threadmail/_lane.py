"""One thread's part in a ThreadedSender's work.

Owns what a lane does outside the dispatcher's lock, on its own thread and with its own client: dial, send, tell. What
is to be done next, and what an attempt means, the dispatcher decides. Guarantees: whatever ends an attempt, the job has
a receipt that is true; the client gets its farewell.
"""

from __future__ import annotations

import enum
import logging
import random
from collections import deque
from typing import Protocol

from ._deadline import Deadline
from ._delivery import Follower
from ._jobs import Job
from .client import Client
from .config import ServerConfig
from .errors import Aborted, Closed, ConnectionLost, MailError, Outcome, TimedOut, detach, printable
from .receipt import Receipt
from .transaction import Terms, Transaction

log = logging.getLogger("threadmail.sender")


def note(level: int, text: str, *details: object, exc_info: bool = False) -> None:
    """Log. What a handler raises must not end the thread that has messages to settle."""
    try:
        log.log(level, text, *details, exc_info=exc_info)
    except Exception:  # noqa: BLE001 - there is nobody left to tell
        pass


class Do(enum.Enum):
    """What a lane is to do when it is not to send."""

    DIAL = "connect: there is work"
    REST = "close the connection: nothing is due for a while"
    FAIL = "give the queue up: the server refuses for good"
    EXPIRE = "tell of those that waited past their deadline"
    END = "nothing is left to do"


class LaneLife(enum.Enum):
    """The life of a lane."""

    RUNNING = "running, or about to"
    OVER = "counted no more"
    BURIED = "nothing is left to be done about it"


class Withdrawn(BaseException):
    """Raised at the last moment before MAIL, when the job was cancelled meanwhile. Not an error, so no Exception."""


class Boss(Protocol):
    """What a lane asks and tells; each of these is one step under the dispatcher's lock."""

    def next(self, lane: Lane) -> Job | Do: ...
    def on_wire(self, job: Job, transaction: Transaction) -> None: ...
    def follow(self, lane: Lane, ahead: Job) -> Job | None: ...
    def judge(self, job: Job, receipt: Receipt | None) -> MailError | Receipt | None: ...
    def dialled(self, lane: Lane, error: MailError | None, *, answered: bool = True) -> list[Job]: ...
    def fail_queue(self, lane: Lane) -> list[Job]: ...
    def expire(self, lane: Lane) -> list[Job]: ...
    def ended(self, lane: Lane) -> None: ...
    def settled(self, job: Job) -> None: ...


class Lane:
    """A lane and its client.

    Attributes:
        connected: whether the client had a connection when the dispatcher last counted.
        needed_until: how long the connection it is to make is of use to anybody.
        aboard: jobs that were begun while the one the lane is about was under way, in order; changed by the dispatcher.
        finished: settled jobs whose callbacks have run, to be counted the next time.
        life: how far it has come; changed by the crew.
    """

    def __init__(self, boss: Boss, config: ServerConfig, rng: random.Random) -> None:
        self._boss = boss
        self.client = Client(config, rng=rng, watch_idle=False)
        self.connected = False
        self.needed_until = Deadline()
        self.aboard: deque[Job] = deque()
        self.finished: list[Job] = []
        self.life = LaneLife.RUNNING

    def run(self) -> None:
        """Work until there is nothing to do for a while."""
        try:
            while (task := self._boss.next(self)) is not Do.END:
                if isinstance(task, Job):
                    self._attempt(task)
                elif task is Do.DIAL:
                    self._dial()
                elif task is Do.REST:
                    self.client.close_idle()
                elif task is Do.EXPIRE:
                    self._settle(self._boss.expire(self))
                else:
                    self._settle(self._boss.fail_queue(self))
        except BaseException:  # noqa: BLE001 - the log says so, and `ended` sees to what is left
            note(logging.ERROR, "a lane ended early", exc_info=True)
        finally:
            self.client.close()
            self._boss.ended(self)

    def _attempt(self, job: Job) -> None:
        verdict = self._boss.judge(job, self._transmit(job))
        if isinstance(verdict, Receipt):
            self._settle([job])
        elif verdict is not None:
            self._dial_failed(verdict)

    def _transmit(self, job: Job) -> Receipt | None:
        """One attempt. Returns its receipt, or None if the job was withdrawn in the last moment."""
        if job.transaction is not None and job.transaction is not self.client.aboard:
            return job.transaction.receipt()  # it was lost, and says so
        if job.end.passed and job.transaction is None:
            return Receipt.not_sent(job.envelope, TimedOut("the deadline passed before the message was on the wire"))
        try:
            return self.client.transmit(
                job.envelope,
                deadline=job.end,
                before_mail=lambda transaction: self._boss.on_wire(job, transaction),
                follow=lambda: self._follow(job),
                begun=job.transaction,
            )
        except Withdrawn:
            return None
        except MailError as error:
            detach(error)
            return error.receipt or Receipt.not_sent(job.envelope, error)
        except BaseException as exc:  # noqa: BLE001 - the receipt and the log say so
            # An exception raised in this thread from outside, or a mistake of ours. The transaction knows what is true.
            name = printable(job.envelope.message_id or "")
            note(logging.ERROR, "a lane was interrupted at message %s", name, exc_info=True)
            return _this_attempt(job, type(exc).__name__)

    def _follow(self, job: Job) -> Follower | None:
        behind = self._boss.follow(self, job)
        return None if behind is None else Follower(behind.envelope, behind.begun)

    def _dial(self) -> None:
        try:
            self.client.connect(deadline=self.needed_until)
        except MailError as error:
            self._dial_failed(detach(error), answered=not self.needed_until.passed)
        except BaseException as exc:
            self._boss.dialled(self, MailError(f"interrupted by {type(exc).__name__}"), answered=False)
            raise
        else:
            self._boss.dialled(self, None)

    def _dial_failed(self, error: MailError, *, answered: bool = True) -> None:
        # One that is still dialling when the sender is closed is hung up on, which is no news.
        note(logging.INFO if isinstance(error, Aborted) else logging.WARNING, "no connection: %s", error)
        self._settle(self._boss.dialled(self, error, answered=answered))

    def _settle(self, jobs: list[Job]) -> None:
        for job in jobs:
            report(job)
            self._boss.settled(job)
            self.finished.append(job)


def report(job: Job) -> None:
    """Log a message that nobody has for sure."""
    receipt = job.receipt
    assert receipt is not None
    if receipt.outcome not in (Outcome.SENT, Outcome.PARTIAL):
        # What close() takes back it also returns; a line for each would bury the one that says how many.
        level = logging.INFO if isinstance(receipt.error, Closed) else logging.WARNING
        # The Message-ID is what its author wrote, and may hold what drives a terminal.
        note(level, "message %s: %s", printable(receipt.message_id or "without Message-ID"), receipt)


def as_it_stands(job: Job) -> Receipt:
    """The receipt of a job whose lane was interrupted: what all attempts have come to, as far as is known."""
    if job.receipt is None:
        return _this_attempt(job, "an exception")
    return job.receipt if job.transaction is None else job.receipt.followed_by(_this_attempt(job, "an exception"))


def lost_aboard(job: Job) -> None:
    """Note in its transaction that a job lost its connection while the one ahead was seen through."""
    if job.transaction is None:
        job.transaction = Transaction(job.envelope, Terms())  # a lane was interrupted before it could begin it
    job.transaction.blame(
        Aborted("the message was called off")
        if job.called_off
        else ConnectionLost("the connection was lost before the server answered")
    )


def _this_attempt(job: Job, cause: str) -> Receipt:
    interrupted = MailError(f"the attempt was interrupted by {cause}")
    if job.transaction is None:
        return Receipt.not_sent(job.envelope, interrupted)
    receipt = job.transaction.receipt()
    if receipt.outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT) and receipt.error is None:
        job.transaction.blame(interrupted)
        receipt = job.transaction.receipt()
    return receipt
