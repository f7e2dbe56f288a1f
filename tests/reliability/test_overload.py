"""What a server that has enough is spared: connections, attempts, and everybody at once.

Scripted servers say each of the things that overloaded servers say; what real ones make of it is in
`test_real_servers`. Claims: no message fails for a limit that passes, each arrives exactly once, refusals and
connections stay bounded; a dead server is dialled by one probe at a time, less and less often, whatever the number of
threads; the queue never grows without bound, and a deadline holds in it.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.support.mail import envelope, in_threads, intact
from threadmail import (
    ClientPool,
    Envelope,
    MailError,
    Outcome,
    Phase,
    Receipt,
    Reply,
    Report,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
    Throttle,
    TimedOut,
)
from threadmail._dispatch import limits as _limits
from threadmail._dispatch.limits import ConcurrencyLimit, read_signs
from threadmail.testing import (
    CapturedMessage,
    CaptureServer,
    Drop,
    Expect,
    Pause,
    Peer,
    Reset,
    ScriptedServer,
    Serve,
    Signal,
    Step,
)
from threadmail.testing import Reply as Say
from threadmail.testing.phrases import ehlo, greeting

QUICK = RetryPolicy(base=0.02, longest=0.1, total=60.0)
LANES = 16


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "SHORTEST_PAUSE", 0.05)


def named(count: int) -> dict[str, Envelope]:
    return {f"m{number}": envelope(f"m{number}") for number in range(count)}


# ---------------------------------------------------------------- connection limits


@pytest.mark.parametrize("limit", [1, 3])
def test_sixteen_lanes_meet_a_connection_limit(limit: int) -> None:
    """421 at the greeting: no attempt is charged, and a place is not stormed when it comes free."""
    with CaptureServer(max_connections=limit) as server:
        with ThreadedSender(server.url, workers=LANES, retry=QUICK) as sender:
            report = sender.send_all(named(100).values())
            stats = sender.stats()
    assert report.counts()[Outcome.SENT] == 100
    assert stats.retries == 0
    assert intact(server.messages) == dict.fromkeys(named(100), 1)
    assert server.max_simultaneous <= limit
    assert stats.lanes < LANES
    assert server.connections_opened <= 2 * limit
    assert server.connections_refused <= LANES + 8


def test_sixteen_threads_of_a_pool_meet_a_connection_limit() -> None:
    """Whoever is turned away waits for one of the two clients that got in; the server is not asked again and again."""
    with CaptureServer(max_connections=2) as server, ClientPool(server.url, max_size=LANES) as pool:

        def work(number: int) -> None:
            for k in range(5):
                assert pool.send(envelope(f"m{5 * number + k}"), deadline=30.0).outcome is Outcome.SENT

        assert in_threads(LANES, work) == []
    assert intact(server.messages) == dict.fromkeys(named(80), 1)
    assert server.max_simultaneous <= 2
    assert server.connections_opened <= 4
    assert server.connections_refused <= 2 * LANES  # one burst, and single probes


@pytest.mark.parametrize("reply", ["432 4.3.2 Concurrent connections limit exceeded", "421 4.3.2 too many"])
def test_a_limit_that_is_told_after_the_content_ends_lanes_too(reply: str) -> None:
    """As Exchange Online says it: whoever has a connection too many learns of it when the message is over."""
    refused: list[CapturedMessage] = []

    def judge(message: CapturedMessage) -> str | None:
        if server.connections_open <= 3:
            return None
        refused.append(message)
        return reply

    with CaptureServer(on_message=judge) as server:
        with ThreadedSender(server.url, workers=8, retry=QUICK) as sender:
            report = sender.send_all(named(60).values())
            stats = sender.stats()
    assert report.counts()[Outcome.SENT] == 60
    assert intact(server.messages) == dict.fromkeys(named(60), 1)
    assert stats.connected <= 3
    assert stats.retries == len(refused) <= 60


def test_one_lane_too_many_is_one_lane_less() -> None:
    """Not all of them: each that looked before the first was gone used to end as well, and came back by a new dial."""
    answers = iter(["432 4.3.2 too many"])
    with CaptureServer(on_message=lambda m: next(answers, None)) as server:
        with ThreadedSender(server.url, workers=8, retry=QUICK) as sender:
            report = sender.send_all(named(100).values())
            stats = sender.stats()
    assert report.counts()[Outcome.SENT] == 100
    assert stats.opened <= 9  # the eight, and one where a lane that ended was needed again after fifty good messages
    assert server.connections_opened == stats.opened


# ---------------------------------------------------------------- rate limits


class Bursts:
    """A server's callback that lets some through, puts off the next ones, and so on: a rate limit without a clock."""

    def __init__(self, reply: str, good: int, bad: int) -> None:
        self._reply, self._good, self._cycle = reply, good, good + bad
        self._calls = 0
        self.refused = 0

    def __call__(self, about: object) -> str | None:
        place = self._calls % self._cycle
        self._calls += 1
        if place < self._good:
            return None
        self.refused += 1
        return self._reply


