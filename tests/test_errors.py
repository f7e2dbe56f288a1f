"""The errors: each is smtplib's where smtplib has one, answers its two questions, pickles, and is safe to print."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import smtplib
import socket
import ssl
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import Envelope, Receipt, Report, errors
from threadmail.errors import (
    BadReply,
    ConnectFailed,
    DeliveryFailed,
    MailError,
    MessageTooLarge,
    Outcome,
    Phase,
    RecipientsRefused,
    ReplyError,
    SenderRefused,
    detach,
    printable,
)

ENVELOPE = Envelope("ann@example.org", "bob@example.net", b"Subject: x\r\n\r\nbody\r\n")


def classes() -> list[type[MailError]]:
    """Every error class of the module, so that a new one cannot be forgotten here."""
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, MailError)]


def example(cls: type[MailError], text: str = "it went wrong") -> MailError:
    """An instance of `cls` that says `text`."""
    if cls is BadReply:
        return BadReply(text, phase=Phase.MAIL)
    if issubclass(cls, SenderRefused):
        return cls(452, text, "ann@example.org")
    if cls is RecipientsRefused:
        return RecipientsRefused({"bob@example.net": (450, text.encode("utf-8", "surrogateescape"))})
    if cls is DeliveryFailed:
        return DeliveryFailed(text, Report([Receipt.not_sent(ENVELOPE, MailError(text))]))
    if issubclass(cls, ReplyError):
        return cls(452, text, phase=Phase.MAIL)
    if issubclass(cls, ConnectFailed):
        return cls(text, errno=111, phase=Phase.TLS, transient=True)
    return cls(text, phase=Phase.MAIL, transient=True)


every_class = pytest.mark.parametrize("cls", classes(), ids=lambda c: c.__name__)

# What the `except` clauses of callers name, and what must find our error.
CAUGHT_AS: list[tuple[type[MailError], tuple[type[BaseException], ...]]] = [
    (errors.InvalidEnvelope, (ValueError,)),
    (errors.InvalidAddress, (ValueError, errors.InvalidEnvelope)),
    (errors.InvalidConfig, (ValueError,)),
    (errors.Closed, (RuntimeError,)),
    (errors.Reentered, (RuntimeError,)),
    (errors.QueueFull, (RuntimeError,)),
    (errors.TimedOut, (TimeoutError,)),
    (errors.ConnectFailed, (ConnectionError,)),
    (errors.ConnectionRefused, (ConnectionRefusedError,)),
    (errors.ConnectTimedOut, (TimeoutError, ConnectionError)),
    (errors.HostNotFound, (socket.gaierror, ConnectionError)),
    (errors.TLSFailed, (ssl.SSLError, ConnectionError)),
    (errors.ConnectionLost, (smtplib.SMTPServerDisconnected, ConnectionError)),
    (errors.NotConnected, (smtplib.SMTPServerDisconnected, ConnectionError)),
    (errors.Aborted, (smtplib.SMTPServerDisconnected, ConnectionError)),
    (errors.ReplyTimedOut, (smtplib.SMTPServerDisconnected, TimeoutError, ConnectionError)),
    (errors.ReplyError, (smtplib.SMTPResponseException,)),
    (errors.BadReply, (smtplib.SMTPResponseException, smtplib.SMTPServerDisconnected)),
    (errors.GreetingRefused, (smtplib.SMTPConnectError,)),
    (errors.HeloRefused, (smtplib.SMTPHeloError,)),
    (errors.StartTLSRefused, (smtplib.SMTPResponseException,)),
    (errors.NotSupported, (smtplib.SMTPNotSupportedError,)),
    (errors.LoginRefused, (smtplib.SMTPAuthenticationError,)),
    (errors.SenderRefused, (smtplib.SMTPSenderRefused,)),
    (errors.MessageTooLarge, (smtplib.SMTPSenderRefused,)),
    (errors.DataRefused, (smtplib.SMTPDataError,)),
    (errors.RecipientsRefused, (smtplib.SMTPRecipientsRefused,)),
]


@every_class
def test_every_error_is_an_smtp_exception(cls: type[MailError]) -> None:
    """`except smtplib.SMTPException` and `except OSError` of legacy code catch whatever we raise."""
    assert isinstance(example(cls), smtplib.SMTPException)
    assert isinstance(example(cls), OSError)


@pytest.mark.parametrize(("cls", "bases"), CAUGHT_AS, ids=lambda v: getattr(v, "__name__", ""))
def test_an_error_is_caught_by_the_name_the_field_knows_it_by(
    cls: type[MailError], bases: tuple[type[BaseException], ...]
) -> None:
    """Each error is smtplib's own class, or the built-in one, wherever there is one."""
    for base in bases:
        assert isinstance(example(cls), base)


