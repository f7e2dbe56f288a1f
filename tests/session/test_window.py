"""A window of messages under way, content and all (BDAT): fewer round trips, and each told truly what became of it."""

from __future__ import annotations

import dataclasses
import random
import re
import socket
import threading
from collections import Counter
from types import FunctionType

import pytest

from tests.support.dialogue import NothingMore, Part, replies
from tests.support.mail import envelope as named
from tests.support.mail import intact
from threadmail import (
    Aborted,
    Client,
    DataRefused,
    Envelope,
    InvalidConfig,
    Outcome,
    Phase,
    Receipt,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
)
from threadmail._dispatch.dispatcher import Dispatcher
from threadmail._dispatch.job import Job
from threadmail._dispatch.schedule import Do
from threadmail._dispatch.worker import Worker
from threadmail._protocol.transaction import Transaction
from threadmail._runtime.deadline import Deadline
from threadmail._session.delivery import Follower
from threadmail.testing import (
    Drop,
    Expect,
    Pause,
    ReadBytes,
    Reset,
    ScriptedServer,
    Serve,
    Signal,
    Stall,
    answer,
    ehlo,
    greeting,
)

HELLO: list[Part] = [greeting(), ehlo("PIPELINING", "CHUNKING")]
CHUNKS = Serve(extensions=("PIPELINING", "CHUNKING", "8BITMIME"))
OK = ["250 reset", "250 ok", "250 ok", "250 ok"]  # all but the reply to BDAT
BYE = answer("QUIT", "221 bye")
QUICK = RetryPolicy(base=0.01)


def bdat(name: str) -> list[Part]:
    """A message as it comes in a window, read and not answered."""
    size = len(named(name).content)
    return [
        Expect("RSET"),
        Expect("MAIL"),
        Expect("RCPT"),
        Expect("RCPT"),
        Expect(f"BDAT {size} LAST"),
        ReadBytes(size),
    ]


def config(server: ScriptedServer, window: int = 3, **changes: object) -> ServerConfig:
    return dataclasses.replace(server.config, window=window, **changes)  # type: ignore[arg-type]


def batch(server: ScriptedServer, *messages: str | Envelope, window: int = 3) -> list[Receipt]:
    with Client(config(server, window)) as client:
        return list(client.send_all([named(m) if isinstance(m, str) else m for m in messages]))


def outcomes(receipts: list[Receipt]) -> list[Outcome]:
    return [receipt.outcome for receipt in receipts]


SENT, NOT_SENT, IN_DOUBT = Outcome.SENT, Outcome.NOT_SENT, Outcome.IN_DOUBT


# ---------------------------------------------------------------- what is written


def test_so_many_are_under_way_at_once() -> None:
    """As soon as the first is answered the next one follows."""
    script = [
        *HELLO, *bdat("a"), *bdat("b"), *bdat("c"), NothingMore(), replies(*OK, "250 2.0.0 a"),
        *bdat("d"), NothingMore(), replies(*OK, "250 2.0.0 b", *OK, "250 2.0.0 c", *OK, "250 2.0.0 d"), *BYE,
    ]  # fmt: skip
    with ScriptedServer(script) as server:
        assert [str(r.reply) for r in batch(server, *"abcd")] == [f"250 2.0.0 {n}" for n in "abcd"]


def test_what_arrives_is_what_was_sent() -> None:
    """Dots are not doubled; a line end is added where the last line has none."""
    dots = Envelope("from-d@example.org", ["to-d@example.net"], b"Subject: d\r\n\r\n.dot\r\n..\r\n.\r\nno line end")
    with ScriptedServer([CHUNKS]) as server:
        assert outcomes(batch(server, *"abc", dots, *"efghij", window=4)) == [SENT] * 10
    assert intact(m for m in server.messages if m.sender != dots.sender) == Counter("abcefghij")
    assert server.messages[3].content == dots.content + b"\r\n"


