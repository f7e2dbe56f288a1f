"""Riding: the content of one message and the commands of the next in one write, and the truth about both."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.dialogue import NothingMore, Part, group, replies
from tests.support.mail import envelope as named
from tests.support.mail import in_threads, intact, names
from threadmail import (
    Aborted,
    Client,
    Closed,
    Envelope,
    MailError,
    MessageTooLarge,
    NotSupported,
    Outcome,
    Phase,
    Receipt,
    Reentered,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
)
from threadmail._protocol.transaction import Transaction
from threadmail.testing import (
    Drop,
    Expect,
    Pause,
    ReadData,
    Reply,
    ScriptedServer,
    Serve,
    Signal,
    Stall,
    answer,
    ehlo,
    greeting,
)

HELLO: list[Part] = [greeting(), ehlo("PIPELINING", "SIZE 1000000")]
GO = ["250 ok", "250 ok", "250 ok", "354 go"]
#: The commands of a message, with the content of the one before; nothing has been answered.
ABOARD: list[Part] = [ReadData(), Expect("RSET"), *group(2)]
RIDE = ["250 reset", *GO]
LAST: list[Part] = [ReadData(), NothingMore(), Reply("250 2.0.0 last")]
BYE = answer("QUIT", "221 bye")
QUICK = RetryPolicy(base=0.01)


def serial(*parts: Part) -> list[Part]:
    """A conversation that begins with the commands of a message by itself, answered."""
    return [*HELLO, *group(2), replies(*GO), *parts]


class Queued:
    """A sender of one lane whose first message is not answered before all have been submitted."""

    def __init__(self, *parts: Part, others: tuple[list[Part], ...] = ()) -> None:
        self.all_there = threading.Event()
        script = [*HELLO, *group(2), Pause(self.all_there, 10.0), *parts]
        self.server = ScriptedServer(script, *others)

    def send(self, *messages: str, **settings: object) -> list[Receipt]:
        with self.server, ThreadedSender(self.server.config, workers=1, retry=QUICK, **settings) as sender:  # type: ignore[arg-type]
            futures = [sender.submit(named(message)) for message in messages]
            self.all_there.set()
            for future in futures:
                future.exception(20.0)
        assert all(future.receipt is not None for future in futures)
        return [future.receipt for future in futures if future.receipt is not None]


# ---------------------------------------------------------------- what is written together


def test_a_sender_prefetches_the_next_message() -> None:
    queued = Queued(
        replies(*GO),
        *ABOARD,
        replies("250 2.0.0 first", *RIDE),
        *ABOARD,
        replies("250 2.0.0 second", *RIDE),
        *LAST,
        *BYE,
    )
    receipts = queued.send("a", "b", "c")
    assert [str(r.reply) for r in receipts] == ["250 2.0.0 first", "250 2.0.0 second", "250 2.0.0 last"]
    assert intact(queued.server.messages) == Counter("abc")
    assert [r.attempts for r in receipts] == [1, 1, 1]


def test_a_client_does_so_with_a_batch() -> None:
    script = serial(*ABOARD, replies("250 2.0.0 first", *RIDE), *LAST, *BYE)
    with ScriptedServer(script) as server, Client(server.config) as client:
        report = client.send_all([named("a"), named("b")])
        assert [str(r.reply) for r in report] == ["250 2.0.0 first", "250 2.0.0 last"]
        assert client.stats().sent == 2
    assert intact(server.messages) == Counter("ab")


@pytest.mark.parametrize("off", ["server", "config"])
def test_not_where_pipelining_is_not_offered_or_switched_off(off: str) -> None:
    offered = [] if off == "server" else ["PIPELINING"]
    lockstep: list[Part] = [Expect("MAIL"), NothingMore(), Reply("250 ok")]
    for word in ("RCPT", "RCPT", "DATA"):
        lockstep += [Expect(word), NothingMore(), Reply("354 go" if word == "DATA" else "250 ok")]
    lockstep += [ReadData(), NothingMore(), Reply("250 ok")]
    with ScriptedServer([greeting(), ehlo(*offered), *lockstep, *lockstep, *BYE]) as server:
        with Client(dataclasses.replace(server.config, without=frozenset({"pipelining"} if offered else ()))) as client:
            assert client.send_all([named("a"), named("b")]).counts()[Outcome.SENT] == 2


def test_nobody_is_prefetched_on_a_connection_that_is_worn_and_the_farewell_rides_instead() -> None:
    """QUIT leaves with the last content, and its reply is waited for when the connection is to be replaced."""
    first = serial(*ABOARD, replies("250 ok", *RIDE), ReadData(), Expect("QUIT"), replies("250 2.0.0 last", "221 bye"))
    second = serial(*LAST, *BYE)
    with ScriptedServer(first, second) as server:
        with Client(dataclasses.replace(server.config, max_messages=2)) as client:
            assert client.send_all(named(n) for n in "abc").counts()[Outcome.SENT] == 3
            assert client.stats().closed == {"worn": 1}


def test_a_farewell_that_rides_keeps_no_receipt_waiting() -> None:
    """A server that answers QUIT late (Exim: 200 ms), or hangs up on it, has said what became of the message."""
    for end in (Stall(), Drop()):
        script = serial(ReadData(), Expect("QUIT"), replies("250 2.0.0 last"), end)
        with ScriptedServer(script, [Serve()]) as server:
            timeouts = dataclasses.replace(server.config.timeouts, quit=0.2)
            with Client(dataclasses.replace(server.config, max_messages=1, timeouts=timeouts)) as client:
                assert str(client.send(named("a")).reply) == "250 2.0.0 last"
                assert client.send(named("b")).outcome is Outcome.SENT


def test_a_refused_content_ends_with_the_farewell_behind_it() -> None:
    script = serial(ReadData(), Expect("QUIT"), replies("554 5.7.1 spam", "221 bye"))
    with ScriptedServer(script) as server, Client(dataclasses.replace(server.config, max_messages=1)) as client:
        with pytest.raises(MailError) as info:
            client.send(named("a"))
        assert (info.value.outcome, info.value.phase) == (Outcome.NOT_SENT, Phase.DONE)


def test_nobody_waits_prefetched_beyond_his_deadline() -> None:
    """The one ahead may wait for its final reply for minutes; the one behind has to be settled sooner."""
    queued = Queued(replies(*GO), *LAST, *group(2), replies(*GO), *LAST, *BYE)
    with queued.server, ThreadedSender(queued.server.config, workers=1) as sender:
        futures = [sender.submit(named("a")), sender.submit(named("b"), deadline=20.0)]
        queued.all_there.set()
        assert [f.result(20.0).outcome for f in futures] == [Outcome.SENT, Outcome.SENT]


def test_a_message_for_all_or_nobody_prefetches_nobody() -> None:
    asked: list[Part] = [Expect("MAIL"), Expect("RCPT"), Expect("RCPT"), replies(*GO[:3]), *answer("DATA", "354 go")]
    with ScriptedServer([*HELLO, *asked, *LAST, *BYE]) as server, Client(server.config) as client:
        client.transmit(named("a"), all_or_nothing=True, follow=lambda: pytest.fail("was asked"))


def test_lmtp_rides_as_well() -> None:
    """The replies to one content, one for each recipient, come before those to the commands behind it."""
    script = [
        greeting(), Expect("LHLO"), replies("250-here", "250 PIPELINING"), *group(2), replies(*GO),
        *ABOARD, replies("250 2.0.0 one", "250 2.0.0 two", *RIDE), ReadData(), replies("250 2.0.0 one", "550 no"), *BYE,
    ]  # fmt: skip
    with ScriptedServer(script) as server:
        with Client(ServerConfig(server.host, server.port, lmtp=True, local_hostname="me")) as client:
            first, second = client.send_all([named("a"), named("b")])
    assert (first.outcome, second.outcome) == (Outcome.SENT, Outcome.PARTIAL)
    assert second.accepted == ("to-b@example.net",)


# ---------------------------------------------------------------- refusals


def test_the_refusal_of_a_content_is_that_of_one_message() -> None:
    queued = Queued(replies(*GO), *ABOARD, replies("554 5.7.1 spam", *RIDE), *LAST, *BYE)
    first, second = queued.send("a", "b")
    assert (first.outcome, first.phase, second.outcome) == (Outcome.NOT_SENT, Phase.DONE, Outcome.SENT)
    assert second.attempts == 1


@pytest.mark.parametrize(
    ("refusals", "ending"),
    [
        (["550 no", "503 no", "503 no", "503 no"], ["RSET"]),
        (["250 ok", "550 no", "550 no", "503 no"], ["RSET"]),
        (["250 ok", "550 no", "550 no", "554 no"], ["RSET"]),
        (["250 ok", "250 ok", "250 ok", "451 no"], ["RSET"]),
        (["250 ok", "550 no", "550 no", "354 go"], [".", "RSET"]),
    ],
)
def test_after_a_refusal_rset_is_at_the_head_of_the_next_group(refusals: list[str], ending: list[str]) -> None:
    """Else the old MAIL would still stand, and the recipients of the next message would join its sender."""
    head: list[Part] = [Expect(command) for command in ending]
    answers = ["554 5.5.1 nobody" if command == "." else "250 reset" for command in ending]
    script = [*HELLO, *group(2), replies(*refusals), *head, *group(2), replies(*answers, *GO), *LAST, *BYE]
    with ScriptedServer(script) as server, Client(server.config) as client:
        first, second = client.send_all([named("a"), named("b")])
    assert (first.outcome, second.outcome) == (Outcome.NOT_SENT, Outcome.SENT)
    assert intact(server.messages) == Counter("b")


@pytest.mark.parametrize("reset", ["500 what", "421 closing"])
def test_where_rset_is_refused_the_next_one_takes_another_connection(reset: str) -> None:
    first = [*HELLO, *group(2), replies("550 no", "503 no", "503 no", "503 no"), Expect("RSET"), *group(2)]
    with ScriptedServer([*first, replies(reset, *GO)], [Serve()]) as server, Client(server.config) as client:
        outcomes = [r.outcome for r in client.send_all([named("a"), named("b")])]
    assert outcomes == [Outcome.NOT_SENT, Outcome.SENT]
    assert intact(server.messages) == Counter("b")


def test_a_503_behind_another_message_is_no_refusal() -> None:
    """A server that keeps the transaction of a refused content open says nothing of the sender that comes next."""
    ahead: list[Part] = [*ABOARD, replies("550 5.7.1 spam", "250 reset", "503 nested MAIL", *GO[1:])]
    queued = Queued(replies(*GO), *ahead, others=([Serve()],))
    first, second = queued.send("a", "b")
    assert (first.outcome, second.outcome, second.attempts) == (Outcome.NOT_SENT, Outcome.SENT, 1)
    assert [m.connection for m in queued.server.messages][-1] == 1


def test_what_the_server_cannot_take_is_told_in_its_turn() -> None:
    large = Envelope("from-b@example.org", ["to-b@example.net"], b"Subject: b\r\n\r\n" + b"b" * 2_000_000)
    script = serial(*LAST, *group(2), replies(*GO), *LAST, *BYE)
    with ScriptedServer(script) as server, Client(server.config) as client:
        receipts = client.send_all([named("a"), large, named("c")])
    assert [r.outcome for r in receipts] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
    assert isinstance(receipts[1].error, MessageTooLarge)


# ---------------------------------------------------------------- lost connections


def test_one_message_is_in_doubt_and_the_one_behind_goes_over_another_connection() -> None:
    queued = Queued(replies(*GO), *ABOARD, Drop(), others=([Serve()],))
    first, second = queued.send("a", "b")
    assert (first.outcome, first.phase) == (Outcome.IN_DOUBT, Phase.FINAL)
    assert (second.outcome, second.attempts) == (Outcome.SENT, 1)
    assert [m.connection for m in queued.server.messages] == [0, 1]


def test_a_connection_lost_that_way_ends_riding_for_that_server() -> None:
    """A server that minds it leaves one message in doubt, and not nearly all of them."""
    alone = [*group(2), replies(*GO), *LAST]
    queued = Queued(replies(*GO), *ABOARD, Drop(), others=([*HELLO, *alone, *alone, *BYE],))
    receipts = queued.send("a", "b", "c")
    assert [r.outcome for r in receipts] == [Outcome.IN_DOUBT, Outcome.SENT, Outcome.SENT]


def test_so_it_does_for_a_batch_and_for_all_clients_with_that_config() -> None:
    """Also the farewell waits for its turn then."""
    alone = [*group(2), replies(*GO), *LAST]
    first = serial(*ABOARD, Drop())
    with ScriptedServer(first, [*HELLO, *alone, *alone, *BYE], [*HELLO, *alone, *BYE]) as server:
        config = dataclasses.replace(server.config, max_messages=2)
        with Client(config) as client, Client(config) as other:
            report = client.send_all(named(n) for n in "abc")
            assert [r.outcome for r in report] == [Outcome.IN_DOUBT, Outcome.SENT, Outcome.SENT]
            client.close()
            assert other.send(named("d")).outcome is Outcome.SENT
            assert not other.offers_riding
        assert Client(dataclasses.replace(config)).offers_riding


@pytest.mark.parametrize(
    "said",
    [["503 5.5.1 out of sequence", *GO], ["250 reset", "503 nested MAIL", *GO[1:]], ["250 reset", "354 what"]],
    ids=["RSET", "MAIL", "out of step"],
)
def test_a_server_that_answers_what_rode_as_nobody_may_is_not_asked_again(said: list[str]) -> None:
    """It costs one connection and no doubt; nothing is known of how it would take the next."""
    alone = [*group(2), replies(*GO), *LAST]
    with (
        ScriptedServer(serial(*ABOARD, replies("250 ok", *said)), [*HELLO, *alone, *alone, *BYE]) as server,
        Client(server.config) as client,
    ):
        assert [r.outcome for r in client.send_all(named(n) for n in "abc")] == [Outcome.SENT] * 3
        assert not client.offers_riding


def test_a_server_that_overlooks_what_rode_is_not_asked_again() -> None:
    """It throws away what comes behind the end of data, and waits: each message would take the time-out."""
    alone = [*group(2), replies(*GO), *LAST]
    with ScriptedServer(serial(*ABOARD, replies("250 ok"), Stall()), [*HELLO, *alone, *alone, *BYE]) as server:
        config = dataclasses.replace(server.config, timeouts=dataclasses.replace(server.config.timeouts, command=0.3))
        with Client(config) as client:
            assert [r.outcome for r in client.send_all(named(n) for n in "abc")] == [Outcome.SENT] * 3
            assert not client.offers_riding


@pytest.mark.parametrize("said", [[], ["421 4.7.0 too many nonmail commands"]], ids=["silently", "with 421"])
def test_a_server_that_hangs_up_on_what_rides_is_not_asked_for_ever(said: list[str]) -> None:
    """Each message would take a connection of its own. Nothing is in doubt meanwhile, and nobody waits."""
    dropped = serial(*ABOARD, replies("250 ok", *said), Drop())
    alone = [*group(2), replies(*GO), *LAST]
    with (
        ScriptedServer(dropped, dropped, dropped, [*HELLO, *alone * 3, *BYE]) as server,
        Client(server.config) as client,
    ):
        assert [r.outcome for r in client.send_all(named(n) for n in "abcdef")] == [Outcome.SENT] * 6
        assert not client.offers_riding


def test_one_that_hangs_up_now_and_then_has_its_reasons() -> None:
    """A limit of messages for a session, or a restart: what rides between is answered."""
    limited = serial(*ABOARD, replies("250 ok", *RIDE), *ABOARD, replies("250 ok"), Drop())
    with ScriptedServer(*[limited] * 5, serial(*LAST, *BYE)) as server, Client(server.config) as client:
        assert client.send_all(named(f"m{n}") for n in range(11)).counts()[Outcome.SENT] == 11
        assert client.offers_riding


@pytest.mark.parametrize("end", ["deadline", "abort", "closing"])
def test_what_is_not_the_servers_fault_ends_no_riding(end: str) -> None:
    """The caller's own deadline, his abort(), a server that says that it closes."""
    read = threading.Event()
    parts = [replies("421 4.3.2 closing")] if end == "closing" else [Signal(read), Stall()]
    with ScriptedServer(serial(*ABOARD, *parts), [Serve()]) as server, Client(server.config) as client:

        def abort() -> None:
            assert read.wait(10.0)
            client.abort()

        aborting = threading.Thread(target=abort if end == "abort" else list)
        aborting.start()
        client.send_all([named("a"), named("b")], deadline=0.3 if end == "deadline" else None)
        aborting.join(10.0)
        assert client.offers_riding


