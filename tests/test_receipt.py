"""Receipts: what happened, as plain data; and what two attempts together mean."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threadmail import (
    BadReply,
    ConnectFailed,
    ConnectionLost,
    DataRefused,
    DeliveryFailed,
    Envelope,
    LoginRefused,
    MailError,
    Outcome,
    Phase,
    Receipt,
    RecipientsRefused,
    Reply,
    Report,
    RetryPolicy,
    SenderRefused,
)
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._session.sendmail import _as_given

A, B, C = "a@x.test", "b@x.test", "c@x.test"
ENVELOPE = Envelope("ann", [A], b"x\r\n")
OK, LATER, NEVER = Reply(250, b"2.1.5 OK"), Reply(450, b"4.2.1 later"), Reply(550, b"5.1.1 no such user")


def receipt(outcome: Outcome, recipients: tuple[str, ...] = (A,), **values: Any) -> Receipt:
    values.setdefault("accepted", recipients if outcome is Outcome.SENT else ())
    return Receipt(outcome, Phase.DONE, "ann@example.org", recipients, **values)


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("raw", "code", "found"),
    [
        (b"2.1.5 OK", 250, "2.1.5"),
        (b"5.1.1", 550, "5.1.1"),
        (b"4.7.100\nmore", 421, "4.7.100"),
        (b"5.1.1 no", 250, None),  # a class that contradicts the code
        (b"5.1.1.1 no", 550, None),
        (b"5.1 no", 550, None),
        (b"5.1.1x", 550, None),
        (b"no 5.1.1", 550, None),
        (b"9.1.1", 950, None),
        (b"", 550, None),
    ],
)
def test_the_enhanced_status_code_is_read_where_it_can_be_trusted(raw: bytes, code: int, found: str | None) -> None:
    """Only at the start, only well formed, only of the class of the basic code (RFC 2034 section 4)."""
    assert Reply(code, raw).enhanced == found


@pytest.mark.parametrize("code", range(200, 600, 25))
def test_the_first_digit_says_what_a_reply_is(code: int) -> None:
    """Positive, transient or permanent, and never two of them."""
    reply = Reply(code)
    assert (reply.positive, reply.transient, reply.permanent) == (code < 300, 400 <= code < 500, code >= 500)


def test_a_reply_is_printed_on_one_safe_line() -> None:
    """Lines joined, control characters shown and not obeyed; `pair` is smtplib's form."""
    reply = Reply(550, b"one\ntwo \x1b[2J \xff")
    assert str(reply) == "550 one two \\x1b[2J \\xff"
    assert reply.pair == (550, b"one\ntwo \x1b[2J \xff")
    assert str(Reply(250)) == "250"


# ---------------------------------------------------------------- receipts


def test_refused_and_deferred_recipients_are_told_apart() -> None:
    """A 4yz may be tried again, a 5yz not, an accepted one must not."""
    r = receipt(Outcome.PARTIAL, (A, B, C), accepted=(A,), replies={A: OK, B: LATER, C: NEVER})
    assert r.refused == {B: LATER, C: NEVER}
    assert r.deferred == (B,)


def test_nobody_is_deferred_while_the_message_is_in_doubt() -> None:
    """Another attempt could send it twice, so there is none by default."""
    assert receipt(Outcome.IN_DOUBT, (A, B), replies={B: LATER}).deferred == ()


@pytest.mark.parametrize("transient", [True, False])
def test_the_error_decides_for_recipients_without_a_verdict(transient: bool) -> None:
    """Nobody was refused in person: whether the message failed for now or for good decides for all."""
    error = MailError("x", transient=transient)
    r = receipt(Outcome.NOT_SENT, (A, B, C), replies={A: OK, C: NEVER}, error=error)
    assert r.deferred == ((A, B) if transient else ())


