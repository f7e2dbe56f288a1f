"""What each reply means for a message, each decision at its boundaries. No wire: replies are given in turn."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.dialogue import CONTENT, A, B, C, envelope
from threadmail import Envelope, MessageTooLarge, NotSupported, Outcome, Phase
from threadmail._protocol.transaction import Command, Terms, Transaction
from threadmail.errors import BadReply, ConnectionLost, DataRefused, InvalidEnvelope, RecipientsRefused, SenderRefused
from threadmail.receipt import Reply

OK, GO, LATER, NEVER_SO = (
    Reply(250, b"2.0.0 ok"),
    Reply(354, b"go"),
    Reply(451, b"4.2.1 later"),
    Reply(550, b"5.1.1 no"),
)
CLOSING = Reply(421, b"4.3.2 closing")


def told(
    *replies: Reply, recipients: tuple[str, ...] = (A, B, C), phase: Phase | None = None, **terms: Any
) -> Transaction:
    """A transaction whose commands were answered in turn, as far as that goes.

    Args:
        phase: where it stands from then on.
    """
    transaction = Transaction(envelope(*recipients), Terms(**terms))
    for command, reply in zip(transaction.commands(), replies, strict=False):
        transaction.phase = phase or command.phase
        transaction.take(command, reply)
    return transaction


def ended(*finals: Reply, at_rcpt: tuple[Reply, ...] = (OK, OK, OK), **terms: Any) -> Transaction:
    """... and whose content was answered."""
    transaction = told(OK, *at_rcpt, GO, **terms)
    transaction.phase = Phase.FINAL
    for recipient, reply in zip(transaction.awaited, finals, strict=False):
        transaction.take_final(recipient, reply)
    return transaction


# A new one ------------------------------------------------------------------------------------------------------------


def test_by_default_nothing_is_asked_for() -> None:
    terms = Terms()
    assert (terms.lmtp, terms.all_or_nothing, terms.window, terms.server) == (False, False, 1, "")


def test_terms_are_the_same_whatever_the_server_has_shown_since() -> None:
    assert Terms(server="mx:25") == Terms(server="mx:25")


def test_a_new_one_has_come_to_nothing() -> None:
    transaction = Transaction(envelope(), Terms(server="mx:25"))
    assert (transaction.phase, transaction.error, transaction.content_due) == (Phase.MAIL, None, False)
    assert not transaction.refused_by_all
    receipt = transaction.receipt()
    assert (receipt.outcome, receipt.phase, receipt.accepted, receipt.attempts) == (
        Outcome.NOT_SENT,
        Phase.MAIL,
        (),
        1,
    )
    assert (receipt.server, receipt.reply, receipt.error) == ("mx:25", None, None)


# Commands -------------------------------------------------------------------------------------------------------------


def commands(e: Envelope, **terms: Any) -> list[Command]:
    return Transaction(e, Terms(**terms)).commands()


def test_a_mail_a_rcpt_for_each_and_data() -> None:
    found = commands(envelope(A, B))
    assert [(command.phase, command.recipient) for command in found] == [
        (Phase.MAIL, None),
        (Phase.RCPT, A),
        (Phase.RCPT, B),
        (Phase.DATA, None),
    ]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("offered", "parameter"), [("20", " size=20"), ("21", " size=20"), ("0", " size=20"), ("1", None), ("19", None)]
)
def test_a_size_is_told_and_held_against_the_limit(offered: str, parameter: str | None, asked: bool) -> None:
    """In the same way whether the message needs anything else or not."""
    terms: dict[str, Any] = {"extensions": {"size": offered}, "mail_options": ["X=Y"] * asked}
    assert len(CONTENT) == 20
    if parameter is None:
        with pytest.raises(MessageTooLarge) as info:
            commands(envelope(), **terms)
        assert info.value.smtp_code == 552
        assert info.value.smtp_error == b"5.3.4 the message has 20 octets and the server takes " + offered.encode()
        assert not info.value.transient
        assert str(info.value) == f"the message has 20 octets and the server takes {offered}"
    else:
        assert commands(envelope(), **terms)[0].line == f"mail from:<ann@example.org>{parameter}{' X=Y' * asked}"


def test_an_empty_content_has_no_size_that_is_too_large() -> None:
    assert commands(envelope(content=b""), extensions={"size": "0"})[0].line.endswith(" size=0")


@pytest.mark.parametrize("digits", [20, 21])
def test_a_number_of_more_than_twenty_digits_is_no_limit(digits: int) -> None:
    """Nor is one of twenty in practice."""
    assert commands(envelope(), extensions={"size": "9" * digits})[0].line.endswith(" size=20")
    small = "0" * (digits - 1) + "1"
    if digits == 20:
        with pytest.raises(MessageTooLarge):
            commands(envelope(), extensions={"size": small})
    else:
        assert commands(envelope(), extensions={"size": small})


EIGHT = CONTENT + b"\xff"
BEYOND = "j\u00fcrgen@example.org"
EVERYTHING = {"size": "", "8bitmime": "", "smtputf8": ""}


@pytest.mark.parametrize(
    ("offers", "asked", "sender", "content", "line"),
    [
        ({"8bitmime": ""}, [], A, EIGHT, " BODY=8BITMIME"),
        ({"8bitmime": ""}, [], A, CONTENT, ""),
        ({"8bitmime": ""}, ["body=8bitmime"], A, EIGHT, " body=8bitmime"),
        ({"dsn": ""}, ["body=8bitmime"], A, EIGHT, " body=8bitmime"),
        ({"dsn": ""}, ["ret=hdrs"], A, EIGHT, " ret=hdrs"),
        ({"dsn": ""}, ["ret=hdrs"], A, CONTENT, " ret=hdrs"),
        ({"smtputf8": ""}, [], BEYOND, CONTENT, " SMTPUTF8"),
        ({"smtputf8": ""}, ["smtputf8"], BEYOND, CONTENT, " smtputf8"),
        ({"smtputf8": ""}, ["SMTPUTF8"], A, CONTENT, " SMTPUTF8"),
        (EVERYTHING, [], A, CONTENT, " size=20"),
        (EVERYTHING, [], BEYOND, EIGHT, " size=21 BODY=8BITMIME SMTPUTF8"),
        (EVERYTHING, ["body=8bitmime"], BEYOND, EIGHT, " size=21 SMTPUTF8 body=8bitmime"),
    ],
)
def test_what_a_message_needs_is_asked_for_once(
    offers: dict[str, str], asked: list[str], sender: str, content: bytes, line: str
) -> None:
    found = commands(envelope(sender=sender, content=content), extensions=offers, mail_options=asked)
    assert found[0].line == f"mail from:<{sender}>{line}"


@pytest.mark.parametrize(("sender", "asked"), [(BEYOND, []), (A, ["SMTPUTF8"]), (A, ["smtputf8"])])
def test_an_address_beyond_ascii_is_not_begun_where_it_is_not_offered(sender: str, asked: list[str]) -> None:
    with pytest.raises(NotSupported):
        commands(envelope(sender=sender), extensions={"8bitmime": ""}, mail_options=asked)


def test_eight_bits_are_recoded_where_they_are_not_offered_and_nobody_asked_for_them() -> None:
    transaction = Transaction(envelope(content=EIGHT), Terms(extensions={"dsn": ""}))
    transaction.commands()
    assert not transaction.envelope.eight_bit
    for terms in (Terms(extensions={"8bitmime": ""}), Terms(extensions={"dsn": ""}, mail_options=["BODY=8BITMIME"])):
        transaction = Transaction(envelope(content=EIGHT), terms)
        transaction.commands()
        assert transaction.envelope.eight_bit


def test_without_extensions_no_option_is_passed() -> None:
    options: dict[str, Any] = {"mail_options": ["RET=HDRS"], "rcpt_options": ["NOTIFY=NEVER", "X=Y"]}
    assert [command.line for command in commands(envelope(A), **options)] == [
        "mail from:<ann@example.org>",
        f"rcpt to:<{A}>",
        "data",
    ]
    assert commands(envelope(A), extensions={"dsn": ""}, **options)[1].line == f"rcpt to:<{A}> NOTIFY=NEVER X=Y"


@pytest.mark.parametrize(("option", "good"), [("!", True), ("~", True), (" ", False), ("\x7f", False), ("", False)])
def test_an_option_is_of_what_can_be_seen(option: str, good: bool) -> None:
    for where in ("mail_options", "rcpt_options"):
        terms: dict[str, Any] = {"extensions": {"dsn": ""}, where: [option]}
        if good:
            commands(envelope(), **terms)
        else:
            with pytest.raises(InvalidEnvelope):
                commands(envelope(), **terms)


class File:
    """A content that is read when it is sent."""

    def __init__(self, content: bytes) -> None:
        self._content, self.checked = content, 0

    def __len__(self) -> int:
        return len(self._content)

    def require_unchanged(self) -> None:
        self.checked += 1


@pytest.mark.parametrize("offers", [{}, {"size": ""}, {"size": "0"}])
def test_a_content_in_a_file_must_be_as_it_was(offers: dict[str, str]) -> None:
    e, file = envelope(), File(CONTENT)
    changed = object.__new__(Envelope)
    changed.__dict__.update(e.__dict__, source=file)
    commands(changed, extensions=offers)
    assert file.checked == 1


# Replies --------------------------------------------------------------------------------------------------------------

MAIL, RCPT, DATA = Command(Phase.MAIL, "mail"), Command(Phase.RCPT, "rcpt", A), Command(Phase.DATA, "data")


@pytest.mark.parametrize(
    ("command", "code", "means"),
    [
        (MAIL, 199, None), (MAIL, 200, "yes"), (MAIL, 299, "yes"), (MAIL, 300, None), (MAIL, 354, None),
        (MAIL, 400, "no"), (MAIL, 599, "no"), (MAIL, 600, None),
        (RCPT, 250, "yes"), (RCPT, 251, "yes"), (RCPT, 354, None), (RCPT, 550, "no"),
        (DATA, 354, "yes"), (DATA, 353, None), (DATA, 355, None), (DATA, 250, None), (DATA, 451, "no"),
    ],
)  # fmt: skip
def test_what_a_reply_means(command: Command, code: int, means: str | None) -> None:
    transaction = Transaction(envelope(A), Terms())
    if means is None:
        with pytest.raises(BadReply, match=f"{command.phase.value.upper()} was answered"):
            transaction.take(command, Reply(code, b"what"))
        return
    transaction.take(command, Reply(code, b"what"))
    kinds = {Phase.MAIL: SenderRefused, Phase.RCPT: RecipientsRefused, Phase.DATA: DataRefused}
    assert type(transaction.error) is (type(None) if means == "yes" else kinds[command.phase])
    assert transaction.content_due == (command is DATA and means == "yes")


def test_what_is_answered_after_the_end_changes_nothing_but_that_content_is_due() -> None:
    transaction = told(NEVER_SO, OK, NEVER_SO, NEVER_SO, GO)
    assert isinstance(transaction.error, SenderRefused)
    assert transaction.error.sender == "ann@example.org"
    assert transaction.content_due
    assert transaction.receipt().replies == {}
    assert not transaction.refused_by_all


@pytest.mark.parametrize(
    ("replies", "recipients", "over", "by_all"),
    [
        ((NEVER_SO,), (A,), True, True),
        ((OK,), (A,), False, False),
        ((NEVER_SO, OK, OK), (A, B, C), False, False),
        ((NEVER_SO, NEVER_SO), (A, B, C), False, False),
        ((NEVER_SO, LATER, NEVER_SO), (A, B, C), True, True),
        ((OK, NEVER_SO, NEVER_SO), (A, B, C), False, False),
        ((CLOSING,), (A, B, C), True, True),
        ((OK, CLOSING), (A, B, C), True, False),
        ((Reply(420, b"no"),), (A, B, C), False, False),
        ((Reply(422, b"no"),), (A, B, C), False, False),
    ],
)
def test_a_message_goes_on_as_long_as_somebody_may_get_it(
    replies: tuple[Reply, ...], recipients: tuple[str, ...], over: bool, by_all: bool
) -> None:
    transaction = told(OK, *replies, recipients=recipients)
    assert (transaction.error is not None, transaction.refused_by_all) == (over, by_all)
    if transaction.error is not None:
        assert isinstance(transaction.error, RecipientsRefused)
        refused = {r: reply for r, reply in zip(recipients, replies, strict=False) if not reply.positive}
        assert transaction.error.recipients == {r: reply.pair for r, reply in refused.items()}
    assert transaction.receipt().replies == dict(zip(recipients, replies, strict=False))


def test_one_that_is_closing_goes_on_where_it_has_the_content_already() -> None:
    """What it says of the others counts."""
    transaction = told(OK, CLOSING, OK, OK, phase=Phase.FINAL)
    assert transaction.error is None
    assert list(transaction.awaited) == [""]
    transaction.take_final("", OK)
    assert transaction.receipt().accepted == (B, C)


@pytest.mark.parametrize(
    ("replies", "over", "transient"),
    [
        ((OK, OK, OK), False, None),
        ((LATER, OK), False, None),
        ((LATER, OK, OK), True, True),
        ((OK, OK, LATER), True, True),
        ((OK, OK, NEVER_SO), True, False),
        ((LATER, OK, NEVER_SO), True, False),
        ((LATER, LATER, OK), True, True),
    ],
)
def test_all_or_nothing_ends_when_all_have_answered_and_one_was_refused(
    replies: tuple[Reply, ...], over: bool, transient: bool | None
) -> None:
    """The permanent refusal of one is permanent for all."""
    transaction = told(OK, *replies, all_or_nothing=True)
    assert (transaction.error is not None) == over
    if transaction.error is not None:
        assert transaction.error.transient is transient


@pytest.mark.parametrize(
    ("all_or_nothing", "at_rcpt"), [(True, (LATER, NEVER_SO, LATER)), (False, (OK, LATER, CLOSING))]
)
def test_elsewhere_it_is_transient_as_the_error_says(all_or_nothing: bool, at_rcpt: tuple[Reply, ...]) -> None:
    transaction = told(OK, *at_rcpt, all_or_nothing=all_or_nothing)
    assert transaction.error is not None
    assert transaction.error.transient is RecipientsRefused(transaction.error.recipients).transient  # type: ignore[attr-defined]


def test_the_permanent_refusal_of_one_is_left_to_him_where_the_others_get_theirs_again() -> None:
    transaction = told(OK, OK, NEVER_SO, CLOSING)
    assert transaction.error is not None
    assert transaction.error.transient


def test_the_consent_to_all_is_that_of_each() -> None:
    transaction = Transaction(envelope(A, B), Terms())
    first, second = Reply(250, b"first"), Reply(250, b"second")
    transaction.take_consent([OK, first, second, GO])
    assert (transaction.phase, transaction.content_due, transaction.error) == (Phase.DATA, True, None)
    assert transaction.receipt().replies == {A: first, B: second}
    assert transaction.awaited == ("",)
    transaction.take_final("", OK)
    assert transaction.receipt().outcome is Outcome.SENT


def test_a_consent_is_as_long_as_the_message_has_commands() -> None:
    """Or the two sides no longer speak of the same thing."""
    with pytest.raises(ValueError, match="shorter"):
        Transaction(envelope(A, B), Terms()).take_consent([OK, OK, GO])


# The end of data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "good"), [(199, False), (200, True), (299, True), (300, False), (399, False), (600, False)]
)
def test_what_the_end_of_data_may_be_answered(code: int, good: bool) -> None:
    transaction = told(OK, OK, OK, OK, GO)
    transaction.phase = Phase.FINAL
    if good:
        transaction.take_final("", Reply(code, b"what"))
        assert not transaction.content_due
    else:
        with pytest.raises(BadReply, match="end of data was answered"):
            transaction.take_final("", Reply(code, b"what"))
        assert transaction.receipt().outcome is Outcome.IN_DOUBT
        assert transaction.receipt().reply is None


def test_who_was_accepted_twice_has_it() -> None:
    receipt = ended(OK, at_rcpt=(OK, NEVER_SO, OK)).receipt()
    assert (receipt.outcome, receipt.accepted, receipt.phase, receipt.reply) == (
        Outcome.PARTIAL,
        (A, C),
        Phase.DONE,
        OK,
    )
    assert receipt.replies == {A: OK, B: NEVER_SO, C: OK}
    assert receipt.error is None


@pytest.mark.parametrize("reply", [LATER, NEVER_SO])
def test_a_content_that_is_refused_is_so_for_all(reply: Reply) -> None:
    transaction = ended(reply)
    assert isinstance(transaction.error, DataRefused)
    assert transaction.error.smtp_code == reply.code
    receipt = transaction.receipt()
    assert (receipt.outcome, receipt.accepted, receipt.replies) == (Outcome.NOT_SENT, (), {A: OK, B: OK, C: OK})


@pytest.mark.parametrize(
    ("finals", "accepted", "outcome", "code"),
    [
        ((OK, OK, OK), (A, B, C), Outcome.SENT, None),
        ((OK, OK, NEVER_SO), (A, B), Outcome.PARTIAL, None),
        ((NEVER_SO, OK, NEVER_SO), (B,), Outcome.PARTIAL, None),
        ((OK,), (A,), Outcome.IN_DOUBT, None),
        ((NEVER_SO, LATER, NEVER_SO), (), Outcome.NOT_SENT, 451),
        ((NEVER_SO, NEVER_SO, LATER), (), Outcome.NOT_SENT, 451),
        ((LATER, NEVER_SO, NEVER_SO), (), Outcome.NOT_SENT, 451),
        ((NEVER_SO, NEVER_SO, Reply(554, b"5.6.0 no")), (), Outcome.NOT_SENT, 554),
    ],
)
def test_under_lmtp_each_has_a_final_reply_of_his_own(
    finals: tuple[Reply, ...], accepted: tuple[str, ...], outcome: Outcome, code: int | None
) -> None:
    transaction = ended(*finals, lmtp=True)
    assert transaction.awaited == (A, B, C)
    receipt = transaction.receipt()
    assert (receipt.accepted, receipt.outcome) == (accepted, outcome)
    assert getattr(transaction.error, "smtp_code", None) == code
    assert (receipt.phase is Phase.DONE) == (len(finals) == 3)
    assert receipt.replies == {A: OK, B: OK, C: OK} | {
        r: reply for r, reply in zip((A, B, C), finals, strict=False) if not reply.positive
    }


def test_under_lmtp_who_was_refused_before_has_none() -> None:
    transaction = ended(OK, at_rcpt=(NEVER_SO, OK, LATER), lmtp=True)
    assert transaction.awaited == (B,)
    assert transaction.phase is Phase.DONE
    assert transaction.receipt().accepted == (B,)


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
def test_before_the_end_of_data_is_out_it_is_surely_not_sent(phase: Phase) -> None:
    transaction = told(OK, OK, OK, OK)
    transaction.phase = phase
    assert transaction.receipt().outcome is Outcome.NOT_SENT


def test_a_receipt_stays_as_it_was_when_more_is_answered() -> None:
    transaction = told(OK, OK)
    before = transaction.receipt()
    transaction.take(Command(Phase.RCPT, "rcpt", B), NEVER_SO)
    assert before.replies == {A: OK}
    assert transaction.receipt().replies == {A: OK, B: NEVER_SO}


def test_of_one_that_was_accepted_for_all_nothing_is_copied() -> None:
    """A list of thousands is kept for each message otherwise."""
    transaction = ended(OK)
    receipt = transaction.receipt()
    assert receipt.accepted is receipt.recipients
    assert receipt.replies is transaction.receipt().replies
    assert transaction.receipt().accepted is receipt.recipients


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.FINAL])
def test_who_is_to_blame_carries_the_receipt(phase: Phase) -> None:
    transaction = told(OK)
    transaction.phase = phase
    error = transaction.blame(ConnectionLost("it hung up"))
    assert transaction.error is error
    assert error.phase is phase
    assert error.receipt is not None
    assert error.receipt.error is error
    assert error.outcome is error.receipt.outcome is (Outcome.IN_DOUBT if phase is Phase.FINAL else Outcome.NOT_SENT)