@pytest.mark.parametrize("lacking", ["PIPELINING", "CHUNKING", "without"])
def test_not_where_the_server_or_the_config_has_no_use_for_it(lacking: str) -> None:
    offered = tuple(name for name in ("PIPELINING", "CHUNKING") if name != lacking)
    with ScriptedServer([Serve(extensions=offered)]) as server:
        without = frozenset({"chunking"} if lacking == "without" else ())
        with Client(config(server, without=without)) as client:
            assert outcomes(list(client.send_all([named("a"), named("b")]))) == [SENT, SENT]
    assert "bdat" not in " ".join(server.received[0]).lower()


def test_the_default_sends_no_content_ahead() -> None:
    with ScriptedServer([CHUNKS]) as server, Client(server.config) as client:
        client.send_all([named("a"), named("b")]).raise_for_failures()
    assert not any("bdat" in line.lower() for line in server.received[0])
    with pytest.raises(InvalidConfig, match="window"):
        ServerConfig("mail.test", window=0)


@pytest.mark.parametrize("kind", ["large", "many recipients", "all or nothing"])
def test_what_is_not_for_a_window_goes_by_itself(kind: str) -> None:
    """A large content gains nothing, and the commands of many recipients would fill both sides' buffers."""
    big = named("big")
    if kind == "large":
        big = Envelope(
            "from-big@example.org", ["to-big@example.net"], b"Subject: b\r\n\r\n" + b"b" * 70 + b"\r\n" * 40000
        )
    elif kind == "many recipients":
        big = Envelope("from-big@example.org", [f"to-{i}@example.net" for i in range(300)], big.content)
    with ScriptedServer([CHUNKS]) as server, Client(config(server)) as client:
        if kind == "all or nothing":
            client.transmit(big, all_or_nothing=True)
            receipts = [client.send(named(n)) for n in "ab"]
        else:
            receipts = list(client.send_all([named("a"), big, named("b"), named("c")]))
    assert outcomes(receipts) == [SENT] * len(receipts)
    verbs = [line.partition(" ")[0].upper() for line in server.received[0]]
    assert verbs.count("DATA") == 1
    assert verbs.count("BDAT") == len(server.messages) - 1
    assert len(server.messages) == len(receipts) + (kind == "all or nothing")


def test_a_sender_keeps_its_windows_full() -> None:
    read, all_there = threading.Event(), threading.Event()
    script: list[Part] = [*HELLO, *bdat("a"), Signal(read), Pause(all_there, 10.0), replies(*OK, "250 ok")]
    for name in "bcd":
        script += bdat(name)
    script += [NothingMore(), *[replies(*OK, "250 ok")] * 3, *BYE]
    with ScriptedServer(script) as server, ThreadedSender(config(server), workers=1) as sender:
        first = sender.submit(named("a"))
        assert read.wait(10.0)
        others = [sender.submit(named(n)) for n in "bcd"]
        all_there.set()
        assert [f.result(10.0).outcome for f in [first, *others]] == [SENT] * 4