def test_who_was_put_off_is_deferred_also_where_the_content_was_refused_for_the_others() -> None:
    """He was no recipient of that transaction; but the message as it was given is not to be offered again."""
    transaction = Transaction(Envelope("ann@example.org", (A, B, C), b"Subject: x\r\n\r\nx\r\n"), Terms())
    answers = {"mail": OK, A: OK, B: LATER, C: NEVER, "data": Reply(354)}
    for command in transaction.commands():
        transaction.take(command, answers[command.recipient or command.line[:4]])
    transaction.take_final("", Reply(554, b"5.7.1 spam"))
    error = transaction.error
    assert error is not None
    r = transaction.blame(error).receipt
    assert r is not None
    assert r.outcome is Outcome.NOT_SENT
    assert not error.may_resend
    assert r.deferred == (B,)


def test_not_sent_makes_a_receipt_that_its_error_carries() -> None:
    """Also for what never became an envelope."""
    error = MailError("x", phase=Phase.CONNECT)
    r = Receipt.not_sent(Envelope("ann", [A, B], b"Message-ID: <1@x>\r\n\r\n"), error, attempts=3)
    assert error.receipt is r
    assert (r.outcome, r.phase, r.recipients, r.message_id, r.attempts) == (
        Outcome.NOT_SENT,
        Phase.CONNECT,
        (A, B),
        "<1@x>",
        3,
    )
    assert Receipt.not_sent(None, MailError("x")).recipients == ()


@pytest.mark.parametrize(
    ("outcome", "raises"),
    [(Outcome.SENT, False), (Outcome.PARTIAL, False), (Outcome.NOT_SENT, True), (Outcome.IN_DOUBT, True)],
)
def test_raise_for_failure_raises_where_nobody_surely_has_it(outcome: Outcome, raises: bool) -> None:
    """The very error of the receipt; otherwise the receipt comes back."""
    r = receipt(outcome, (A, B), accepted=(A,) if outcome is Outcome.PARTIAL else (), error=MailError("boo"))
    if raises:
        with pytest.raises(MailError) as info:
            r.raise_for_failure()
        assert info.value is r.error
    else:
        assert r.raise_for_failure() is r


def test_a_receipt_is_plain_data() -> None:
    """Frozen, equal by value, picklable, and JSON can hold what `to_dict` gives."""
    r = receipt(
        Outcome.PARTIAL, (A, B), accepted=(A,), replies={B: NEVER}, reply=OK, server="mx:25", error=MailError("x")
    )
    assert pickle.loads(pickle.dumps(r)) == r
    data = json.loads(json.dumps(r.to_dict()))
    assert (data["outcome"], data["phase"], data["refused"], data["error"]) == (
        "partial",
        "done",
        {B: "550 5.1.1 no such user"},
        "x",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.attempts = 5  # type: ignore[misc]


def test_the_text_of_a_receipt_says_why() -> None:
    """Outcome and cause on one line."""
    assert str(receipt(Outcome.NOT_SENT, error=DataRefused(554, b"5.7.1 spam\r\n"))).startswith("not sent: ")
    assert "554 5.7.1 spam" in str(receipt(Outcome.NOT_SENT, error=DataRefused(554, b"5.7.1 spam")))
    assert str(receipt(Outcome.SENT, reply=Reply(250, b"queued as 42"))) == "sent: 250 queued as 42"
    assert str(receipt(Outcome.SENT)) == "sent"


# ---------------------------------------------------------------- attempts that follow each other


def test_a_retry_of_the_deferred_completes_a_message() -> None:
    """First one recipient, then the other: sent, with both replies and both attempts counted."""
    first = receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={A: OK, B: LATER}, reply=OK)
    both = first.followed_by(receipt(Outcome.SENT, (B,), replies={B: OK}))
    assert (both.outcome, both.accepted, both.recipients, both.attempts) == (Outcome.SENT, (A, B), (A, B), 2)
    assert both.replies == {A: OK, B: OK}
    assert both.refused == {}