def test_a_connection_lost_between_the_two_costs_the_one_behind_nothing() -> None:
    queued = Queued(
        replies(*GO), *ABOARD, replies("250 2.0.0 first", "250 reset", "250 ok"), Drop(), others=([Serve()],)
    )
    first, second = queued.send("a", "b")
    assert (first.outcome, second.outcome, second.attempts) == (Outcome.SENT, Outcome.SENT, 1)


@pytest.mark.parametrize("said", ["421 4.3.2 closing", "250 2.0.0 first\r\n421 4.3.2 closing"])
def test_a_server_that_closes_puts_nobody_off(said: str) -> None:
    queued = Queued(replies(*GO), *ABOARD, replies(said), others=([Serve()],))
    receipts = queued.send("a", "b")
    assert [r.outcome for r in receipts] == [Outcome.SENT, Outcome.SENT]
    assert receipts[1].attempts == 1


# ---------------------------------------------------------------- called off


def test_aborting_the_prefetched_one_leaves_the_one_ahead_alone() -> None:
    written, judged = threading.Event(), threading.Event()
    queued = Queued(
        replies(*GO), *ABOARD, Signal(written), Pause(judged, 10.0), replies("250 2.0.0 first", *RIDE), Stall(),
        others=([Serve()],),
    )  # fmt: skip
    with queued.server, ThreadedSender(queued.server.config, workers=1) as sender:
        futures = [sender.submit(named(n)) for n in "abc"]
        queued.all_there.set()
        assert written.wait(10.0)
        assert not futures[1].cancel()
        assert sender.abort(futures[1])
        judged.set()
        assert str(futures[0].result(10.0).reply) == "250 2.0.0 first"
        error = futures[1].exception(10.0)
        assert isinstance(error, Aborted)
        assert error.outcome is Outcome.NOT_SENT
        assert futures[2].result(10.0).outcome is Outcome.SENT
    assert intact(queued.server.messages) == Counter("ac")


