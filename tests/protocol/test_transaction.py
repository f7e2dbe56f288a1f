"""The transaction: whatever a server says, or fails to say, at whichever step, the receipt is true."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.dialogue import CONTENT, PATIENT, A, B, C, Part, envelope, ok, send, wire_to
from threadmail import (
    BadReply,
    ConnectionLost,
    DataRefused,
    Envelope,
    InvalidEnvelope,
    MailError,
    MessageTooLarge,
    NotSupported,
    Outcome,
    Phase,
    Receipt,
    RecipientsRefused,
    Reply,
    ReplyTimedOut,
    SenderRefused,
    Timeouts,
)
from threadmail import testing as play
from threadmail._protocol.progress import Progress
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._transport.wire import BLOCK
from threadmail.testing import (
    Drip,
    Drop,
    Expect,
    Pause,
    ReadBytes,
    ReadData,
    Reset,
    ScriptedServer,
    Send,
    Stall,
    answer,
)

HASTY = Timeouts(command=0.15, content=0.15, final=0.15)
LMTP = Terms(lmtp=True)

Said = Reply


def until(phase: Phase) -> list[Part]:
    """The steps of a transaction up to the command of `phase`, read and not answered."""
    steps: list[Part] = [Expect("MAIL")]
    if phase is Phase.MAIL:
        return steps
    steps += [play.Reply("250 ok"), Expect("RCPT")]
    if phase is Phase.RCPT:
        return steps
    steps += [play.Reply("250 ok"), Expect("DATA")]
    if phase is Phase.DATA:
        return steps
    return [*steps, play.Reply("354 go"), ReadData()]


def links_are_finite(error: BaseException) -> None:
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None:
        assert id(step) not in seen
        seen.add(id(step))
        step = step.__cause__ or step.__context__


COMMANDS = [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.FINAL]
REFUSAL: dict[Phase, type[MailError]] = {
    Phase.MAIL: SenderRefused,
    Phase.RCPT: RecipientsRefused,
    Phase.DATA: DataRefused,
    Phase.FINAL: DataRefused,
}


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("phase", COMMANDS)
@pytest.mark.parametrize("code", [450, 499, 500, 550])
def test_a_refusal_ends_the_message_and_not_the_connection(phase: Phase, code: int) -> None:
    """4yz and 5yz: NOT_SENT in that phase, transient by the first digit; one RSET, and the next message goes."""
    with ScriptedServer([*until(phase), play.Reply(f"{code} 4.0.0 no"), answer("RSET", "250 ok"), ok()]) as server:
        with wire_to(server) as wire:
            with pytest.raises(REFUSAL[phase]) as info:
                send(wire, envelope(), Terms(server="mx:25"))
            error, receipt = info.value, info.value.receipt
            assert isinstance(receipt, Receipt)
            assert error.transient is (code < 500)
            assert error.outcome is receipt.outcome is Outcome.NOT_SENT
            assert error.phase is receipt.phase is (Phase.DONE if phase is Phase.FINAL else phase)
            assert receipt.error is error
            assert receipt.accepted == ()
            assert receipt.deferred == ((A,) if code < 500 else ())
            assert receipt.server == "mx:25"
            assert wire.is_open
            assert send(wire, envelope(B), Terms()).outcome is Outcome.SENT
        server.check()
        assert server.messages[-1].recipients == (B,)


@pytest.mark.parametrize("phase", COMMANDS)
def test_a_421_is_a_refusal_by_a_server_that_is_closing(phase: Phase) -> None:
    """NOT_SENT and transient; nothing more is written, not even RSET (RFC 5321 section 3.8)."""
    with ScriptedServer([*until(phase), play.Reply("421 4.3.2 shutting down"), Stall()]) as server:
        with wire_to(server) as wire:
            with pytest.raises(REFUSAL[phase]) as info:
                send(wire, envelope(), Terms())
            assert info.value.outcome is Outcome.NOT_SENT
            assert info.value.transient
            assert not wire.is_open
        server.wait_for_connections(0)
        assert "RSET" not in [line.upper() for line in server.received[0]]


BREAKDOWNS: list[tuple[str, list[play.Step], type[MailError]]] = [
    ("close", [Drop()], ConnectionLost),
    ("reset", [Reset()], ConnectionLost),
    ("half a reply", [Send(b"250 2.0.0 O"), Drop()], ConnectionLost),
    ("half a multi-line reply", [Send(b"250-2.0.0 OK\r\n"), Drop()], ConnectionLost),
    ("garbage", [Send(b"HTTP/1.1 400 Bad Request\r\n"), Stall()], BadReply),
    ("two codes", [Send(b"250-2.0.0 OK\r\n251 OK\r\n"), Stall()], BadReply),
    ("bare LF", [Send(b"250 2.0.0 OK\n"), Stall()], BadReply),
    ("flood", [Send(b"250-x\r\n" * 300), Stall()], BadReply),
    ("stall", [Stall()], ReplyTimedOut),
    ("drip", [Drip(b"250" + b"-" * 500, 0.02), Stall()], ReplyTimedOut),
]


@pytest.mark.parametrize(("steps", "kind"), [(s, k) for _, s, k in BREAKDOWNS], ids=[name for name, _, _ in BREAKDOWNS])
@pytest.mark.parametrize("phase", COMMANDS)
def test_a_breakdown_closes_the_connection_and_is_in_doubt_after_the_end_of_data_only(
    phase: Phase, steps: list[play.Step], kind: type[MailError]
) -> None:
    """Before the end of data: surely NOT_SENT, whatever broke. After it, without a whole reply: IN_DOUBT."""
    timeouts = HASTY if kind is ReplyTimedOut else PATIENT
    with ScriptedServer([*until(phase), *steps]) as server, wire_to(server, timeouts) as wire:
        with pytest.raises(kind) as info:
            send(wire, envelope(), Terms())
        error, receipt = info.value, info.value.receipt
        assert receipt is not None
        assert error.outcome is receipt.outcome
        assert receipt.outcome is (Outcome.IN_DOUBT if phase is Phase.FINAL else Outcome.NOT_SENT)
        assert error.phase is receipt.phase is phase
        assert receipt.deferred == (() if phase is Phase.FINAL else (A,))
        assert not wire.is_open
        links_are_finite(error)


@pytest.mark.parametrize(
    ("phase", "reply"),
    [
        (Phase.MAIL, "354 go"),
        (Phase.MAIL, "199 hm"),
        (Phase.RCPT, "354 go"),
        (Phase.RCPT, "334 "),
        (Phase.DATA, "250 ok"),
        (Phase.DATA, "334 "),
        (Phase.FINAL, "354 go"),
        (Phase.FINAL, "199 hm"),
    ],
)
def test_a_reply_of_the_wrong_kind_poisons_the_session(phase: Phase, reply: str) -> None:
    """The two sides no longer speak of the same thing: closed; after the end of data, in doubt."""
    with ScriptedServer([*until(phase), play.Reply(reply), Stall()]) as server, wire_to(server) as wire:
        with pytest.raises(BadReply) as info:
            send(wire, envelope(), Terms())
        assert info.value.outcome is (Outcome.IN_DOUBT if phase is Phase.FINAL else Outcome.NOT_SENT)
        assert info.value.phase is phase
        assert not wire.is_open


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT])
def test_any_2yz_is_a_yes(phase: Phase) -> None:
    """Judged by the first digit: 251 to RCPT, 252 and even 299."""
    for code in (250, 251, 252, 299):
        script = [
            answer("MAIL", f"{code if phase is Phase.MAIL else 250} ok"),
            answer("RCPT", f"{code if phase is Phase.RCPT else 250} ok"),
            answer("DATA", "354 go"),
            ReadData(),
            play.Reply("251 2.0.0 will forward"),
        ]
        with ScriptedServer(script) as server, wire_to(server) as wire:
            assert send(wire, envelope(), Terms()).outcome is Outcome.SENT


# ---------------------------------------------------------------- content


def test_a_sent_message_has_its_receipt() -> None:
    """Everything that is known stands in it, the server's last words included."""
    with ScriptedServer([ok(2, "250 2.0.0 queued as 4711")]) as server, wire_to(server) as wire:
        e = Envelope("ann@example.org", [A, B], b"Message-ID: <1@x>\r\n\r\nbody")
        r = send(wire, e, Terms(server="mx:25"))
        assert wire.is_open
    assert (r.outcome, r.phase, r.sender, r.recipients, r.accepted) == (
        Outcome.SENT,
        Phase.DONE,
        "ann@example.org",
        (A, B),
        (A, B),
    )
    assert r.reply is not None
    assert (r.reply.text, r.message_id, r.error, r.server) == ("2.0.0 queued as 4711", "<1@x>", None, "mx:25")
    assert r.replies == {A: Said(250, b"2.1.5 OK"), B: Said(250, b"2.1.5 OK")}
    assert server.messages[0].content == e.content + b"\r\n"