def test_a_window_as_large_as_asked_for_and_the_farewell_behind_the_last_message() -> None:
    names = [f"m{i}" for i in range(16)]
    script = [*HELLO, *[part for name in names for part in bdat(name)], Expect("QUIT"), NothingMore()]
    script += [*[replies(*OK, "250 ok")] * 16, replies("221 bye")]
    with ScriptedServer(script) as server, Client(config(server, 16, max_messages=16)) as client:
        assert outcomes(list(client.send_all(named(name) for name in names))) == [SENT] * 16


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_each_connection_carries_what_it_may_and_ends_with_quit(most: int, window: int) -> None:
    """Whoever is prefetched, in a window or alone when the last message of a connection leaves."""
    sent, row = [f"m{i}" for i in range(40)], [f"n{i}" for i in range(15)]
    with ScriptedServer([CHUNKS], last="repeat") as server:
        with ThreadedSender(config(server, window, max_messages=most), workers=3) as sender:
            assert sender.send_all(named(name) for name in sent).counts()[SENT] == len(sent)
        with Client(config(server, window, max_messages=most)) as client:
            assert client.send_all(named(name) for name in row).counts()[SENT] == len(row)
        verbs = [[line.split()[0].lower() for line in lines] for lines in server.received]
        verbs = [each for each in verbs if "mail" in each]  # a lane that still dials at the end is hung up on
    assert intact(server.messages) == Counter([*sent, *row])
    assert [(each[-1], each.count("quit")) for each in verbs] == [("quit", 1)] * len(verbs)
    assert max(each.count("mail") for each in verbs) <= most


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("said", "error_phase"),
    [
        (["250 reset", "550 no", "503 no", "503 no", "503 no"], Phase.MAIL),
        (["250 reset", "250 ok", "550 no", "550 no", "554 no"], Phase.RCPT),
        ([*OK, "554 5.7.1 spam"], Phase.DONE),
        ([*OK, "451 4.3.0 later"], Phase.DONE),
    ],
)
def test_a_refusal_is_that_of_one_message(said: list[str], error_phase: Phase) -> None:
    script = [*HELLO, *bdat("a"), *bdat("b"), *bdat("c"), replies(*OK, "250 ok", *said, *OK, "250 ok"), *BYE]
    with ScriptedServer(script) as server:
        receipts = batch(server, *"abc")
    assert outcomes(receipts) == [SENT, NOT_SENT, SENT]
    assert receipts[1].phase is error_phase
    assert receipts[1].error is not None
    assert receipts[1].error.transient == said[-1].startswith("451")


def test_some_recipients_are_refused() -> None:
    script = [*HELLO, *bdat("a"), replies("250 reset", "250 ok", "550 no", "250 ok", "250 2.0.0 queued"), *BYE]
    with ScriptedServer(script) as server:
        [receipt] = batch(server, "a")
    assert receipt.outcome is Outcome.PARTIAL
    assert receipt.accepted == ("too-a@example.net",)


def test_the_last_refusal_leaves_a_session_that_can_be_used() -> None:
    script = [
        *HELLO,
        *bdat("a"),
        replies(*OK, "554 no"),
        *answer("RSET", "250 ok"),
        *bdat("b"),
        replies(*OK, "250 ok"),
        *BYE,
    ]
    with ScriptedServer(script) as server, Client(config(server)) as client:
        with pytest.raises(DataRefused):
            client.send(named("a"))
        assert client.send(named("b")).outcome is SENT


@pytest.mark.parametrize(
    "said",
    [
        ["250 reset", "550 no", "503 no", "503 no", "250 queued"],
        ["250 reset", "250 ok", "550 no", "550 no", "250 queued"],
    ],
)
def test_an_acceptance_of_what_was_refused_leaves_it_in_doubt_and_ends_the_connection(said: list[str]) -> None:
    with ScriptedServer([*HELLO, *bdat("a"), *bdat("b"), replies(*said, *OK, "250 ok")]) as server:
        assert outcomes(batch(server, "a", "b")) == [IN_DOUBT, IN_DOUBT]


def test_a_reply_too_many_or_rset_refused_poisons_the_connection() -> None:
    """From there on it is not known which reply belongs to what: everything in the window is in doubt."""
    for said in (["500 what"], ["250 reset", "354 go"], [*OK, "354 go"]):
        with ScriptedServer([*HELLO, *bdat("a"), *bdat("b"), replies(*said, "250 ok")]) as server:
            assert outcomes(batch(server, "a", "b")) == [IN_DOUBT, IN_DOUBT]


# ---------------------------------------------------------------- lost connections


@pytest.mark.parametrize("answered", range(5))
@pytest.mark.parametrize("end", [Drop(), Reset()])
def test_a_lost_connection_leaves_all_of_the_window_in_doubt_and_nobody_else(answered: int, end: Part) -> None:
    said = [replies(*OK, "250 ok"), replies(*[*OK, ""][:answered])] if answered else [replies(*OK, "250 ok")]
    script = [*HELLO, *bdat("a"), *bdat("b"), *bdat("c"), *said, *bdat("d"), end]
    with ScriptedServer(script, [CHUNKS]) as server:
        receipts = batch(server, *"abcde")
    assert outcomes(receipts) == [SENT, IN_DOUBT, IN_DOUBT, IN_DOUBT, SENT]
    assert [m.sender for m in server.messages if m.connection == 1] == ["from-e@example.org"]