def test_who_was_refused_stays_so_until_an_attempt_came_to_something() -> None:
    first = receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={A: OK, B: LATER})
    lost = receipt(Outcome.NOT_SENT, (B,), replies={B: OK})  # between the 250 to his RCPT and the content
    both = first.followed_by(lost)
    assert (both.outcome, both.accepted, both.refused, both.deferred) == (Outcome.PARTIAL, (A,), {B: LATER}, (B,))
    assert both.followed_by(receipt(Outcome.SENT, (B,), replies={B: OK})).refused == {}
    assert first.followed_by(receipt(Outcome.IN_DOUBT, (B,), replies={B: OK})).refused == {}


def test_doubt_about_one_recipient_is_doubt_about_the_message() -> None:
    """A later attempt in doubt outweighs what was accepted before, and nobody is tried again."""
    first = receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={B: LATER})
    both = first.followed_by(receipt(Outcome.IN_DOUBT, (B,)))
    assert (both.outcome, both.accepted, both.deferred) == (Outcome.IN_DOUBT, (A,), ())


@pytest.mark.parametrize("reply", [LATER, NEVER, None])
def test_doubt_is_not_lifted_by_a_later_refusal(reply: Reply | None) -> None:
    """The first attempt may have delivered it (`resend_in_doubt`): that the second did not proves nothing."""
    first = receipt(Outcome.IN_DOUBT, (A, B), replies={B: NEVER})
    second = receipt(Outcome.NOT_SENT, (A,), replies={A: reply} if reply else {}, error=MailError("x"))
    assert first.followed_by(second).outcome is Outcome.IN_DOUBT
    assert first.followed_by(second).followed_by(second).outcome is Outcome.IN_DOUBT


def test_doubt_is_lifted_by_a_later_acceptance() -> None:
    """Whoever was in doubt has it for sure now; whoever was refused at the time was never in doubt."""
    first = receipt(Outcome.IN_DOUBT, (A, B), replies={B: NEVER})
    assert first.followed_by(receipt(Outcome.SENT, (A,))).outcome is Outcome.PARTIAL
    first = receipt(Outcome.IN_DOUBT, (A, B))
    assert first.followed_by(receipt(Outcome.SENT, (A, B))).outcome is Outcome.SENT
    assert (
        first.followed_by(receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={B: NEVER})).outcome
        is Outcome.IN_DOUBT
    )


EVERYBODY = (A, B, C)
Fate = dict[str, Reply]


@st.composite
def attempts(draw: st.DrawFn) -> list[Receipt]:
    """Attempts as a retrying sender makes them: each for those whom the ones before left deferred."""
    found: list[Receipt] = []
    pending: tuple[str, ...] = EVERYBODY
    while pending and len(found) < 4:
        replies = {r: draw(st.sampled_from([OK, LATER, NEVER])) for r in pending}
        accepted = tuple(r for r in pending if replies[r] is OK)
        outcome = Outcome.SENT if accepted == pending else Outcome.PARTIAL if accepted else Outcome.NOT_SENT
        if accepted and draw(st.integers(0, 9)) == 0:
            outcome, accepted = Outcome.IN_DOUBT, ()
        found.append(receipt(outcome, pending, accepted=accepted, replies=replies))
        pending = found[-1].deferred
    return found


@given(attempts())
def test_the_algebra_of_attempts(parts: list[Receipt]) -> None:
    """Whatever the attempts: nobody is both accepted and to be tried, counts add up, and grouping does not matter."""
    total = parts[0]
    for part in parts[1:]:
        total = total.followed_by(part)
    assert total.recipients == EVERYBODY
    assert total.attempts == len(parts)
    assert set(total.accepted) == {r for part in parts for r in part.accepted}
    assert len(total.accepted) == len(set(total.accepted))
    assert not set(total.accepted) & {*total.deferred, *total.refused}
    assert total.deferred == parts[-1].deferred
    assert (total.outcome is Outcome.SENT) == (set(total.accepted) == set(EVERYBODY))
    assert (total.outcome is Outcome.IN_DOUBT) == any(part.outcome is Outcome.IN_DOUBT for part in parts)
    if len(parts) >= 3:
        first, second, third = parts[:3]
        assert first.followed_by(second.followed_by(third)) == first.followed_by(second).followed_by(third)