@pytest.mark.parametrize("lost", [Drop(), Reset(), Pause(threading.Event(), 30.0)], ids=lambda s: type(s).__name__)
def test_a_server_that_takes_only_part_of_the_content_has_nothing(lost: play.Step) -> None:
    """The last byte was not handed over, so the message is surely NOT_SENT, in the phase of the content."""
    script = [
        answer("MAIL", "250 ok"),
        answer("RCPT", "250 ok"),
        answer("DATA", "354 go"),
        ReadBytes(1000),
        lost,
    ]
    timeouts = Timeouts(command=10.0, content=0.3, final=10.0)
    with ScriptedServer(script) as server, wire_to(server, timeouts) as wire:
        with pytest.raises(ConnectionLost) as info:
            send(wire, envelope(content=CONTENT + b"x" * 30_000_000), Terms())
        assert info.value.outcome is Outcome.NOT_SENT
        assert info.value.phase is Phase.CONTENT
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == (A,)
        assert not wire.is_open


@pytest.mark.parametrize("offset", range(-4, 5))
def test_dots_around_the_edges_of_a_block_arrive(offset: int) -> None:
    """Lines that begin with dots where one write ends and the next begins come out as they went in."""
    head = b"Subject: x\r\n\r\n"
    lines = (
        b"y" * (BLOCK - len(head) - 4 + offset) + b"\r\n.\r\n..\r\n.z\r\n" + b"w" * (BLOCK - 8) + b"\r\n.\r\n.\r\n..."
    )
    content = head + lines
    with ScriptedServer([ok(), ok()]) as server, wire_to(server) as wire:
        send(wire, envelope(content=content), Terms())
        send(wire, envelope(content=b"." + content + b"\r\n."), Terms())
    assert [m.content for m in server.messages] == [content + b"\r\n", b"." + content + b"\r\n.\r\n"]