def test_who_takes_the_place_of_one_called_off_does_not_take_over_its_commands() -> None:
    """The same letter twice: the second is not the first, whose commands stand on a connection that has to go."""
    written, judged = threading.Event(), threading.Event()
    queued = Queued(
        replies(*GO), *ABOARD, Signal(written), Pause(judged, 10.0), replies("250 2.0.0 first", *RIDE), Stall(),
        others=([Serve()],),
    )  # fmt: skip
    letter = named("b")
    with queued.server, ThreadedSender(queued.server.config, workers=1) as sender:
        futures = [sender.submit(each) for each in (named("a"), letter, letter)]
        queued.all_there.set()
        assert written.wait(10.0)
        assert sender.abort(futures[1])
        error = futures[1].exception(0.0)  # at once: nothing of its content has left
        assert isinstance(error, Aborted)
        judged.set()
        assert [futures[i].result(10.0).outcome for i in (0, 2)] == [Outcome.SENT, Outcome.SENT]
    assert [m.connection for m in queued.server.messages] == [0, 1]


def test_closing_tells_the_truth_of_both() -> None:
    written = threading.Event()
    queued = Queued(replies(*GO), *ABOARD, Signal(written), Stall())
    with queued.server, ThreadedSender(queued.server.config, workers=1) as sender:
        futures = [sender.submit(named(n)) for n in "abc"]
        queued.all_there.set()
        assert written.wait(10.0)
        unsent = sender.close(timeout=0.2)
        assert [future.exception(0).outcome for future in futures] == [  # type: ignore[union-attr]
            Outcome.IN_DOUBT,
            Outcome.NOT_SENT,
            Outcome.NOT_SENT,
        ]
        assert isinstance(futures[2].exception(0), Closed)
        assert {u.envelope.sender for u in unsent} == {f"from-{n}@example.org" for n in "abc"}