@pytest.mark.parametrize(
    ("place", "b"),
    [("RSET", IN_DOUBT), ("MAIL", SENT), ("RCPT", IN_DOUBT), ("BDAT", NOT_SENT)],
    ids=lambda value: value if isinstance(value, str) else value.value,
)
def test_a_421_and_a_lost_connection_prove_nothing_about_what_had_left(place: str, b: Outcome) -> None:
    """The server has the content of all three, and may have taken any that it did not answer before it went.

    Refused at MAIL, b is surely not sent, and goes over another connection; refused at BDAT it was answered.
    """
    at = ["RSET", "MAIL", "RCPT", "RCPT", "BDAT"].index(place)
    said = [*OK, "250 ok", *OK[:at], "421 4.3.2 shutting down"]
    script = [*HELLO, *bdat("a"), *bdat("b"), *bdat("c"), replies(*said), Drop()]
    with ScriptedServer(script, [CHUNKS]) as server:
        receipts = batch(server, *"abc")
    assert outcomes(receipts) == [SENT, b, IN_DOUBT]
    assert intact(m for m in server.messages if m.connection == 1) == Counter("b" if b is SENT else "")


@pytest.mark.parametrize(
    ("said", "b"),
    [
        (["421 4.3.2 later", *OK[1:], "250 2.0.0 b"], SENT),
        (["250 reset", "421 4.3.2 later", "503 no", "503 no", "503 no"], NOT_SENT),
        ([*OK[:2], "421 4.3.2 later", "250 ok", "250 2.0.0 b"], Outcome.PARTIAL),
        ([*OK[:2], "421 4.3.2 later", "421 4.3.2 later", "503 no"], NOT_SENT),
        ([*OK, "421 4.3.2 later"], NOT_SENT),
    ],
    ids=["RSET", "MAIL", "RCPT", "all RCPT", "BDAT"],
)
def test_a_server_that_goes_on_after_a_421_is_heard(said: list[str], b: Outcome) -> None:
    """It put off one command, as Exim's `defer message = 421` does, and tells in the next replies what it took."""
    under_way = [*bdat("a"), *bdat("b"), *bdat("c"), replies(*OK, "250 ok"), *bdat("d")]
    script = [*HELLO, *under_way, replies(*said, *OK, "250 2.0.0 c", *OK, "250 2.0.0 d"), Stall()]
    with ScriptedServer(script, [CHUNKS]) as server:
        receipts = batch(server, *"abcde")
    assert outcomes(receipts) == [SENT, b, SENT, SENT, SENT]
    assert str(receipts[2].reply) == "250 2.0.0 c"
    if b is Outcome.PARTIAL:
        assert receipts[1].accepted == ("too-b@example.net",)
        assert receipts[1].deferred == ("to-b@example.net",)
    assert intact(m for m in server.messages if m.connection == 1) == Counter("e")  # nothing more was written there


def test_a_421_to_rset_behind_a_refused_content_leaves_the_message_in_doubt() -> None:
    """What a refused BDAT leaves behind is not defined (RFC 3030 section 2): nobody knows what the next one met."""
    said = [*OK, "554 5.7.1 spam", "421 4.3.2 later", *OK[1:], "250 ok"]
    with ScriptedServer([*HELLO, *bdat("a"), *bdat("b"), replies(*said), Stall()]) as server:
        assert outcomes(batch(server, "a", "b")) == [NOT_SENT, IN_DOUBT]


# ---------------------------------------------------------------- before_final