# ---------------------------------------------------------------- what is raised for a message


def test_a_message_that_somebody_has_is_no_error_after_retries_either() -> None:
    """One accepted, the other put off and then refused: PARTIAL, and `error` is None as for a first attempt."""
    first = receipt(Outcome.PARTIAL, (A, B), accepted=(A,), replies={A: OK, B: LATER})
    gone = RecipientsRefused({B: NEVER.pair})
    second = Receipt(Outcome.NOT_SENT, Phase.RCPT, "ann@example.org", (B,), replies={B: NEVER}, error=gone)
    gone.receipt = second
    both = first.followed_by(second)
    assert (both.outcome, both.error, both.failure(), both.phase) == (Outcome.PARTIAL, None, None, Phase.DONE)
    assert both.raise_for_failure() is both
    assert gone.receipt is second, "another attempt's error was changed"


def test_in_doubt_first_and_refused_second_is_an_error_in_doubt() -> None:
    """What is raised says what the message is, not what its last attempt was: another try may send it twice."""
    lost = ConnectionLost("lost", phase=Phase.FINAL)
    lost.outcome = Outcome.IN_DOUBT
    first = Receipt(Outcome.IN_DOUBT, Phase.FINAL, "ann@example.org", (A, B), error=lost)
    lost.receipt = first
    no = SenderRefused(550, b"no", "ann@example.org")
    both = first.followed_by(Receipt.not_sent(None, no, attempts=1))
    with pytest.raises(MailError) as info:
        both.raise_for_failure()
    error = info.value
    assert (error.outcome, error.phase, error.receipt) == (Outcome.IN_DOUBT, Phase.FINAL, both)
    assert error.receipt is both
    assert both.attempts == 2
    assert not error.may_resend
    assert (lost.receipt, no.outcome) == (first, Outcome.NOT_SENT), "another attempt's error was changed"


def test_the_error_of_the_last_attempt_carries_all_attempts() -> None:
    """Put off three times: the error that is raised tells of three attempts and of all recipients."""
    total = receipt(Outcome.NOT_SENT, (A, B), replies={A: LATER, B: NEVER}, error=RecipientsRefused({A: LATER.pair}))
    for _ in range(2):
        cause = OSError("network is down")
        later = ConnectionLost("lost", phase=Phase.MAIL)
        later.__cause__ = cause
        total = total.followed_by(Receipt.not_sent(None, later, attempts=1))
    error = total.failure()
    assert type(error) is ConnectionLost
    assert error.__cause__ is cause
    assert error.receipt is total
    assert (total.attempts, total.recipients, total.refused) == (3, (A, B), {A: LATER, B: NEVER})
    assert error.may_resend


def test_one_error_told_of_two_messages_stays_that_of_the_first() -> None:
    """A dead server fails many: each receipt has an error of its own."""
    error = ConnectFailed("dead")
    one = Receipt.not_sent(ENVELOPE, error)
    two = Receipt.not_sent(Envelope("ann", [B], b"x"), error)
    assert error.receipt is one
    assert one.error is error
    assert two.error is not error
    assert two.error is not None
    assert two.error.receipt is two


def test_a_raised_error_is_the_messages_own_whoever_gave_it() -> None:
    """A receipt made by hand of somebody else's error: what is raised says what this receipt says."""
    lent = ConnectFailed("dead")
    lent.receipt = receipt(Outcome.NOT_SENT, (C,))
    mine = receipt(Outcome.IN_DOUBT, (A,), error=lent)
    error = mine.failure()
    assert error is not None
    assert error.receipt is mine
    assert error.outcome is Outcome.IN_DOUBT
    assert lent.outcome is Outcome.NOT_SENT


