"""What a server says to every group of commands is known at sight, and changes nothing about what is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dialogue import CONTENT, A, B, Part, group, replies, wire_to
from threadmail import Envelope, MailError, Outcome, Receipt
from threadmail import testing as play
from threadmail._protocol.transaction import Terms
from threadmail._session.delivery import Follower, Pipeline
from threadmail._transport.wire import Wire, protocol_log
from threadmail.testing import Drip, Expect, Peer, ReadData, ScriptedServer, Send, answer

CONSENT = ["250 2.0.0 reset", "250 2.1.0 sender ok", "250 2.1.5 recipient ok", "354 go"]


def row(wire: Wire, envelopes: Sequence[Envelope]) -> list[Receipt]:
    """Send them one behind the other, as a client does with a list."""
    pipeline, waiting, receipts = Pipeline(wire), list(envelopes[1:]), []
    terms = Terms({"pipelining": ""})
    for envelope in envelopes:
        wire.look_for_listeners()
        try:
            receipts.append(
                pipeline.send(envelope, terms, follow=lambda: Follower(waiting.pop(0)) if waiting else None)
            )
        except MailError as error:
            receipts += [error.receipt] if error.receipt else []
        if not wire.is_open:
            break
    return receipts


def letters(count: int, *recipients: str) -> list[Envelope]:
    return [Envelope("ann@example.org", recipients or (A,), CONTENT) for _ in range(count)]


def session(*groups: Sequence[str], finals: Sequence[str] = ()) -> list[Part]:
    """A server that answers each group behind the first in one write with the final reply ahead of it."""
    script: list[Part] = [*group(), replies(*CONSENT[1:])]
    for number, said in enumerate(groups):
        final = finals[number] if finals else "250 2.0.0 ok"
        script += [ReadData(), Expect("RSET"), *group(), replies(final, *said)]
    return [*script, ReadData(), play.Reply("250 2.0.0 ok")]


class Looks:
    """Counts the groups that were known at sight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hits = 0
        real = Wire.read_known_group

        def counted(wire: Wire, count: int) -> object:
            known = real(wire, count)
            self.hits += known is not None
            return known

        monkeypatch.setattr(Wire, "read_known_group", counted)


def test_the_same_consent_is_known_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each receipt has the replies as the server gave them."""
    looks = Looks(monkeypatch)
    finals = [f"250 2.0.0 queued as {n}" for n in range(4)]
    with ScriptedServer(session(*[CONSENT] * 4, finals=finals)) as server, wire_to(server) as wire:
        receipts = row(wire, letters(5))
    assert looks.hits == 3
    assert [str(r.reply) for r in receipts] == [*finals, "250 2.0.0 ok"]
    assert [str(r.replies[A]) for r in receipts] == [CONSENT[2]] * 5
    assert all(r.outcome is Outcome.SENT and r.accepted is r.recipients for r in receipts)


def test_another_consent_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    other = [*CONSENT[:2], "250 2.1.5 another text", "354 go"]
    with ScriptedServer(session(CONSENT, CONSENT, other, CONSENT, other)) as server, wire_to(server) as wire:
        receipts = row(wire, letters(6))
    assert looks.hits == 3
    assert [str(r.replies[A])[10:] for r in receipts] == [
        *("recipient ok", "recipient ok", "recipient ok", "another text", "recipient ok", "another text")
    ]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("code", ["251", "450", "550", "421", "500"])
def test_only_what_consents_to_all_is_known(place: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same refusal, word for word, is judged each time that it comes."""
    looks = Looks(monkeypatch)
    said = [*CONSENT[:place], f"{code} 2.0.0 odd", *CONSENT[place + 1 :]]
    with ScriptedServer([*session(said)[:-2], play.Drop()]) as server, wire_to(server) as wire:
        row(wire, letters(2))
        assert not any(reply.code == int(code) for known in wire._known_groups.values() for reply in known)
    assert looks.hits == 0


def test_one_reply_too_many_is_found_behind_what_is_known() -> None:
    """It comes with the group, which by itself is known."""
    script = session(CONSENT, CONSENT, [*CONSENT, "250 extra"])
    with ScriptedServer(script[:-2]) as server, wire_to(server) as wire:
        receipts = row(wire, letters(4))
    assert [r.outcome for r in receipts] == [Outcome.SENT] * 3 + [Outcome.NOT_SENT]
    assert "out of turn: 250 extra" in str(receipts[3].error)