def test_an_objection_in_a_window_is_that_of_one_message() -> None:
    """It is raised by the call for that message; those ahead have left and are answered, nothing of it has."""
    letters = [named(n) for n in "abcd"]
    waiting = letters[1:]
    asked: list[Envelope] = []
    begun: list[Transaction] = []

    def follow() -> Follower | None:
        return Follower(waiting.pop(0), begun.append) if waiting else None

    def object_to_c(transaction: Transaction) -> None:
        asked.append(transaction.envelope)
        if transaction.envelope is letters[2]:
            raise LookupError("no")

    script = [*HELLO, *bdat("a"), *bdat("b"), NothingMore(), replies(*OK, "250 ok", *OK, "250 ok"), CHUNKS]
    with ScriptedServer(script) as server, Client(config(server, 4)) as client:
        assert client.transmit(letters[0], follow=follow, before_final=object_to_c).outcome is SENT
        assert client.transmit(letters[1], begun=begun[0], before_final=object_to_c).outcome is SENT
        with pytest.raises(LookupError):
            client.transmit(letters[2], begun=begun[1], before_final=object_to_c)
        assert begun[1].receipt().outcome is NOT_SENT
        assert client.prefetched is None
        assert client.send(letters[3]).outcome is SENT
        assert client.stats().opened == 1
    assert asked == letters[:3]
    assert waiting == letters[3:]  # nobody comes behind one that is not written
    assert intact(server.messages) == Counter("d")  # the others were read by the script


def test_an_interrupt_in_the_last_moment_of_one_behind_leaves_only_those_ahead_in_doubt() -> None:
    begun: list[Transaction] = []
    waiting = [Follower(named("b"), begun.append)]

    def interrupted(transaction: Transaction) -> None:
        if begun:
            raise KeyboardInterrupt

    with ScriptedServer([*HELLO, *bdat("a"), Stall()]) as server, Client(config(server)) as client:
        first: list[Transaction] = []
        with pytest.raises(KeyboardInterrupt):
            client.transmit(
                named("a"),
                before_mail=first.append,
                before_final=interrupted,
                follow=lambda: waiting.pop() if waiting else None,
            )
        assert [t.receipt().outcome for t in (*first, *begun)] == [IN_DOUBT, NOT_SENT]
        assert not client.is_connected


def test_a_server_that_hangs_up_while_we_write_is_heard_out() -> None:
    """It took the first message and said so, then that it closes, and reads no more: one write fails."""
    gone = threading.Event()
    script = [*HELLO, *bdat("a"), replies(*OK, "250 ok", "421 4.3.2 enough"), Reset(), Signal(gone)]
    with ScriptedServer(script, [CHUNKS], last="repeat") as server, Client(config(server)) as client:
        assert client.send(named("a")).outcome is SENT
        assert gone.wait(10.0)
        assert client.send(named("b")).outcome is SENT
    assert intact(server.messages) == Counter("b")  # the other one was read by the script


