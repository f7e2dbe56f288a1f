"""Commands in groups (PIPELINING): fewer round trips, and in every odd place the same truth as one at a time."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass

import pytest

from tests.support.dialogue import A, B, C, NothingMore, Part, envelope, group, ok, replies, send, wire_to
from tests.support.mail import envelope as named
from threadmail import (
    BadReply,
    Client,
    ConnectionLost,
    DataRefused,
    MailError,
    Outcome,
    Phase,
    RecipientsRefused,
    SenderRefused,
)
from threadmail import testing as play
from threadmail._protocol.progress import IN_FLIGHT
from threadmail._protocol.transaction import Terms
from threadmail.testing import (
    Drip,
    Drop,
    Expect,
    Peer,
    ReadData,
    Reply,
    Reset,
    ScriptedServer,
    Send,
    Serve,
    Stall,
    answer,
    ehlo,
    greeting,
)
from threadmail.testing._peer import Silence

GROUPED = Terms(extensions={"pipelining": ""})
LMTP = Terms(extensions={"pipelining": ""}, lmtp=True)


# ---------------------------------------------------------------- what is written together


def test_a_message_is_two_round_trips() -> None:
    """All commands come before the first reply, and the content before the final one."""
    script = [*group(3), replies("250 ok", "250 ok", "250 ok", "250 ok", "354 go"), ReadData(), Reply("250 2.0.0 OK")]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), GROUPED)
        assert (r.outcome, r.accepted, str(r.reply)) == (Outcome.SENT, (A, B, C), "250 2.0.0 OK")
    [message] = server.messages
    assert message.recipients == (A, B, C)


def test_a_client_does_so_unasked_and_can_be_told_not_to() -> None:
    """By what the server offers, but for what the config withholds."""
    grouped = [
        greeting(),
        ehlo("PIPELINING"),
        *group(2),
        replies(*["250 ok"] * 3, "354 go"),
        ReadData(),
        Reply("250 ok"),
    ]
    lockstep = [greeting(), ehlo("PIPELINING"), Expect("MAIL"), NothingMore(), Reply("250 ok"), Expect("RCPT"), Drop()]
    with ScriptedServer(grouped, lockstep) as server:
        with Client(server.config) as client:
            assert client.send(named()).outcome is Outcome.SENT
        with Client(dataclasses.replace(server.config, without=frozenset({"pipelining"}))) as client:
            with pytest.raises(ConnectionLost):
                client.send(named())


def test_all_or_nothing_asks_for_data_when_every_recipient_has_answered() -> None:
    """After a 354 there would be no way back."""
    asked: list[Part] = [Expect("MAIL"), Expect("RCPT"), Expect("RCPT"), NothingMore()]
    refused = [*asked, replies("250 ok", "250 ok", "450 later"), answer("RSET", "250 ok")]
    taken = [*asked, replies(*["250 ok"] * 3), answer("DATA", "354 go"), ReadData(), Reply("250 ok")]
    terms = dataclasses.replace(GROUPED, all_or_nothing=True)
    with ScriptedServer([*refused, *taken]) as server, wire_to(server) as wire:
        with pytest.raises(RecipientsRefused) as info:
            send(wire, envelope(A, B), terms)
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == (A, B)
        assert send(wire, envelope(A, B), terms).outcome is Outcome.SENT
    assert len(server.messages) == 1


def test_lmtp_has_its_replies_in_order() -> None:
    """One for each accepted recipient, whoever was refused before."""
    script = [*group(3), replies("250 ok", "250 ok", "550 no", "250 ok", "354 go"), ReadData()]
    with ScriptedServer([*script, replies("250 first", "452 full")]) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), LMTP)
        assert (r.outcome, r.accepted, r.deferred) == (Outcome.PARTIAL, (A,), (C,))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("data", ["503 5.5.1 no recipients", "554 5.5.1 no valid recipients"])
def test_all_refused_and_then_a_good_message(data: str) -> None:
    """The old MAIL is taken away by RSET: it would swallow the next one's recipients."""
    refused = [*group(2), replies("250 ok", "550 no", "450 later", data), answer("RSET", "250 ok")]
    taken = [*group(), replies("250 ok", "250 ok", "354 go"), ReadData(), Reply("250 ok")]
    with ScriptedServer([*refused, *taken]) as server, wire_to(server) as wire:
        with pytest.raises(RecipientsRefused) as info:
            send(wire, envelope(A, B), GROUPED)
        receipt = info.value.receipt
        assert receipt is not None
        assert (receipt.outcome, receipt.phase, receipt.deferred) == (Outcome.NOT_SENT, Phase.RCPT, (B,))
        assert send(wire, envelope(C), GROUPED).outcome is Outcome.SENT
    assert [m.recipients for m in server.messages] == [(C,)]