@given(st.binary(max_size=400).map(lambda b: b.replace(b"\r", b"\n").replace(b"\n", b"\r\n.")))
def test_any_content_arrives_as_it_was(content: bytes) -> None:
    """What a server takes off the wire is the content and a line end."""
    e = envelope(content=b"A: b\r\n\r\n" + content)
    with ScriptedServer([ok()]) as server, wire_to(server) as wire:
        send(wire, e, Terms({"8bitmime": ""}))
    arrived = server.messages[0].content
    assert arrived == e.content + (b"" if e.content.endswith(b"\r\n") else b"\r\n")


def test_replies_in_single_bytes_are_whole_replies() -> None:
    """The slowest network changes nothing."""
    said = [b"250-2.1.0\r\n250 OK\r\n", b"250 2.1.5 OK\r\n", b"354 go\r\n", b"250-2.0.0 queued\r\n250 as 42\r\n"]
    mail, rcpt, data, final = (Drip(reply, 0.001) for reply in said)
    script = [Expect("MAIL"), mail, Expect("RCPT"), rcpt, Expect("DATA"), data, ReadData(), final]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        r = send(wire, envelope(), Terms())
    assert r.reply == Said(250, b"2.0.0 queued\nas 42")


# ---------------------------------------------------------------- RSET


