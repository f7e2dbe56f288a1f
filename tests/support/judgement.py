"""What every judge holds against what a sender was told: the one piece that all of them have in common.

They are the oracle of the proof, the ledgers of soak, kill and storm, and the tally of cuts.

Owns the rules: who must have a message how often, whose words a receipt may quote, what an error may say of itself,
how many doubts faults can explain, what share must be sent. Pure. Imports nothing of what is judged: outcomes are
compared by their values, so that a mutant's classes are judged as well as the real ones.

Leaves to each judge how the evidence is got, and how a complaint is worded.
"""

from __future__ import annotations

import enum
import smtplib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

SENT: Final = "sent"
PARTIAL: Final = "partial"
NOT_SENT: Final = "not sent"
IN_DOUBT: Final = "in doubt"


class Kind(enum.Enum):
    """What a wrong number of copies means for who relies on what he was told."""

    LOST = "lost"  # told that the recipient has it, and he has not
    TWICE = "twice"  # more often than anybody allowed
    FALSE = "false"  # he has it, though told that he surely has not


class Miscount(NamedTuple):
    kind: Kind
    recipient: str
    copies: int


def miscounts(
    recipients: Collection[str],
    outcome: str,
    refused: Collection[str],
    copies: Mapping[str, int],
    *,
    accepted: Collection[str] | None = None,
    most: int = 1,
) -> Iterator[Miscount]:
    """Each recipient who has a message more or less often than its sender was told.

    Args:
        outcome: SENT, PARTIAL, NOT_SENT or IN_DOUBT, as a word.
        refused: those who surely do not have it, and why is known.
        copies: how often each has it.
        accepted: those who surely have it; None: all that were not refused, where the outcome is SENT or PARTIAL.
        most: copies that the user allowed (2 where what is in doubt may be sent once more).
    """
    if accepted is None:
        accepted = [name for name in recipients if name not in refused] if outcome in (SENT, PARTIAL) else []
    for name in recipients:
        number = copies.get(name, 0)
        if number > most:
            yield Miscount(Kind.TWICE, name, number)
        elif name in accepted:
            if number == 0:
                yield Miscount(Kind.LOST, name, number)
        elif number and (name in refused or outcome != IN_DOUBT):
            yield Miscount(Kind.FALSE, name, number)


WITHOUT_REPLY: Final = "sent without the server's reply"
FOREIGN_REPLY: Final = "receipt with another message's reply"
FOREIGN_REFUSAL: Final = "receipt with another recipient's reply"


def misquotes(outcome: str, reply: str | None, said: Collection[str]) -> Iterator[str]:
    """Whether the final reply in a receipt is one of those that the server gave to this message.

    Args:
        reply: as the sender has it; "": he was told of none; None: this way to send does not tell.
        said: what must be found in it, one of these: the server's replies, or the ids in them. Empty: nobody knows.
    """
    if reply is None or outcome not in (SENT, PARTIAL):
        return
    if not reply:
        yield WITHOUT_REPLY
    elif said and not any(words in reply for words in said):
        yield FOREIGN_REPLY


# ---------------------------------------------------------------- what receipts and errors say of themselves


def of_receipt(receipt: Any) -> Iterator[str]:
    """Where a receipt contradicts itself."""
    outcome, accepted, everybody = receipt.outcome.value, set(receipt.accepted), set(receipt.recipients)
    refused = set(receipt.refused)
    if accepted - everybody or refused - everybody:
        yield "receipt names recipients the message has not"
    if accepted & refused:
        yield "receipt has a recipient both accepted and refused"
    holds = {
        SENT: accepted == everybody,
        PARTIAL: bool(accepted) and accepted != everybody,
        NOT_SENT: not accepted,
        IN_DOUBT: accepted != everybody or not everybody,
    }[outcome]
    if not holds:
        yield f"receipt says {outcome}, and accepted does not fit"
    if outcome in (NOT_SENT, IN_DOUBT) and receipt.error is None:
        yield f"receipt says {outcome}, and no error why"
    if outcome in (SENT, PARTIAL) and not (receipt.reply is not None and receipt.reply.positive):
        yield WITHOUT_REPLY


def of_error(error: Any, *, receipt_due: bool = True) -> Iterator[str]:
    """Where an error that was raised for a message contradicts itself, or the receipt that it carries.

    Args:
        receipt_due: the message was handed in, so that there must be one. There must be for any that is in doubt.
    """
    if not isinstance(error, smtplib.SMTPException):
        yield f"{type(error).__name__} is no error of ours"
        return
    name, outcome, receipt = type(error).__name__, error.outcome.value, error.receipt  # type: ignore[attr-defined]
    if outcome not in (NOT_SENT, IN_DOUBT):
        yield f"{name} was raised for a message that is {outcome}"
    if error.may_resend and (outcome != NOT_SENT or not error.transient):  # type: ignore[attr-defined]
        yield f"{name} may be sent again, it says, and is {outcome}"
    if error.transient and outcome == NOT_SENT and not error.may_resend:  # type: ignore[attr-defined]
        yield f"{name} may not be sent again, it says, and is surely not sent and transient"
    if receipt is None:
        if receipt_due or outcome == IN_DOUBT:
            yield f"{name} carries no receipt"
        return
    yield from of_receipt(receipt)
    if receipt.outcome.value != outcome:
        yield f"{name} says {outcome}, its receipt {receipt.outcome.value}"
    if type(receipt.error) is not type(error):
        yield f"{name} was raised, and its receipt names {type(receipt.error).__name__}"
    if outcome == IN_DOUBT and receipt.attempts == 1 and getattr(error.phase, "value", None) != "final":  # type: ignore[attr-defined]
        yield f"{name} is in doubt before the end of data"
    if isinstance(error, smtplib.SMTPRecipientsRefused) and set(error.recipients) - set(receipt.refused):
        yield f"{name} names recipients that its receipt does not"


# ---------------------------------------------------------------- of many messages


def unheard(told: Collection[str], heard: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Messages of which the callback was not told exactly once, though each is told by future and by callback.

    Args:
        told: the names of those whose fate is known.
        heard: how often the callback was called for each.
    """
    for name in told:
        if heard.get(name, 0) != 1:
            yield name, heard.get(name, 0)


def unexplained(doubts: int, faults: int) -> Iterator[str]:
    """A doubt needs a fault that explains it.

    Args:
        faults: how many messages can have been left in doubt by what was done to their connections.
    """
    if doubts > faults:
        yield f"{doubts} in doubt, and no more than {faults} can be by what was done to their connections"


def too_few(outcomes: Mapping[str, int], floor: float, least: int = 1) -> Iterator[str]:
    """Of a product that sends nothing nothing is false either; so some share must have been sent.

    Args:
        outcomes: how many messages came to each.
        floor: the share of all that must be SENT or PARTIAL.
        least: messages that there must be at all.
    """
    total = sum(outcomes.values())
    sent = outcomes.get(SENT, 0) + outcomes.get(PARTIAL, 0)
    if total < least:
        yield f"empty: {total} messages, and at least {least} are needed to say anything"
    elif sent < floor * total:
        yield f"too few sent: {sent} of {total}, and at least {floor:.0%} can be"


def counted(copies: Collection[tuple[str, Collection[str]]]) -> Counter[tuple[str, str]]:
    """How often each recipient has each message, from the copies: a name and its recipients each."""
    return Counter((name, recipient) for name, recipients in copies for recipient in recipients)
