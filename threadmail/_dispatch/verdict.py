"""What an attempt means, for its message and for the server.

Owns `judge`, a pure function: time and chance are arguments. Its work grows with the recipients of a message, so it is
done before any lock is taken; what is left to do under the lock is to change a few states by it.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from ..envelope import Envelope
from ..errors import (
    CLOSING,
    CONNECTING,
    Aborted,
    BadReply,
    ConnectionLost,
    MailError,
    Outcome,
    Phase,
    RecipientsRefused,
    ReplyError,
)
from ..receipt import Receipt
from ..retry import RetryPolicy
from .job import Job
from .limits import NO_SIGNS, Signs, read_signs


class Verdict(NamedTuple):
    """What follows from an attempt.

    Attributes:
        receipt: of all attempts so far; where there was no session, of this one alone.
        again: what another attempt is to send, and to whom; None: this was the last one.
        at: when that may begin, on the monotonic clock.
        signs: what the server said of itself.
        sent: this attempt was accepted for everybody it was made for.
        made: it was an attempt: a connection was handed the message.
        no_session: there was none to try it in, which says nothing about the message, and was no attempt.
        answered: the server answered a MAIL.
        lost: why it took the session back instead; None where it did not.
    """

    receipt: Receipt
    again: Envelope | None = None
    at: float = 0.0
    signs: Signs = NO_SIGNS
    sent: bool = False
    made: bool = True
    no_session: bool = False
    answered: bool = False
    lost: MailError | None = None


def judge(job: Job, receipt: Receipt, policy: RetryPolicy, rng: random.Random, now: float) -> Verdict:
    """Draw the conclusions from one attempt.

    Args:
        receipt: of this attempt alone.
        now: when it ended, on the monotonic clock.
    """
    error = receipt.error
    if receipt.outcome is Outcome.NOT_SENT and receipt.phase in CONNECTING:
        # The job is not looked at: it may be somebody else's by now, for it was not begun.
        return Verdict(receipt, made=False, no_session=True)
    so_far = job.receipt
    merged = receipt if so_far is None else so_far.followed_by(receipt)
    signs = read_signs(receipt)
    lost = error if _session_lost(receipt, error) else None
    again, pause = _again(job, merged, signs, policy, rng, now)
    return Verdict(
        merged,
        again,
        now + pause,
        signs,
        sent=receipt.outcome is Outcome.SENT,
        made=receipt.attempts > 0,
        answered=lost is None and _answered(receipt, error),
        lost=lost,
    )


def _again(
    job: Job, merged: Receipt, signs: Signs, policy: RetryPolicy, rng: random.Random, now: float
) -> tuple[Envelope | None, float]:
    if merged.outcome is Outcome.SENT:
        return None, 0.0
    pause = policy.next_attempt(merged, now - job.taken_first, rng, spared=job.spared + signs.spares)
    if pause is None or now + pause >= job.end.at:
        return None, 0.0
    return job.envelope.for_recipients(policy.recipients(merged)), pause


def _session_lost(receipt: Receipt, error: MailError | None) -> bool:
    """Whether the server let us in and then took the session back before it answered a MAIL with anything else.

    A client replaces a kept connection that has gone stale by itself: what it tells is of a new one.
    """
    if receipt.outcome is not Outcome.NOT_SENT or receipt.phase is not Phase.MAIL or error is None:
        return False
    if isinstance(error, Aborted) or error.deadline_passed or error._of_hook:
        return False
    return isinstance(error, (ConnectionLost, BadReply)) or getattr(error, "smtp_code", 0) == CLOSING


def _answered(receipt: Receipt, error: MailError | None) -> bool:
    if receipt.outcome is not Outcome.NOT_SENT:
        return True
    if receipt.phase in (Phase.RCPT, Phase.DATA, Phase.CONTENT, Phase.FINAL, Phase.DONE):
        return True
    if error is None or error._of_hook:
        return False
    return isinstance(error, (ReplyError, RecipientsRefused)) and not isinstance(error, BadReply)