@pytest.mark.parametrize(
    ("steps", "lives"),
    [
        ([play.Reply("250 ok")], True),
        ([play.Reply("250-very\n250 ok")], True),
        ([play.Reply("251 hm")], False),
        ([play.Reply("220 hm")], False),
        ([play.Reply("451 4.3.0 later")], False),
        ([play.Reply("502 5.5.1 what")], False),
        ([play.Reply("421 4.3.2 bye")], False),
        ([Send(b"garbage\r\n")], False),
        ([Drop()], False),
        ([Stall()], False),
    ],
    ids=["250", "250-", "251", "220", "451", "502", "421", "garbage", "close", "stall"],
)
def test_only_a_250_to_rset_keeps_the_connection(steps: list[play.Step], lives: bool) -> None:
    """An old MAIL that still stands would swallow the next recipients. The error stays that of the refusal."""
    with ScriptedServer([answer("MAIL", "250 ok"), answer("RCPT", "550 no"), Expect("RSET"), *steps]) as server:
        with wire_to(server, HASTY if isinstance(steps[0], Stall) else PATIENT) as wire:
            with pytest.raises(RecipientsRefused) as info:
                send(wire, envelope(), Terms())
            assert info.value.outcome is Outcome.NOT_SENT
            assert wire.is_open is lives


# ---------------------------------------------------------------- several recipients


def test_the_accepted_get_it_and_the_refused_are_reported() -> None:
    """smtplib's rule: PARTIAL, each refusal with its reply, those with 4yz deferred; no RSET is due."""
    script = [
        answer("MAIL", "250 ok"),
        answer(f"RCPT TO:<{A}>", "550 5.1.1 no such user"),
        answer(f"RCPT TO:<{B}>", "250 ok"),
        answer(f"RCPT TO:<{C}>", "450 4.2.1 later"),
        answer("DATA", "354 go"),
        ReadData(),
        play.Reply("250 ok"),
        ok(),
    ]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), Terms())
        assert (r.outcome, r.accepted, r.deferred, r.error) == (Outcome.PARTIAL, (B,), (C,), None)
        assert {k: v.code for k, v in r.refused.items()} == {A: 550, C: 450}
        assert r.raise_for_failure() is r
        assert send(wire, envelope(), Terms()).outcome is Outcome.SENT
    assert server.messages[0].recipients == (B,)


def test_refused_by_all_is_an_error_with_each_reply() -> None:
    """RecipientsRefused; DATA is never said; who may be tried again is deferred."""
    script = [answer("MAIL", "250 ok"), answer("RCPT", "550 no"), answer("RCPT", "450 later"), answer("RSET", "250 ok")]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(RecipientsRefused) as info:
            send(wire, envelope(A, B), Terms())
        assert info.value.recipients == {A: (550, b"no"), B: (450, b"later")}
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == (B,)
        assert wire.is_open


def test_a_421_to_one_recipient_ends_the_message_for_all() -> None:
    """The others are not asked any more; those without a refusal for good may be tried later."""
    script = [
        answer("MAIL", "250 ok"),
        answer("RCPT", "250 ok"),
        answer("RCPT", "421 4.3.2 bye"),
        Stall(),
    ]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(RecipientsRefused) as info:
            send(wire, envelope(A, B, C), Terms())
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == (A, B, C)
        assert not wire.is_open


@pytest.mark.parametrize(("code", "deferred"), [(550, ()), (450, (A, B, C))])
def test_all_or_nothing_sends_to_nobody_when_one_is_refused(code: int, deferred: tuple[str, ...]) -> None:
    """Everybody is asked, nothing is committed; a refusal for good is one for all."""
    script = [
        answer("MAIL", "250 ok"),
        answer("RCPT", "250 ok"),
        answer("RCPT", f"{code} no"),
        answer("RCPT", "250 ok"),
        answer("RSET", "250 ok"),
    ]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(RecipientsRefused) as info:
            send(wire, envelope(A, B, C), Terms(all_or_nothing=True))
        assert info.value.recipients == {B: (code, b"no")}
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == deferred
        assert wire.is_open
    assert server.messages == []


def test_all_or_nothing_sends_when_all_are_accepted() -> None:
    """Then it is an ordinary message."""
    with ScriptedServer([ok(2)]) as server, wire_to(server) as wire:
        assert send(wire, envelope(A, B), Terms(all_or_nothing=True)).outcome is Outcome.SENT


# ---------------------------------------------------------------- LMTP


def lmtp(*finals: play.Step) -> list[Part]:
    return [
        answer("MAIL", "250 ok"),
        *[answer("RCPT", "250 ok") for _ in range(3)],
        answer("DATA", "354 go"),
        ReadData(),
        *finals,
    ]