def test_a_tag_comes_along_and_compares_as_nothing() -> None:
    tagged = Receipt.not_sent(ENVELOPE, MailError("x"), tag="order 7")
    assert tagged.tag == "order 7"
    assert tagged == dataclasses.replace(tagged, tag=None)
    assert tagged.followed_by(receipt(Outcome.SENT, (A,))).tag == "order 7"
    assert receipt(Outcome.NOT_SENT).tag is None
    odd = dataclasses.replace(tagged, tag=object())
    assert json.loads(json.dumps(odd.to_dict()))["tag"] is None


# ---------------------------------------------------------------- work in proportion


class Counted(str):
    """A recipient; looks at it are counted."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Counted.looks += 1
        return str.__hash__(self)


def looks(work: Callable[[], object]) -> int:
    Counted.looks = 0
    work()
    return Counted.looks


def half_deferred(n: int) -> tuple[tuple[Counted, ...], Receipt]:
    recipients = tuple(Counted(f"r{i}@x.test") for i in range(n))
    replies: dict[str, Reply] = {r: LATER if i % 2 else OK for i, r in enumerate(recipients)}
    return recipients, receipt(Outcome.PARTIAL, recipients, accepted=recipients[::2], replies=replies)


def again(r: Receipt) -> Receipt:
    put_off = r.recipients[1::2]
    return r.followed_by(receipt(Outcome.PARTIAL, put_off, accepted=put_off[::2], replies=dict.fromkeys(put_off, OK)))


WORK: dict[str, Callable[[tuple[Counted, ...], Receipt], object]] = {
    "refused": lambda _, r: r.refused,
    "deferred": lambda _, r: r.deferred,
    "followed_by": lambda _, r: again(r),
    "followed_by, in doubt": lambda _, r: again(dataclasses.replace(r, outcome=Outcome.IN_DOUBT)),
    "to_dict": lambda _, r: r.to_dict(),
    "next attempt": lambda _, r: RetryPolicy().recipients(r),
    "next attempt, in doubt": lambda _, r: RetryPolicy(resend_in_doubt=True).recipients(
        dataclasses.replace(r, outcome=Outcome.IN_DOUBT)
    ),
    "as given": lambda rs, r: _as_given({name: reply.pair for name, reply in r.refused.items()}, list(rs)),
    "transaction": lambda rs, _: transaction(rs, lmtp=False),
    "transaction, LMTP": lambda rs, _: transaction(rs, lmtp=True),
}


def transaction(recipients: tuple[Counted, ...], *, lmtp: bool) -> Receipt:
    """A whole transaction in which every second recipient is put off."""
    to = Envelope("ann", ["x@x.test"], b"x\r\n")
    to.__dict__["recipients"] = recipients
    t = Transaction(to, Terms({"pipelining": ""}, lmtp=lmtp))
    for i, command in enumerate(t.commands()):
        data = command.phase is Phase.DATA
        t.take(command, Reply(354) if data else LATER if i % 2 and command.recipient else OK)
    for recipient in t.awaited:
        t.take_final(recipient, OK)
    return t.receipt()


@pytest.mark.parametrize("name", WORK)
def test_the_work_grows_with_the_recipients_and_no_faster(name: str) -> None:
    """Looks at recipients are counted: four times as many take at most about four times as much."""
    few, many = (looks(partial(WORK[name], *half_deferred(n))) for n in (100, 400))
    assert few > 0
    assert many < 5 * few
    assert many < 400 * 20


# ---------------------------------------------------------------- written down and read back


def texts(**settings: Any) -> st.SearchStrategy[str]:
    return st.text(st.characters(blacklist_categories=["Cs"]), max_size=10, **settings)


REPLIES = st.builds(Reply, st.integers(200, 599), st.binary(max_size=12))
ERRORS = st.one_of(
    st.builds(ConnectionLost, texts(), phase=st.sampled_from(Phase)),
    st.builds(ConnectFailed, texts(), errno=st.none() | st.integers(1, 200), transient=st.booleans()),
    st.builds(SenderRefused, st.integers(400, 599), st.binary(max_size=9), texts()),
    st.builds(LoginRefused, st.integers(400, 599), st.binary(max_size=9)),
    st.builds(BadReply, texts()),
    st.builds(
        RecipientsRefused,
        st.dictionaries(texts(), st.tuples(st.integers(400, 599), st.binary(max_size=9)), min_size=1, max_size=3),
    ),
)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    recipients = tuple(draw(st.lists(texts(), min_size=1, max_size=4, unique=True)))
    outcome = draw(st.sampled_from(Outcome))
    failed = outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT)
    error = draw(ERRORS) if failed else None
    if error is not None:
        error.deadline_passed = draw(st.booleans())
    r = Receipt(
        outcome,
        draw(st.none() | st.sampled_from(Phase)),
        draw(texts()),
        recipients,
        draw(st.none() | texts()),
        tuple(draw(st.lists(st.sampled_from(recipients), unique=True))),
        draw(st.dictionaries(st.sampled_from(recipients), REPLIES)),
        draw(st.none() | REPLIES),
        error,
        draw(st.integers(0, 9)),
        draw(texts()),
        draw(st.none() | texts() | st.integers()),
    )
    if error is not None:
        error.receipt, error.outcome = r, outcome
    return r


@settings(deadline=None)
@given(receipts())
def test_a_receipt_comes_back_from_json(r: Receipt) -> None:
    """from_dict(to_dict(r)) is r, its error and its tag included, whatever the server said."""
    back = Receipt.from_dict(json.loads(json.dumps(r.to_dict())))
    assert back == r
    assert back.tag == r.tag
    assert (back.refused, back.deferred) == (r.refused, r.deferred)
    assert type(back.error) is type(r.error)
    if r.error is not None:
        assert back.error is not None
        assert (str(back.error), back.error.args) == (str(r.error), r.error.args)
        for name in ("phase", "transient", "outcome", "deadline_passed", "may_resend", "errno"):
            assert getattr(back.error, name, None) == getattr(r.error, name, None), name
        assert back.error.receipt is back


def test_what_earlier_versions_wrote_is_read_as_well() -> None:
    """They wrote no bytes, and of the error its text only."""
    old = {
        "outcome": "not sent",
        "phase": "rcpt",
        "sender": "ann@example.org",
        "recipients": [A, B],
        "message_id": None,
        "accepted": [],
        "refused": {B: "550 5.1.1 no such user"},
        "reply": "250 2.0.0 OK",
        "error": "the connection was lost",
        "transient": True,
        "attempts": 2,
        "server": "mx:25",
    }
    r = Receipt.from_dict(old)
    assert r.refused == {B: NEVER}
    assert r.deferred == (A,)
    assert r.reply == Reply(250, b"2.0.0 OK")
    assert r.error is not None
    assert (str(r.error), r.error.phase, r.error.receipt) == ("the connection was lost", Phase.RCPT, r)
    assert Receipt.from_dict({**old, "error": None, "reply": None, "refused": {}, "phase": None}).error is None


@pytest.mark.parametrize(
    "change", [{"outcome": "odd"}, {"refused": None}, {"reply": "x"}, {"recipients": 3}, {"failure": {"class": "x"}}]
)
def test_what_is_no_receipt_is_refused(change: dict[str, Any]) -> None:
    data = {**receipt(Outcome.NOT_SENT, error=MailError("x")).to_dict(), "replies": {}, **change}
    data.pop("replies") if "refused" in change else None
    data.pop("final_reply") if "reply" in change else None
    with pytest.raises(ValueError, match="no receipt"):
        Receipt.from_dict(data)
    with pytest.raises(ValueError, match="no receipt"):
        Receipt.from_dict({})


# ---------------------------------------------------------------- reports


def test_a_report_is_a_sequence_of_receipts() -> None:
    """In order, sliceable, comparable; with every outcome counted and the failures picked out."""
    receipts = [receipt(o) for o in (Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT, Outcome.IN_DOUBT)]
    report = Report(iter(receipts))
    assert list(report) == receipts
    assert (len(report), report[1], report[-1]) == (4, receipts[1], receipts[3])
    assert report[1:3] == Report(receipts[1:3])
    assert report.counts() == {Outcome.SENT: 2, Outcome.PARTIAL: 0, Outcome.NOT_SENT: 1, Outcome.IN_DOUBT: 1}
    assert report.failures == (receipts[1], receipts[3])
    assert str(report) == "4 messages: 2 sent, 1 not sent, 1 in doubt"
    assert str(Report()) == "no messages"
    assert str(Report(receipts[:1])).startswith("1 message: 1 ")
    assert str(Report(receipts[:2])).startswith("2 messages: ")
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_report_raises_for_its_failures_or_not_at_all() -> None:
    """DeliveryFailed carries the report and names the first failure; a clean report comes back."""
    clean = Report([receipt(Outcome.SENT)])
    assert clean.raise_for_failures() is clean
    assert Report().raise_for_failures() == Report()
    mixed = Report([receipt(Outcome.SENT), receipt(Outcome.PARTIAL, (A, B), accepted=(A,))])
    with pytest.raises(DeliveryFailed, match="2 messages: 1 sent, 1 partial; the first: partial") as info:
        mixed.raise_for_failures()
    assert info.value.report is mixed


def ended(outcome: Outcome, *, transient: bool = True) -> Receipt:
    """A receipt of one message, with its error where somebody is told of one."""
    error = MailError("it failed", transient=transient)
    error.outcome = outcome
    return receipt(outcome, error=error if outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT) else None)


@pytest.mark.parametrize("outcomes", list(itertools.product(Outcome, repeat=3)), ids=str)
def test_the_error_of_a_batch_says_what_became_of_all_of_it(outcomes: tuple[Outcome, ...]) -> None:
    """Who looks at `outcome` before he sends the batch again makes no second copy: NOT_SENT is surely nobody."""
    error = DeliveryFailed("it went wrong", Report([ended(outcome) for outcome in outcomes]))
    if Outcome.IN_DOUBT in outcomes:
        assert error.outcome is Outcome.IN_DOUBT
    elif set(outcomes) == {Outcome.NOT_SENT}:
        assert error.outcome is Outcome.NOT_SENT
    else:
        assert error.outcome is Outcome.PARTIAL
    assert error.may_resend is (set(outcomes) == {Outcome.NOT_SENT})
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (again.outcome, again.may_resend, again.report) == (error.outcome, error.may_resend, error.report)
    told = MailError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert (told.outcome, told.transient, told.may_resend) == (error.outcome, error.transient, error.may_resend)


def test_a_batch_may_be_sent_again_only_where_each_of_its_messages_may() -> None:
    """What the server refused for good would only be refused once more."""
    passing, final = ended(Outcome.NOT_SENT), ended(Outcome.NOT_SENT, transient=False)
    for receipts, may in (([passing], True), ([passing, final], False), ([final], False), ([], False)):
        error = DeliveryFailed("it went wrong", Report(receipts))
        assert (error.outcome, error.transient, error.may_resend) == (Outcome.NOT_SENT, may, may)
    with pytest.raises(DeliveryFailed) as caught:
        Report([passing, ended(Outcome.SENT)]).raise_for_failures()
    assert caught.value.outcome is Outcome.PARTIAL
    assert (caught.value.phase, caught.value.receipt, caught.value.deadline_passed) == (None, None, False)