def test_what_comes_in_pieces_is_read_in_pieces() -> None:
    said = "".join(f"{line}\r\n" for line in CONSENT).encode()
    script: list[Part] = [*group(), replies(*CONSENT[1:])]
    for cut in (len(said), 5, 20, len(said) - 1):
        script += [ReadData(), Expect("RSET"), *group(), Send(b"250 2.0.0 ok\r\n" + said[:cut])]
        script += [Drip(said[cut:], 0.002)] if cut < len(said) else []
    script += [ReadData(), play.Reply("250 2.0.0 ok")]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        assert [r.outcome for r in row(wire, letters(5))] == [Outcome.SENT] * 5


def test_as_many_replies_to_another_group_are_those_to_that_group() -> None:
    """MAIL, two RCPT and DATA have as many as RSET, MAIL, RCPT and DATA, and may be answered in the same words."""
    said = ["250 ok", "250 ok", "250 ok", "354 go"]
    script: list[Part] = [*group(2), replies(*said), ReadData(), Expect("RSET"), *group(1)]
    script += [replies("250 ok", *said), ReadData(), play.Reply("250 ok")]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        first, second = row(wire, [*letters(1, A, B), *letters(1, B)])
        assert len(wire._known_groups) == 1
    assert (first.accepted, list(first.replies)) == ((A, B), [A, B])
    assert (second.accepted, list(second.replies)) == ((B,), [B])


def test_while_somebody_listens_each_reply_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(session(CONSENT, CONSENT, CONSENT)) as server, wire_to(server) as wire:
        with caplog.at_level(logging.DEBUG, protocol_log.name):
            row(wire, letters(4))
    shown = [record.getMessage().partition(" < ")[2] for record in caplog.records]
    assert shown.count(CONSENT[2]) == 4


def test_what_never_comes_again_is_forgotten() -> None:
    """A server that says another thing each time costs no memory."""
    said = [[*CONSENT[:2], f"250 2.1.5 number {n}", "354 go"] for n in range(100)]
    with ScriptedServer(session(*said)) as server, wire_to(server) as wire:
        row(wire, letters(101))
        assert len(wire._known_groups) <= 32


def test_the_replies_ahead_of_a_group_behind_a_lone_dot_are_each_looked_at() -> None:
    """The dot's reply belongs to nobody, and may be anything."""
    head: list[Part] = [Expect("."), Expect("RSET"), *group()]
    script = [*group(), replies("250 ok", "550 no", "354 go"), *head, replies("250 whatever", *CONSENT)]
    script += [ReadData(), play.Reply("250 ok"), answer("QUIT", "221 bye")]
    with ScriptedServer(script) as server, wire_to(server) as wire:
        assert [r.outcome for r in row(wire, letters(2))] == [Outcome.NOT_SENT, Outcome.SENT]
        assert not wire._known_groups
        wire.command("QUIT")


@dataclass(frozen=True)
class AnswerInGroups:
    """Answers the commands of each message in one write, behind the final reply to the content ahead of them."""

    said: Sequence[tuple[str, str, str]]

    def play(self, peer: Peer) -> None:
        ahead: list[str] = []
        was_read = 0
        for mail, rcpt, data in self.said:
            for _ in range(3 + len(ahead) - was_read):
                peer.read_command(10.0)
            told = [mail, rcpt if mail[0] == "2" else "503 no", data if mail[0] == "2" else "503 no"]
            peer.send("".join(f"{line}\r\n" for line in [*ahead, *told]).encode())
            if told[2][0] != "3":
                ahead, was_read = ["250 reset"], 0
            elif rcpt[0] == "2":
                peer.read_content(10.0)
                ahead, was_read = ["250 2.0.0 ok", "250 reset"], 1  # the content has been read already
            else:
                ahead, was_read = ["554 nobody", "250 reset"], 0  # a lone dot comes with the next group
        if was_read:
            peer.send(b"250 2.0.0 ok\r\n")
        else:
            for _ in ahead:
                peer.read_command(10.0)
            peer.send("".join(f"{line}\r\n" for line in ahead).encode())


lines = st.sampled_from(["250 ok", "250 ok", "250 ok", "250 other", "251 elsewhere", "450 later", "550 no"])
data = st.sampled_from(["354 go", "354 go", "354 go ahead", "451 not now"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(lines, lines, data), min_size=2, max_size=8))
def test_what_is_told_is_the_same_as_without(said: list[tuple[str, str, str]]) -> None:
    """Whatever comes, and however often it has come before."""
    assert told(said, learn=True) == told(said, learn=False)


def told(said: Sequence[tuple[str, str, str]], *, learn: bool) -> list[object]:
    with ScriptedServer([AnswerInGroups(said)]) as server, wire_to(server) as wire:
        if not learn:
            wire.learn_group = lambda begun, count: None  # type: ignore[method-assign]
        receipts = row(wire, letters(len(said)))
    assert len(receipts) == len(said)
    return [(r.outcome, r.phase, dict(r.replies), r.reply, str(r.error)) for r in receipts]