def test_lmtp_has_a_reply_for_each_accepted_recipient() -> None:
    """In order; each decides for its own, and none is left to answer the next command (RFC 2033 section 4.2)."""
    finals = (play.Reply("250 ok"), play.Reply("452 4.2.2 full"), play.Reply("550 5.2.0 no"))
    with ScriptedServer([*lmtp(*finals), answer("NOOP", "250 alive")], lmtp=True) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), LMTP)
        assert (r.outcome, r.accepted, r.deferred) == (Outcome.PARTIAL, (A,), (B,))
        assert {k: v.code for k, v in r.refused.items()} == {B: 452, C: 550}
        assert wire.command("noop") == Said(250, b"alive")


def test_lmtp_owes_no_reply_to_who_was_refused_before() -> None:
    """Two of three at RCPT, two replies after the content."""
    script = [
        answer("MAIL", "250 ok"),
        answer("RCPT", "250 ok"),
        answer("RCPT", "550 no"),
        answer("RCPT", "250 ok"),
        answer("DATA", "354 go"),
        ReadData(),
        play.Reply("450 later"),
        play.Reply("250 ok"),
        answer("NOOP", "250 alive"),
    ]
    with ScriptedServer(script, lmtp=True) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), LMTP)
        assert (r.outcome, r.accepted, r.deferred) == (Outcome.PARTIAL, (C,), (A,))
        assert wire.command("noop").text == "alive"


@pytest.mark.parametrize("code", [452, 550])
def test_lmtp_refused_by_all_is_not_sent(code: int) -> None:
    """As an error, with each recipient's reply in the receipt."""
    finals = [play.Reply(f"{code} no")] * 3
    with ScriptedServer([*lmtp(*finals), answer("RSET", "250 ok")], lmtp=True) as server, wire_to(server) as wire:
        with pytest.raises(DataRefused) as info:
            send(wire, envelope(A, B, C), LMTP)
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == ((A, B, C) if code < 500 else ())
        assert set(info.value.receipt.refused) == {A, B, C}
        assert wire.is_open


def test_lmtp_cut_between_the_replies_is_in_doubt_for_the_rest() -> None:
    """Who accepted is known, the others are not; nobody is tried again."""
    with ScriptedServer(lmtp(play.Reply("250 ok"), Drop()), lmtp=True) as server, wire_to(server) as wire:
        with pytest.raises(ConnectionLost) as info:
            send(wire, envelope(A, B, C), LMTP)
        r = info.value.receipt
        assert r is not None
        assert (r.outcome, r.accepted, r.deferred) == (Outcome.IN_DOUBT, (A,), ())
        assert not wire.is_open


def test_lmtp_421_to_one_recipient_closes_when_all_have_been_heard() -> None:
    """The server is going; the replies to the others are still read."""
    finals = (play.Reply("250 ok"), play.Reply("421 4.3.2 bye"), play.Reply("250 ok"))
    with ScriptedServer([*lmtp(*finals), Stall()], lmtp=True) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), LMTP)
        assert (r.outcome, r.accepted, r.deferred) == (Outcome.PARTIAL, (A, C), (B,))
        assert not wire.is_open


# ---------------------------------------------------------------- what the server offers


def mail_line(e: Envelope, terms: Terms) -> str:
    return Transaction(e, terms).commands()[0].line


@pytest.mark.parametrize(
    ("offers", "content", "sender", "options"),
    [
        ({}, CONTENT, "ann@x.test", ""),
        ({"size": ""}, CONTENT, "ann@x.test", " size=20"),
        ({"size": "0"}, CONTENT, "ann@x.test", " size=20"),
        ({"size": "20"}, CONTENT, "ann@x.test", " size=20"),
        ({"size": "none"}, CONTENT, "ann@x.test", " size=20"),
        ({"8bitmime": ""}, CONTENT, "ann@x.test", ""),
        ({"8bitmime": ""}, CONTENT + b"\xff", "ann@x.test", " BODY=8BITMIME"),
        ({}, CONTENT + b"\xff", "ann@x.test", ""),
        ({"smtputf8": ""}, CONTENT, "ann@x.test", ""),
        ({"smtputf8": ""}, CONTENT, "jürgen@x.test", " SMTPUTF8"),
        (
            {"size": "", "8bitmime": "", "smtputf8": ""},
            CONTENT + b"\xff",
            "jürgen@x.test",
            " size=21 BODY=8BITMIME SMTPUTF8",
        ),
    ],
)
def test_parameters_are_those_the_message_needs_and_the_server_offers(
    offers: dict[str, str], content: bytes, sender: str, options: str
) -> None:
    """SIZE, BODY and SMTPUTF8, never unasked and never unoffered."""
    e = envelope(content=content, sender=sender)
    assert mail_line(e, Terms(offers)) == f"mail from:<{sender}>{options}"