RATES = ["450 4.7.1 Error: too much mail", "451 4.7.0 slow down", "454 4.7.0 Throttling failure", "454 throttled"]


@pytest.mark.parametrize("where", ["on_message", "on_recipient"])
@pytest.mark.parametrize("reply", RATES)
def test_sixteen_lanes_meet_a_rate_limit(reply: str, where: str) -> None:
    """After ten come six that are put off: a pause for all, fewer lanes, and every message arrives."""
    limit = Bursts(reply, 10, 6)
    with CaptureServer(**{where: limit}) as server:  # type: ignore[arg-type]
        with ThreadedSender(server.url, workers=LANES, retry=QUICK) as sender:
            report = sender.send_all(named(40).values())
            stats = sender.stats()
    assert report.counts()[Outcome.SENT] == 40
    assert set(delivered(server.messages).values()) == {1}
    assert len(delivered(server.messages)) == 80
    assert 0 < stats.retries <= limit.refused <= 60
    assert stats.opened <= LANES + 2  # one may wear
    assert sum(receipt.attempts for receipt in report) == 40 + stats.retries


def delivered(messages: Sequence[CapturedMessage]) -> Counter[tuple[str, str]]:
    """By recipient: a greylist or a limit may let one of a message's recipients in before the other."""
    return Counter((m.sender, recipient) for m in messages for recipient in m.recipients)


def test_a_minute_long_limit_costs_no_message() -> None:
    """Twelve refusals in a row are more than the policy's five attempts, and the message has done nothing wrong."""
    answers = iter(["450 4.7.1 too much mail"] * 12)
    with CaptureServer(on_message=lambda m: next(answers, None)) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_limits, "LONGEST_PAUSE", 0.06)
            with ThreadedSender(server.url, workers=1, retry=QUICK) as sender:
                receipt = sender.send(envelope("m0"))
    assert (receipt.outcome, receipt.attempts) == (Outcome.SENT, 13)
    assert len(server.messages) == 1


@pytest.mark.parametrize("policy", [RetryPolicy(attempts=1), dataclasses.replace(QUICK, total=0.0)])
def test_one_attempt_and_no_time_are_taken_at_their_word(policy: RetryPolicy) -> None:
    with CaptureServer(on_message=lambda m: "450 4.7.1 too much mail") as server:
        with ThreadedSender(server.url, retry=policy, rng=random.Random(1)) as sender:
            with pytest.raises(MailError, match="too much mail") as info:
                sender.send(envelope("m0"))
    assert info.value.receipt is not None
    assert info.value.receipt.attempts == 1


def refused(reply: Reply) -> Receipt:
    error = MailError(str(reply), phase=Phase.FINAL, transient=True)
    return Receipt(Outcome.NOT_SENT, Phase.FINAL, "a@example.org", ("b@example.net",), reply=reply, error=error)


def test_the_refusals_of_one_burst_count_once() -> None:
    """Sixteen lanes are refused at once: one pause, one lane less; the next burst doubles the pause."""
    limit = ConcurrencyLimit(16)
    signs = read_signs(refused(Reply(450, b"4.7.1 too much mail")))
    assert signs.spares
    pauses = [limit.learn(signs, limit.workers, seen) for seen in (0, 1, 2) for _ in range(16)]
    assert [pause for pause in pauses if pause] == [0.05, 0.1, 0.2]
    assert limit.workers == 13