def test_every_class_of_smtplib_has_its_kin() -> None:
    """No error of smtplib is without one of ours that an `except` clause for it finds."""
    theirs = {c for _, c in inspect.getmembers(smtplib, inspect.isclass) if issubclass(c, smtplib.SMTPException)}
    assert [c for c in theirs if not any(issubclass(ours, c) for ours in classes())] == []


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (errors.LoginRefused(535, b"no"), {"smtp_code": 535, "smtp_error": b"no"}),
        (errors.DataRefused(554, "no"), {"smtp_code": 554, "smtp_error": b"no"}),
        (errors.SenderRefused(550, b"no", "a@b.c"), {"smtp_code": 550, "smtp_error": b"no", "sender": "a@b.c"}),
        (errors.RecipientsRefused({"a@b.c": (550, b"no")}), {"recipients": {"a@b.c": (550, b"no")}}),
        (errors.ConnectionRefused("x", errno=111), {"errno": 111}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_attributes_of_smtplib_are_there(error: MailError, attributes: dict[str, object]) -> None:
    """Code that reads `smtp_code`, `smtp_error`, `sender`, `recipients` or `errno` goes on working."""
    assert {name: getattr(error, name) for name in attributes} == attributes


@every_class
def test_every_error_answers_its_questions(cls: type[MailError]) -> None:
    """May I try again, where was it, what does the recipient have: always there, and never SENT by default."""
    error = example(cls)
    assert isinstance(error.transient, bool)
    assert error.phase is None or isinstance(error.phase, Phase)
    assert error.outcome is Outcome.NOT_SENT
    assert error.receipt is None


@pytest.mark.parametrize("code", [421, 450, 499, 500, 550, 599])
def test_the_first_digit_decides_whether_a_refusal_is_transient(code: int) -> None:
    """4yz may succeed later, 5yz will not (RFC 5321 section 4.2.1)."""
    assert ReplyError(code, b"").transient is (code < 500)
    assert SenderRefused(code, b"", "a@b.c").transient is (code < 500)
    assert RecipientsRefused({"a@b.c": (code, b"")}).transient is (code < 500)


def test_one_deferred_recipient_makes_the_refusal_of_all_transient() -> None:
    """With one 4yz among the refusals a later try has something to do."""
    assert RecipientsRefused({"a@b.c": (550, b""), "d@e.f": (450, b"")}).transient


def test_whoever_called_off_gets_no_transient_error() -> None:
    """Nobody's retry loop tries again what abort() ended, though it is a lost connection."""
    assert errors.ConnectionLost("x").transient
    assert not errors.Aborted("x").transient


def attributes_of(error: BaseException) -> dict[str, object]:
    names = {name for name in dir(error) if not name.startswith("_")}
    names -= {"with_traceback", "add_note", "to_dict", "from_dict"}
    # `reason` and `library` are made by OpenSSL and are not there when nobody asked it.
    found = {name: getattr(error, name, None) for name in names}
    return {name: value for name, value in found.items() if name not in ("receipt", "report")}


@pytest.mark.parametrize("cls", [cls for cls in classes() if cls is not DeliveryFailed], ids=lambda cls: cls.__name__)
def test_every_error_comes_back_from_json(cls: type[MailError]) -> None:
    """The same class, code, phase, text and answers; what a receipt keeps of it is not lost in a file."""
    error = example(cls)
    error.outcome, error.deadline_passed, error.transient = Outcome.IN_DOUBT, True, not error.transient
    if isinstance(error, errors.LoginRefused):
        error.pair_is_fixed = False
    again = MailError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(again) is cls
    assert (str(again), repr(again)) == (str(error), repr(error))
    assert again.args == error.args
    assert attributes_of(again) == attributes_of(error)
    assert pickle.loads(pickle.dumps(again)).args == error.args


def test_an_error_of_a_later_version_or_of_somebody_else_comes_back_as_what_is_known_of_it() -> None:
    class Own(SenderRefused):
        pass

    again = MailError.from_dict(Own(550, b"no", "a@b.c").to_dict())
    assert (type(again), str(again)) == (SenderRefused, "the server answered 550 no")
    data = {**MailError("odd", phase=Phase.RCPT, transient=True).to_dict(), "class": "OfTheFuture"}
    again = MailError.from_dict(data)
    assert (type(again), str(again), again.phase, again.may_resend) == (MailError, "odd", Phase.RCPT, True)


@every_class
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_pickles_with_all_its_attributes(cls: type[MailError], protocol: int) -> None:
    """What comes back from another process has the same class, text and attributes."""
    error = example(cls)
    error.outcome = Outcome.IN_DOUBT
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert str(again) == str(error)
    assert attributes_of(again) == attributes_of(error)


@every_class
def test_an_error_and_its_receipt_pickle_though_they_point_at_each_other(cls: type[MailError]) -> None:
    """A receipt holds its error and the error its receipt: both come back, and still belong together."""
    error = example(cls)
    receipt = Receipt.not_sent(ENVELOPE, error, attempts=2)
    again = pickle.loads(pickle.dumps(receipt))
    assert again == receipt
    assert type(again.error) is cls
    assert again.error.receipt is again
    error_again = pickle.loads(pickle.dumps(error))
    assert error_again.receipt == receipt
    assert error_again.receipt.error is error_again


@every_class
def test_every_error_can_be_copied(cls: type[MailError]) -> None:
    """copy and deepcopy go the way of pickle."""
    for again in (copy.copy(example(cls)), copy.deepcopy(example(cls))):
        assert type(again) is cls
        assert str(again) == str(example(cls))


def without_control_characters(text: str) -> bool:
    return text.isprintable()


@every_class
@pytest.mark.parametrize("bad", ["\x1b[2J", "\r\n", "\0", "\x07", "\x9b", "\u202e", "\udc80", "\u2028"])
def test_no_error_text_drives_a_terminal(cls: type[MailError], bad: str) -> None:
    """Whatever server or caller put into it, str(error) is one printable line."""
    assert without_control_characters(str(example(cls, f"a{bad}b")))
    assert without_control_characters(repr(example(cls, f"a{bad}b")))


@given(st.one_of(st.text(), st.binary()))
def test_printable_is_printable_and_leaves_printable_text_alone(text: str | bytes) -> None:
    """`printable` lets nothing through that a terminal could obey, and changes nothing that needs no change."""
    assert without_control_characters(printable(text))
    if isinstance(text, str) and text.isprintable():
        assert printable(text) == text


def test_many_refused_recipients_make_one_short_line() -> None:
    """A refusal of a thousand recipients names three and counts the rest."""
    text = str(RecipientsRefused({f"r{i}@example.net": (550, b"no such user") for i in range(1000)}))
    assert text.count("@") == 3
    assert text.endswith("and 997 more")


def test_detach_lets_go_of_frames_along_the_whole_chain() -> None:
    """A kept error keeps nothing else alive: no traceback in it, its causes or its contexts."""

    def fail() -> None:
        try:
            try:
                raise KeyError("inner")
            except KeyError as exc:
                raise OSError("middle") from exc
        except OSError as exc:
            raise MailError("outer") from exc

    with pytest.raises(MailError) as info:
        fail()
    error = detach(info.value)
    assert [type(e) for e in chain(error)] == [MailError, OSError, KeyError]
    assert all(e.__traceback__ is None for e in chain(error))


def test_detach_survives_a_chain_that_bites_its_tail() -> None:
    """A cycle of causes ends."""
    error = MailError("x")
    error.__cause__ = other = MailError("y")
    other.__context__ = error
    assert detach(error) is error


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_message_too_large_says_what_and_how_much() -> None:
    """The size and the limit stand in the text; it is the sender's refusal to smtplib's eyes."""
    error = MessageTooLarge(552, "5.3.4 too big", "a@b.c", "the message has 10 octets and the server takes 5")
    assert str(error) == "the message has 10 octets and the server takes 5"
    assert error.args == (552, b"5.3.4 too big", "a@b.c")


def test_the_names_are_offered_by_the_package() -> None:
    """Whatever we raise can be caught by a name imported from `threadmail` itself."""
    import threadmail

    assert [c.__name__ for c in classes() if getattr(threadmail, c.__name__, None) is not c] == []
    assert [c.__name__ for c in classes() if c.__name__ not in threadmail.__all__] == []


def test_phases_stand_in_the_order_of_a_session() -> None:
    """The order of `Phase` is the order in which a session passes through."""
    assert [p.name for p in Phase] == ["CONNECT", "TLS", "AUTH", "MAIL", "RCPT", "DATA", "CONTENT", "FINAL", "DONE"]
    assert sys.modules["threadmail.errors"].CONNECTING == (Phase.CONNECT, Phase.TLS, Phase.AUTH)