def test_a_message_larger_than_the_server_takes_is_not_begun() -> None:
    """RFC 1870: permanent, with both sizes named, and not a byte written."""
    with ScriptedServer([Stall()]) as server, wire_to(server) as wire:
        with pytest.raises(MessageTooLarge, match="20 octets and the server takes 19") as info:
            send(wire, envelope(), Terms({"size": "19"}))
        assert not info.value.transient
        assert info.value.receipt is not None
        assert info.value.receipt.outcome is Outcome.NOT_SENT
        assert wire.is_open
        wire.close()
        server.wait_for_connections(0)
        assert [t for t in server.transcript if t.direction == "received"] == []


@pytest.mark.parametrize("size", ["9" * 5000, "-1", "1e3", "\u00b2", "٣", ""])
def test_a_size_that_is_no_number_is_no_limit(size: str) -> None:
    """A server's nonsense is not our crash."""
    assert mail_line(envelope(), Terms({"size": size})).startswith("mail from:")


def test_an_address_beyond_ascii_needs_the_extension() -> None:
    """NotSupported before a byte is written, with a receipt."""
    for e in (envelope(sender="jürgen@x.test"), envelope("jürgen@x.test")):
        with ScriptedServer([Stall()]) as server, wire_to(server) as wire:
            with pytest.raises(NotSupported, match="SMTPUTF8") as info:
                send(wire, e, Terms({"8bitmime": ""}))
            assert info.value.receipt is not None
            assert wire.is_open


def test_addresses_beyond_ascii_go_out_in_utf8() -> None:
    """With SMTPUTF8 said once in MAIL."""
    with ScriptedServer([ok()]) as server, wire_to(server) as wire:
        send(wire, envelope("jürgen@x.test", sender="grüße@x.test"), Terms({"smtputf8": ""}))
    message = server.messages[0]
    assert (message.sender, message.recipients) == ("grüße@x.test", ("jürgen@x.test",))
    assert message.mail_options == ("SMTPUTF8",)


def test_further_options_are_passed_where_there_are_extensions() -> None:
    """Those of MAIL once, those of RCPT each time; what the caller named is not said twice; none after HELO."""
    e = envelope(A, B, content=CONTENT + b"\xff")
    offers = {"dsn": "", "8bitmime": "", "smtputf8": ""}
    terms = Terms(offers, mail_options=["RET=HDRS", "body=8bitmime", "smtputf8"], rcpt_options=["NOTIFY=NEVER"])
    lines = [c.line for c in Transaction(e, terms).commands()]
    assert lines == [
        "mail from:<ann@example.org> RET=HDRS body=8bitmime smtputf8",
        f"rcpt to:<{A}> NOTIFY=NEVER",
        f"rcpt to:<{B}> NOTIFY=NEVER",
        "data",
    ]
    plain = Terms({}, mail_options=["RET=HDRS"], rcpt_options=["NOTIFY=NEVER"])
    assert [c.line for c in Transaction(e, plain).commands()][1] == f"rcpt to:<{A}>"


@pytest.mark.parametrize("option", ["SIZE=1 BODY=X", "A\r\nRSET", "A\n", "", "A\0", "Ü"])
@pytest.mark.parametrize("where", ["mail_options", "rcpt_options"])
def test_an_option_cannot_smuggle_a_command(option: str, where: str) -> None:
    """Refused before a byte is written, with a receipt that says NOT_SENT."""
    with ScriptedServer([Stall()]) as server, wire_to(server) as wire:
        with pytest.raises(InvalidEnvelope, match="option") as info:
            send(wire, envelope(), Terms({"dsn": ""}, **{where: [option]}))  # type: ignore[arg-type]
        assert str(info.value).isprintable()
        assert info.value.receipt is not None
        assert wire.is_open