@pytest.mark.parametrize(
    ("reply", "spared", "slower"),
    [
        (Reply(451, b"4.3.0 local error"), False, False),
        (Reply(450, b"4.2.0 mailbox busy"), False, False),
        (Reply(550, b"5.7.1 no"), False, False),
        (Reply(450, b"4.7.1 too much mail"), True, True),
        (Reply(454, b"throttled"), True, True),
        (Reply(421, b"too many connections"), True, False),
        (Reply(451, b"4.3.2 not accepting"), True, False),
        (Reply(450, b"4.2.0 Greylisted"), True, False),
        (Reply(451, b"4.7.1 gray list, please wait"), True, False),
    ],
    ids=str,
)
def test_what_a_reply_says_about_load(reply: Reply, spared: bool, slower: bool) -> None:
    """Whether the message is charged with the attempt, and whether everybody pauses."""
    signs = read_signs(refused(reply))
    assert signs.spares is spared
    assert (ConcurrencyLimit(4).learn(signs, 4, 0) > 0.0) is slower


# ---------------------------------------------------------------- greylists


@pytest.mark.parametrize("reply", ["451 4.7.1 Greylisted, try later", "450 4.2.0 recipient: Grey-listed for 1 s"])
def test_a_greylist_slows_nobody_else_down(reply: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipient is put off at first sight: about that message, and no reason for all the others to pause."""
    pauses: list[float] = []
    throttle = Throttle()
    monkeypatch.setattr(throttle, "pause", pauses.append)
    first: dict[str, float] = {}
    queued = threading.Event()

    def judge(recipient: str) -> str | None:
        queued.wait(10.0)  # so that all lanes are needed
        return reply if time.monotonic() < first.setdefault(recipient, time.monotonic() + 0.05) else None

    with CaptureServer(on_recipient=judge) as server:
        with ThreadedSender(server.url, workers=8, retry=QUICK, throttle=throttle) as sender:
            futures = [sender.submit(message) for message in named(60).values()]
            queued.set()
            report = Report(future.result(30.0) for future in futures)
            assert sender.stats().lanes == 8
    assert report.counts()[Outcome.SENT] == 60
    assert set(delivered(server.messages).values()) == {1}
    assert len(delivered(server.messages)) == 120
    assert pauses == []
    assert all(2 <= receipt.attempts <= 20 for receipt in report)


# ---------------------------------------------------------------- logins, greetings


def test_logins_that_fail_for_now_are_waited_for() -> None:
    """454 seven times, which is more than the policy's attempts: the server lives, so nothing is given up."""
    no = [greeting(), ehlo("AUTH PLAIN"), Expect("AUTH PLAIN"), Say("454 4.7.0 Temporary failure"), Drop()]
    users = {"ada": "secret"}
    with ScriptedServer(*[no] * 7, [Serve(auth=users)], last="repeat") as server:
        config = dataclasses.replace(ServerConfig.from_url(server.url), username="ada", password="secret")
        with ThreadedSender(config, workers=LANES, retry=QUICK) as sender:
            report = sender.send_all(named(20).values())
    assert report.counts()[Outcome.SENT] == 20
    assert intact(server.messages) == dict.fromkeys(named(20), 1)
    assert server.connections <= 7 + LANES


def test_a_server_that_has_enough_for_good_is_given_up_when_the_time_is_over() -> None:
    with ScriptedServer([Say("421 4.3.2 not now"), Drop()], last="repeat") as server:
        with ThreadedSender(server.url, retry=dataclasses.replace(QUICK, total=0.3)) as sender:
            report = sender.send_all(named(20).values())
    assert report.counts()[Outcome.NOT_SENT] == 20
    assert 2 <= server.connections <= 30
    assert server.max_simultaneous == 1


# ---------------------------------------------------------------- dead servers


class Knock(Step):
    """Reset the connection, and remember when it came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def play(self, peer: Peer) -> None:
        self.at.append(time.monotonic())
        Reset().play(peer)

    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False)]


def shortest_pauses(policy: RetryPolicy) -> Iterator[float]:
    """What the gate waits at least after each failure in a row."""
    pause = policy.base
    while True:
        yield min(policy.longest, pause) / 4
        pause *= 2


def test_sixteen_lanes_send_one_probe_to_a_dead_server() -> None:
    """A hundred messages, as many dials as the policy has attempts, one at a time, each after a longer pause."""
    knock = Knock()
    policy = RetryPolicy(attempts=6, base=0.02, longest=0.2)
    with ScriptedServer([knock], last="repeat") as server:
        with ThreadedSender(server.url, workers=LANES, retry=policy) as sender:
            report = sender.send_all(named(100).values())
    assert report.counts()[Outcome.NOT_SENT] == 100
    assert all(receipt.attempts == 0 for receipt in report)
    assert len(knock.at) == server.connections == 6
    assert server.max_simultaneous == 1
    for gap, shortest in zip(knock.gaps(), shortest_pauses(policy), strict=False):
        assert gap >= shortest * 0.9


def test_sixteen_threads_of_a_pool_send_one_probe_to_a_dead_server() -> None:
    """Each thread tries fifty times: all fail at once and say why, and the server hears next to nothing of it."""
    knock = Knock()
    with ScriptedServer([knock], last="repeat") as server, ClientPool(server.url, max_size=LANES) as pool:

        def work(number: int) -> None:
            for _ in range(50):
                with pytest.raises(MailError) as info:  # ConnectionLost for who dialled, ConnectFailed for who did not
                    pool.send(envelope("m0"), deadline=10.0)
                assert info.value.outcome is Outcome.NOT_SENT
                assert info.value.transient

        began = time.monotonic()
        assert in_threads(LANES, work) == []
        spent = time.monotonic() - began
    allowed, due = 1, 0.0
    for pause in shortest_pauses(RetryPolicy()):
        due += pause
        if due > spent:
            break
        allowed += 1
    assert 1 <= len(knock.at) <= allowed
    assert server.max_simultaneous == 1


def test_a_server_that_comes_back_is_not_stormed() -> None:
    """Until one probe has got through nobody else dials; then all lanes may, and everything arrives once."""
    knock = Knock()
    with ScriptedServer(*[[knock]] * 3, [Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=8, retry=QUICK) as sender:
            report = sender.send_all(named(60).values())
    assert report.counts()[Outcome.SENT] == 60
    assert intact(server.messages) == dict.fromkeys(named(60), 1)
    assert server.connections <= 3 + 8


# ---------------------------------------------------------------- the queue


def test_the_queue_is_bounded_and_a_caller_waits() -> None:
    """Eight callers before a full queue: it holds what it may, and who has no time to wait is told."""
    busy, go = threading.Event(), threading.Event()
    with ScriptedServer([Serve(until="."), Signal(busy), Pause(go), Serve()], last="repeat") as server:
        with ThreadedSender(server.url, workers=1, queue_size=5, retry=QUICK) as sender:
            sender.submit(envelope("m0"))
            assert busy.wait(10.0)
            for number in range(1, 6):
                sender.submit(envelope(f"m{number}"))

            def overfill(number: int) -> None:
                with pytest.raises(TimedOut, match="place in the queue"):
                    sender.submit(envelope("late"), deadline=0.05)
                assert sender.stats().queued == 5

            assert in_threads(8, overfill) == []
            go.set()
    assert intact(server.messages) == dict.fromkeys(named(6), 1)


@pytest.mark.parametrize("kept_by", ["a server that has enough", "a server that says nothing", "a paused throttle"])
def test_a_deadline_holds_in_the_queue(kept_by: str) -> None:
    """Nobody can take the message up: it is settled in time all the same, and the place it had is free again."""
    throttle = Throttle()
    script: list[Step] = [Say("421 4.3.2 not now"), Drop()]
    if kept_by == "a paused throttle":
        script = [Serve()]
        throttle.pause(60.0)
    elif kept_by == "a server that says nothing":
        script = [Pause(threading.Event(), 60.0)]
    patient = RetryPolicy(base=10.0, longest=10.0)
    with ScriptedServer(script, last="repeat") as server:
        with ThreadedSender(server.url, workers=1, queue_size=1, retry=patient, throttle=throttle) as sender:
            for _ in range(2):
                began = time.monotonic()
                future = sender.submit(envelope("m0"), deadline=0.2)
                with pytest.raises(TimedOut):
                    future.result(20.0)
                assert time.monotonic() - began < 2.2
                assert future.receipt is not None
                assert future.receipt.outcome is Outcome.NOT_SENT
            sender.close(drain=False, timeout=0.1)
    assert server.messages == []