@pytest.mark.parametrize("final", ["554 5.5.1 no valid recipients", "250 2.0.0 whatever"])
def test_a_354_without_recipients_is_ended_by_a_lone_dot(final: str) -> None:
    """It delivers to nobody, whatever the server says to it; the content itself is not sent."""
    script = [*group(), replies("250 ok", "550 no", "354 go"), Expect("."), Reply(final), answer("RSET", "250 ok")]
    with ScriptedServer([*script, ok()]) as server, wire_to(server) as wire:
        with pytest.raises(RecipientsRefused) as info:
            send(wire, envelope(A), GROUPED)
        assert info.value.outcome is Outcome.NOT_SENT
        assert wire.is_open
        assert send(wire, envelope(), Terms()).outcome is Outcome.SENT
    assert len(server.messages) == 1


@pytest.mark.parametrize(
    ("said", "terms"),
    [
        (("550 no", "250 ok", "354 go"), GROUPED),  # which sender's recipient is it that stands accepted?
        (("550 no", "503 need MAIL", "354 go"), GROUPED),
        (("250 ok", "550 no", "354 go"), LMTP),  # no reply is owed to a dot that concerns nobody
    ],
)
def test_a_354_that_no_dot_can_answer_ends_the_connection(said: tuple[str, ...], terms: Terms) -> None:
    """The server waits for content, and none may be given to it."""
    with ScriptedServer([*group(), replies(*said), Stall()]) as server, wire_to(server) as wire:
        with pytest.raises((SenderRefused, RecipientsRefused)) as info:
            send(wire, envelope(A), terms)
        assert info.value.outcome is Outcome.NOT_SENT
        assert not wire.is_open
    assert server.messages == []


def test_a_refused_mail_is_what_counts() -> None:
    """What the server says to the commands behind it says nothing about the recipients."""
    script = [*group(2), replies("451 4.7.1 greylisted", "503 no", "503 no", "503 no"), answer("RSET", "250 ok"), ok()]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(SenderRefused) as info:
            send(wire, envelope(A, B), GROUPED)
        receipt = info.value.receipt
        assert receipt is not None
        assert (receipt.phase, dict(receipt.refused), receipt.deferred) == (Phase.MAIL, {}, (A, B))
        assert send(wire, envelope(), Terms()).outcome is Outcome.SENT


def test_partly_refused() -> None:
    """The others get it."""
    script = [
        *group(3),
        replies("250 ok", "550 no", "250 ok", "450 later", "354 go"),
        ReadData(),
        Reply("250 ok"),
        ok(),
    ]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        r = send(wire, envelope(A, B, C), GROUPED)
        assert (r.outcome, r.accepted, r.deferred) == (Outcome.PARTIAL, (B,), (C,))
        assert send(wire, envelope(), Terms()).outcome is Outcome.SENT
    assert server.messages[0].recipients == (B,)


def test_a_refused_data_is_reset() -> None:
    """DATA was refused though recipients stand accepted."""
    script = [*group(), replies("250 ok", "250 ok", "452 4.3.1 full"), answer("RSET", "250 ok"), ok()]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(DataRefused) as info:
            send(wire, envelope(A), GROUPED)
        assert (info.value.phase, info.value.transient) == (Phase.DATA, True)
        assert send(wire, envelope(), Terms()).outcome is Outcome.SENT


# ---------------------------------------------------------------- breakdowns

PLACES = range(4)  # which of the replies to MAIL, RCPT, RCPT and DATA is the odd one
GOOD = ("250 ok", "250 ok", "250 ok", "354 go")
IN_PLACE = [Phase.MAIL, Phase.RCPT, Phase.RCPT, Phase.DATA]


@pytest.mark.parametrize("place", PLACES)
def test_a_421_in_each_place(place: int) -> None:
    """The server is closing: nothing is sent, everything may be tried again, the rest is not waited for."""
    script = [*group(2), replies(*GOOD[:place], "421 4.3.2 bye"), Stall()]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(MailError) as info:
            send(wire, envelope(A, B), GROUPED)
        assert (info.value.outcome, info.value.phase, info.value.transient) == (Outcome.NOT_SENT, IN_PLACE[place], True)
        assert info.value.receipt is not None
        assert info.value.receipt.deferred == (A, B)
        assert not wire.is_open


@pytest.mark.parametrize("end", [Drop(), Reset()], ids=["fin", "reset"])
@pytest.mark.parametrize("place", PLACES)
def test_a_connection_lost_in_each_place(place: int, end: play.Step) -> None:
    """No content was written, so nobody has it, though a 354 may be on its way."""
    script = [*group(2), replies(*GOOD[:place]) if place else Send(b""), end]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(ConnectionLost) as info:
            send(wire, envelope(A, B), GROUPED)
        assert (info.value.outcome, info.value.transient) == (Outcome.NOT_SENT, True)
        if isinstance(end, Drop):  # a reset may overtake the replies
            assert info.value.phase is IN_PLACE[place]