# ---------------------------------------------------------------- hooks


class Stop(Exception):
    pass


def test_before_mail_may_stop_a_message_of_which_nothing_was_written() -> None:
    """The hook's own exception comes out; the connection is as good as before."""
    with ScriptedServer([ok()]) as server, wire_to(server) as wire:
        seen: list[Transaction] = []

        def stop(transaction: Transaction) -> None:
            seen.append(transaction)
            raise Stop

        with pytest.raises(Stop):
            send(wire, envelope(), Terms(), before_mail=stop)
        assert seen[0].receipt().outcome is Outcome.NOT_SENT
        assert wire.is_open
        assert send(wire, envelope(B), Terms()).outcome is Outcome.SENT
    assert len(server.messages) == 1


def test_the_transaction_can_be_asked_at_every_step() -> None:
    """Whoever kept it from `before_mail` learns the truth from any thread, whatever ends the call."""
    kept: list[Transaction] = []
    phases: list[tuple[Phase, Outcome]] = []

    class Ask(play.Step):
        def play(self, peer: play.Peer) -> None:
            phases.append((kept[0].phase, kept[0].receipt().outcome))

    script = [
        Expect("MAIL"),
        Ask(),
        play.Reply("250 ok"),
        Expect("RCPT"),
        Ask(),
        play.Reply("250 ok"),
        Expect("DATA"),
        Ask(),
        play.Reply("354 go"),
        ReadData(),
        Ask(),
        play.Reply("250 ok"),
    ]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        send(wire, envelope(), Terms(), before_mail=kept.append)
    assert phases == [
        (Phase.MAIL, Outcome.NOT_SENT),
        (Phase.RCPT, Outcome.NOT_SENT),
        (Phase.DATA, Outcome.NOT_SENT),
        (Phase.FINAL, Outcome.IN_DOUBT),
    ]
    assert (kept[0].phase, kept[0].receipt().outcome) == (Phase.DONE, Outcome.SENT)


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), MailError("not now")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("size", [10, 3 * BLOCK])
def test_before_final_may_stop_a_message_for_sure(error: BaseException, size: int) -> None:
    """It is called before the last bytes leave: the server has no message, and the connection is dropped."""
    script = [answer("MAIL", "250 ok"), answer("RCPT", "250 ok"), answer("DATA", "354 go"), Stall()]
    e = envelope(content=CONTENT + b"x" * size)

    def stop(transaction: Transaction) -> None:
        assert transaction.envelope is e
        raise error

    with ScriptedServer(script) as server, wire_to(server) as wire:
        kept: list[Transaction] = []
        with pytest.raises(type(error)) as info:
            send(wire, e, Terms(), before_mail=kept.append, before_final=stop)
        assert kept[0].receipt().outcome is Outcome.NOT_SENT
        assert kept[0].phase is Phase.CONTENT
        told = info.value
        if isinstance(told, MailError):
            assert told.receipt is not None
            assert told.receipt.outcome is Outcome.NOT_SENT
        else:
            assert told is error
        assert not wire.is_open
        server.wait_for_connections(0)
        received = b"".join(t.data for t in server.transcript if t.direction == "received")
        assert not received.endswith(b"\r\n.\r\n")


def test_before_final_comes_once_when_all_but_the_end_is_out() -> None:
    """Called exactly once, after every recipient was asked; then the message goes."""
    calls: list[Transaction] = []
    with ScriptedServer([ok(2)]) as server, wire_to(server) as wire:
        e = envelope(A, B)
        assert send(wire, e, Terms(), before_final=calls.append).outcome is Outcome.SENT
    assert [transaction.envelope for transaction in calls] == [e]


def test_before_final_is_not_called_for_a_message_that_was_refused() -> None:
    """There is no end of data then."""
    with ScriptedServer([answer("MAIL", "550 no"), answer("RSET", "250 ok")]) as server, wire_to(server) as wire:
        with pytest.raises(SenderRefused):
            send(wire, envelope(), Terms(), before_final=lambda e: pytest.fail("called"))


# ---------------------------------------------------------------- properties