def test_a_callback_must_not_wait_for_the_prefetched_message() -> None:
    """Its thread is the one that would see it through."""
    queued = Queued(replies(*GO), *ABOARD, replies("250 2.0.0 first", *RIDE), *LAST, *BYE)
    told: list[object] = []
    with queued.server, ThreadedSender(queued.server.config, workers=1) as sender:
        first = sender.submit(named("a"))
        second = sender.submit(named("b"))

        def wait_for_the_other(_: object) -> None:
            try:
                told.append(second.result())
            except MailError as error:
                told.append(error)

        first.add_done_callback(wait_for_the_other)
        queued.all_there.set()
        assert second.result(10.0).outcome is Outcome.SENT
    assert [type(t) for t in told] == [Reentered]


# ---------------------------------------------------------------- Client.send_all


def test_a_batch_goes_on_after_what_is_no_message() -> None:
    def messages() -> Iterator[Envelope | bytes]:
        yield named("a")
        yield b"no message"
        yield named("b")
        raise LookupError("no more")

    with (
        ScriptedServer(serial(*ABOARD, replies("250 ok", *RIDE), *LAST, *BYE)) as server,
        Client(server.config) as client,
    ):
        with pytest.raises(LookupError):
            client.send_all(messages())
    assert intact(server.messages) == Counter("ab")
    with ScriptedServer([Serve()]) as server, Client(server.config) as client:
        report = client.send_all([named("a"), b"no message", named("b")])
        assert [r.outcome for r in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
        assert client.send_all([]) == client.send_all(iter(()))


def nested(levels: int) -> bytes:
    """A message of 8-bit text within parts so deep."""
    body = "Content-Type: text/plain\r\n\r\nü\r\n"
    for level in range(levels):
        body = f"Content-Type: multipart/mixed; boundary=b{level}x\r\n\r\n--b{level}x\r\n{body}--b{level}x--\r\n"
    return f"From: from-deep@example.org\r\nTo: to@example.net\r\n{body}".encode()


@pytest.mark.parametrize(
    "extensions", [("PIPELINING",), ("PIPELINING", "CHUNKING"), ()], ids=["rides", "window", "alone"]
)
def test_one_that_the_email_package_stumbles_over_is_refused_alone(extensions: tuple[str, ...]) -> None:
    """It is to be recoded as the one ahead leaves: that one was lost, and the receipts of all with it."""
    deep = Envelope.of(nested(sys.getrecursionlimit()))
    with ScriptedServer([Serve(extensions=extensions)]) as server:
        config = ServerConfig(server.host, server.port, window=4 if "CHUNKING" in extensions else 1)
        with Client(config) as client:
            report = client.send_all([named("a"), named("b"), deep, named("c")])
            with pytest.raises(NotSupported, match="cannot be recoded: RecursionError"):
                client.send(deep)
    assert [r.outcome for r in report] == [Outcome.SENT, Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
    assert isinstance(report[2].error, NotSupported)
    assert intact(server.messages) == Counter("abc")
    assert server.connections == 1


def test_a_mistake_in_a_hook_is_told_of_its_message_alone() -> None:
    dials = iter([None, KeyError("what hooks know"), None])

    def hook() -> None:
        if mistake := next(dials):
            raise mistake

    with ScriptedServer([Serve()], last="repeat") as server:
        config = ServerConfig(server.host, server.port, max_messages=1)
        with Client(config, before_dial=hook) as client:
            report = client.send_all(named(n) for n in "abc")
    assert [r.outcome for r in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
    assert str(report[1].error) == "the attempt was interrupted by KeyError"
    assert intact(server.messages) == Counter("ac")


@pytest.mark.parametrize("base", [RuntimeError, AssertionError, LookupError, ValueError, Exception])
def test_a_time_limit_of_any_class_ends_a_batch(base: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """A RuntimeError, or an AssertionError, was taken for a mistake of one message, and the batch went on."""

    class TimeLimit(base):  # type: ignore[valid-type,misc]
        pass

    take_final = Transaction.take_final

    def struck(self: Transaction, recipient: str, reply: object) -> None:
        if self.envelope.sender == "from-b@example.org":
            raise TimeLimit
        take_final(self, recipient, reply)  # type: ignore[arg-type]

    monkeypatch.setattr(Transaction, "take_final", struck)
    with ScriptedServer([Serve()], last="repeat") as server, Client(server.config) as client:
        with pytest.raises(TimeLimit):
            client.send_all(named(n) for n in "abc")
        assert client.send(named("d")).outcome is Outcome.SENT
    assert intact(server.messages) == Counter("abd")


def test_a_time_limit_from_outside_is_not_hidden_and_spares_the_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes up where the message's own turn does, with the one ahead answered; an interrupt comes up at once."""

    class TimeLimit(Exception):
        pass

    def struck(content: bytes) -> bytes:
        raise TimeLimit

    monkeypatch.setattr("threadmail.envelope.seven_bit", struck)
    eight_bit = Envelope("x@example.org", "y@example.net", "Subject: ü\r\n\r\nü\r\n".encode())
    with ScriptedServer([Serve(extensions=("PIPELINING",))]) as server, Client(server.config) as client:
        with pytest.raises(TimeLimit):
            client.send_all([named("a"), eight_bit, named("b")])
        assert client.send(named("c")).outcome is Outcome.SENT
    assert intact(server.messages) == Counter("ac")


def test_a_dead_server_is_dialled_once_for_a_batch() -> None:
    with ScriptedServer([greeting("554 5.3.2 not today")], last="repeat") as server, Client(server.config) as client:
        report = client.send_all(named(f"m{i}") for i in range(120))
        assert [r.outcome for r in report] == [Outcome.NOT_SENT] * 120
        assert len({r.message_id for r in report}) == 120
        assert server.connections == 1
        client.close()
        with pytest.raises(Closed):
            client.send_all([named("a")])


def test_a_batch_ends_with_its_deadline() -> None:
    script = serial(*ABOARD, replies("250 ok", "250 reset", "250 ok"), Stall())
    with ScriptedServer(script, last="repeat") as server, Client(server.config) as client:
        report = client.send_all([named("a"), named("b"), named("c")], deadline=0.4)
    assert [r.outcome for r in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.NOT_SENT]
    assert [r.phase for r in report] == [Phase.DONE, Phase.RCPT, None]


def test_threads_take_turns_with_their_batches() -> None:
    with ScriptedServer([Serve()], last="repeat") as server:
        config = ServerConfig(server.host, server.port, max_messages=None)
        with Client(config) as client:
            batches = [[named(n) for n in names(3, 120) if n.startswith(f"t{i}")] for i in range(3)]
            assert in_threads(3, lambda i: client.send_all(batches[i]).raise_for_failures()) == []
        order = [m.sender for m in server.messages]
    assert intact(server.messages) == Counter(names(3, 120))
    assert len({sender[:7] for sender in order[:150]}) > 1
    assert server.connections == 1
