"""What a receipt decides, each decision at its boundaries: what two attempts come to together."""

from __future__ import annotations

from threadmail import Outcome, Phase, Receipt
from threadmail.receipt import Reply

A, B = "a@example.net", "b@example.net"
TAKEN, FULL, LATER = Reply(250, b"2.0.0 queued as 17"), Reply(452, b"4.3.1 full"), Reply(451, b"4.2.1 later")


def partly(reply: Reply) -> Receipt:
    return Receipt(Outcome.PARTIAL, Phase.DONE, "s@example.org", (A, B), None, (A,), {B: LATER}, reply)


def rest(outcome: Outcome, reply: Reply | None, *accepted: str) -> Receipt:
    return Receipt(outcome, Phase.DONE, "s@example.org", (B,), None, accepted, {}, reply)


def test_the_reply_of_a_message_that_somebody_has_is_the_one_that_accepted_it() -> None:
    """The later attempt for the rest was refused at the end of data: the queue id is still the first one's."""
    merged = partly(TAKEN).followed_by(rest(Outcome.NOT_SENT, FULL))
    assert (merged.outcome, merged.accepted, merged.reply) == (Outcome.PARTIAL, (A,), TAKEN)


def test_of_two_acceptances_the_reply_is_the_later_one() -> None:
    again = Reply(250, b"2.0.0 queued as 18")
    assert partly(TAKEN).followed_by(rest(Outcome.SENT, again, B)).reply == again


def test_of_two_refusals_the_reply_is_the_later_one() -> None:
    nobody = Receipt(Outcome.NOT_SENT, Phase.DONE, "s@example.org", (A, B), None, (), {}, FULL)
    assert nobody.followed_by(rest(Outcome.NOT_SENT, LATER)).reply == LATER
    assert nobody.followed_by(rest(Outcome.NOT_SENT, None)).reply == FULL