@pytest.mark.parametrize("place", PLACES)
def test_a_reply_of_the_wrong_kind_in_each_place(place: int) -> None:
    """The two sides no longer speak of the same thing."""
    odd = "250 ok" if place == 3 else "354 go"
    script = [*group(2), replies(*GOOD[:place], odd, *GOOD[place + 1 :]), Stall()]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(BadReply) as info:
            send(wire, envelope(A, B), GROUPED)
        assert (info.value.outcome, info.value.phase) == (Outcome.NOT_SENT, IN_PLACE[place])
        assert not wire.is_open


@pytest.mark.parametrize("rest", [b"", b"5", b"nonsense\r\n", b"250 ok\r\n503 x\r\n503 x\r\n"])
def test_a_refusal_stands_whatever_becomes_of_the_rest(rest: bytes) -> None:
    """A server that says 550 and hangs up, or talks nonsense, has refused."""
    script = [*group(2), Send(b"550 5.7.1 go away\r\n" + rest), Drop()]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        with pytest.raises(SenderRefused) as info:
            send(wire, envelope(A, B), GROUPED)
        assert (info.value.smtp_code, info.value.transient, info.value.phase) == (550, False, Phase.MAIL)
        assert not wire.is_open


def test_one_reply_too_many_is_no_answer_to_the_next_message() -> None:
    """It lies unread when the next message begins, and ends the connection."""
    script = [*group(), replies("250 ok", "250 ok", "354 go"), ReadData(), replies("250 ok", "250 extra"), Stall()]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        assert send(wire, envelope(A), GROUPED).outcome is Outcome.SENT
        with pytest.raises(BadReply, match="out of turn: 250 extra") as info:
            send(wire, envelope(B), GROUPED)
        assert info.value.outcome is Outcome.NOT_SENT


def test_replies_that_come_late_and_in_pieces() -> None:
    """A reply is what a line end ends."""
    said = b"250-ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"
    script = [*group(), Drip(said, 0.002), ReadData(), Drip(b"250 2.0.0 OK\r\n", 0.002)]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        assert send(wire, envelope(A), GROUPED).outcome is Outcome.SENT


def test_a_stale_connection_is_replaced_unnoticed() -> None:
    """The group went into a connection that the server had given up; nothing of the content did."""
    taken = [*group(2), replies(*GOOD), ReadData(), Reply("250 ok")]
    first = [greeting(), ehlo("PIPELINING"), *taken, *group(2), Drop()]
    with ScriptedServer(first, [greeting(), ehlo("PIPELINING"), *taken]) as server, Client(server.config) as client:
        assert client.send(named("a")).outcome is Outcome.SENT
        assert client.send(named("b")).outcome is Outcome.SENT
        assert client.stats().closed == {"stale": 1}


# ---------------------------------------------------------------- long lists


@dataclass(frozen=True)
class AnswerInRounds:
    """Answers only when nothing more comes, all that came: as a server does that has filled its buffers."""

    largest: list[int]

    def play(self, peer: Peer) -> None:
        commands: list[str] = []
        while True:
            try:
                commands.append(peer.read_command(0.03))
            except Silence:
                if not commands:
                    continue
                self.largest.append(len(commands))
                peer.reply("\n".join("354 go" if c == "data" else "250 ok" for c in commands))
                if commands[-1] == "data":
                    return
                commands.clear()


def test_a_thousand_recipients_are_never_too_many_at_once() -> None:
    """The replies that may be outstanding are bounded: else both sides could wait for each other to read."""
    rounds: list[int] = []
    many = [f"user{i}@example.net" for i in range(1000)]
    with ScriptedServer([AnswerInRounds(rounds), ReadData(), Reply("250 ok")]) as server, wire_to(server) as wire:
        assert send(wire, envelope(*many), GROUPED).outcome is Outcome.SENT
    assert server.messages[0].recipients == tuple(many)
    assert max(rounds) <= IN_FLIGHT
    assert sum(rounds) == 1002
    assert len(rounds) <= 1002 // (IN_FLIGHT // 2) + 1


def test_a_refused_mail_ends_a_long_list_early() -> None:
    """What has not been written is not written any more."""
    heard = threading.Event()
    many = [f"user{i}@example.net" for i in range(1000)]
    script = [greeting(), ehlo("PIPELINING"), Serve(until="RSET", replies={"MAIL": "550 no", "RCPT": "503 no"})]
    with ScriptedServer([*script, Reply("250 ok"), play.Signal(heard), Serve()]) as server:
        with Client(server.config) as client, pytest.raises(SenderRefused):
            client.send(envelope(*many))
        assert heard.wait(10.0)
    assert len(server.received[0]) < 2 * IN_FLIGHT