codes = st.sampled_from([199, 220, 250, 251, 299, 334, 354, 421, 450, 451, 499, 500, 550, 554, 599])


@given(st.lists(codes, min_size=8, max_size=12), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_receipt_is_true_whatever_the_server_answers(
    replies: list[int], recipients: int, is_lmtp: bool, all_or_nothing: bool
) -> None:
    """Any codes in any order: accepted only with a 2yz at the end, in doubt only after the end of data."""
    said = iter(replies)
    e = envelope(*(A, B, C)[:recipients])
    t = Transaction(e, Terms(lmtp=is_lmtp, all_or_nothing=all_or_nothing))
    finals: list[int] = []
    broken = False
    try:
        for command in t.commands():
            t.phase = command.phase
            t.take(command, Said(next(said)))
            if t.error is not None:
                break
        else:
            t.phase = Phase.FINAL
            for recipient in t.awaited:
                finals.append(next(said))
                t.take_final(recipient, Said(finals[-1]))
    except BadReply as error:
        t.blame(error)
        broken = True
    r = t.receipt()
    assert (r.outcome is Outcome.IN_DOUBT) == (broken and t.phase is Phase.FINAL)
    assert set(r.accepted) <= set(e.recipients)
    assert bool(r.accepted) == any(200 <= code <= 299 for code in finals)
    if r.outcome is Outcome.SENT:
        assert r.accepted == e.recipients
        assert r.error is None
    if r.outcome is Outcome.NOT_SENT:
        assert r.error is not None
    assert not set(r.deferred) & set(r.accepted)
    if all_or_nothing and t.phase is not Phase.RCPT and t.phase is not Phase.MAIL:
        assert not any(reply.transient or reply.permanent for reply in r.replies.values()) or is_lmtp


def test_two_messages_never_share_anything() -> None:
    """Transactions are made anew for each message: replies of one are not in the receipt of the next."""
    script = [
        answer("MAIL", "250 ok"),
        answer("RCPT", "250 first"),
        answer("RCPT", "550 no"),
        answer("DATA", "354 go"),
        ReadData(),
        play.Reply("250 ok"),
        ok(),
    ]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        first, second = send(wire, envelope(A, B), Terms()), send(wire, envelope(C), Terms())
    assert set(first.replies) == {A, B}
    assert set(second.replies) == {C}


def test_the_final_reply_has_its_own_time_limit() -> None:
    """Ten minutes there, whatever commands get: hanging up sooner makes duplicates."""
    go = threading.Event()
    limits: list[float | None] = []

    class Ask(play.Step):
        def play(self, peer: play.Peer) -> None:
            go.wait(0.4)  # longer than a command may take

    script = [*until(Phase.FINAL), Ask(), play.Reply("250 ok")]
    for final in (10.0, None):
        with ScriptedServer(script) as server:
            with wire_to(server, Timeouts(command=0.25, content=0.25, final=final)) as wire:
                assert send(wire, envelope(), Terms()).outcome is Outcome.SENT
                limits.append(final)
    assert limits == [10.0, None]


class CountedAddress(str):
    """Counts how often it is compared."""

    compared = 0
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedAddress.compared += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("lmtp", [False, True])
def test_what_a_recipient_costs_does_not_grow_with_their_number(lmtp: bool) -> None:
    """No list of them is searched for one of them: 4,000, half put off, take 8 times what 500 take."""
    compared = []
    for number in (500, 4000):
        e = envelope()
        object.__setattr__(e, "recipients", tuple(CountedAddress(f"u{n}@example.net") for n in range(number)))
        progress = Progress(e, Terms({"pipelining": ""}, lmtp=lmtp))
        transaction, CountedAddress.compared = progress.transaction, 0
        while progress.waiting or progress.unanswered:
            progress.take()
            command = progress.unanswered.popleft()
            odd = command.recipient is not None and command.recipient[1] in "13579"
            transaction.take(command, Said(354) if command.line == "data" else Said(450 if odd else 250, b"x"))
        for recipient in transaction.awaited:
            transaction.take_final(recipient, Said(250, b"ok"))
        assert transaction.receipt().outcome is Outcome.PARTIAL
        compared.append(CountedAddress.compared)
    assert compared[1] <= 9 * compared[0]
    assert compared[1] <= 4 * 4000