def test_what_was_not_handed_over_whole_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of the second one fails, once; what the server says of the first is heard all the same."""
    send, failures = socket.socket.send, [BrokenPipeError(32, "Broken pipe")]

    def broken(sock: socket.socket, data: bytes) -> int:
        if failures and re.search(rb"from:<from-b", bytes(data)):
            raise failures.pop()
        return send(sock, data)

    # What comes up in a frame of the socket module is the socket's; of a test's frame it would be from outside.
    its_own = FunctionType(broken.__code__, {**globals(), "__name__": "socket"}, closure=broken.__closure__)
    monkeypatch.setattr(socket.socket, "send", its_own)
    with ScriptedServer([*HELLO, *bdat("a"), replies(*OK, "250 2.0.0 a"), Drop()], [CHUNKS]) as server:
        receipts = batch(server, "a", "b")
    assert not failures
    assert outcomes(receipts) == [SENT, SENT]
    assert str(receipts[0].reply) == "250 2.0.0 a"
    assert [m.sender for m in server.messages if m.connection == 1] == ["from-b@example.org"]


def test_aborting_one_in_the_window_waits_for_its_turn() -> None:
    queued, read, go_on = threading.Event(), threading.Event(), threading.Event()
    script = [
        Pause(queued, 10.0), *HELLO, *bdat("a"), *bdat("b"), *bdat("c"), Signal(read), Pause(go_on, 10.0),
        replies(*OK, "250 2.0.0 a"), Stall(),
    ]  # fmt: skip
    with ScriptedServer(script) as server, ThreadedSender(config(server), workers=1) as sender:
        futures = [sender.submit(named(n)) for n in "abc"]
        queued.set()
        assert read.wait(10.0)
        assert sender.abort(futures[1])
        go_on.set()
        assert futures[0].result(10.0).outcome is SENT
        error = futures[1].exception(10.0)
        assert isinstance(error, Aborted)
        assert error.outcome is IN_DOUBT
        assert futures[2].exception(10.0).outcome is IN_DOUBT  # type: ignore[union-attr]


def test_one_that_was_called_off_before_it_could_begin_is_not_sent() -> None:
    """Its lane was interrupted between prefetching it and writing it, and looks at it again."""
    with ScriptedServer([CHUNKS], last="repeat") as server:
        dispatcher = Dispatcher(
            config(server), workers=1, queue_size=2, policy=QUICK, throttle=Throttle(), rng=random.Random(1),
            settle=lambda job: None, announce=lambda job: None,
        )  # fmt: skip
        worker = Worker(dispatcher, dispatcher.config, random.Random(1))
        dispatcher._schedule.workers[worker] = None  # the only one there may be
        worker.client.connect()
        ahead, behind = (Job(named(name), Deadline(), dispatcher) for name in "ab")
        for job in (ahead, behind):
            dispatcher.put(job)
        assert dispatcher.next(worker) is Do.SEND
        assert worker._next_job() is ahead
        worker._offered = ahead
        with worker.lock:
            assert worker._claimed(ahead)
        assert worker._follow() is not None
        assert dispatcher.abort(behind)
        assert dispatcher.judged(worker, ahead, worker._transmit(ahead))
        assert worker._next_job() is behind
        dispatcher.judged(worker, behind, worker._transmit(behind))
        worker.client.close()
    assert ahead.receipt is not None
    assert behind.receipt is not None
    assert (ahead.receipt.outcome, behind.receipt.outcome) == (SENT, NOT_SENT)
    assert isinstance(behind.receipt.error, Aborted)
    assert intact(server.messages) == Counter("a")


# ---------------------------------------------------------------- bounds


def test_replies_outstanding_are_bounded() -> None:
    """A window of a thousand messages is one of so many as both sides can keep the replies to."""
    with ScriptedServer([CHUNKS], last="repeat") as server:
        assert outcomes(batch(server, *[f"m{i}" for i in range(200)], window=1000)) == [SENT] * 200
    assert intact(server.messages) == Counter(f"m{i}" for i in range(200))


def test_a_server_that_writes_before_it_reads_is_not_waited_for_forever() -> None:
    """Long replies to each command, more than a small buffer holds, while more is written."""
    long = "250-" + "x" * 490 + "\r\n250 ok"
    serve = Serve(extensions=CHUNKS.extensions, replies={"RCPT": long, "MAIL": long, "RSET": long})
    with ScriptedServer([serve], last="repeat") as server:
        assert outcomes(batch(server, *[f"m{i}" for i in range(120)], window=64)) == [SENT] * 120


def test_data_between_windows() -> None:
    """A message that goes by DATA prefetches its neighbour, and windows open again behind it."""
    big = Envelope("from-big@example.org", ["to-big@example.net"], b"Subject: b\r\n\r\n" + b"b\r\n" * 40000)
    with ScriptedServer([CHUNKS]) as server:
        receipts = batch(server, "a", big, big, "b", "c", big, "d")
    assert outcomes(receipts) == [SENT] * 7
    assert [m.sender.removeprefix("from-").partition("@")[0] for m in server.messages] == [
        *("a", "big", "big", "b", "c", "big", "d")
    ]
