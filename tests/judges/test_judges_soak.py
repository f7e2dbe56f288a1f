"""The ledger of soak and storm on forged evidence: for each thing that it claims to see one case shows just that."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from stress import soak, subjects
from stress.ledger import REFUSED, TAKEN, Arrived, Fate, Ledger
from tests.support.naming import naming
from threadmail import Envelope, MailError, Outcome, Phase, Receipt
from threadmail.errors import ConnectionLost, TimedOut
from threadmail.receipt import Reply

ENVELOPE = Envelope(
    "from-a@example.org", [f"x@{TAKEN}", f"y@{REFUSED}"], b"Message-ID: <a@example.org>\r\n\r\nhello\r\n"
)
X, Y = ENVELOPE.recipients
COPY = Arrived(ENVELOPE.sender, (X,), ENVELOPE.content, "ID1")
PARTIAL = Fate(Outcome.PARTIAL, frozenset([X]), frozenset([Y]), reply="250 queued as ID1")
SENT = Fate(Outcome.SENT, frozenset([X, Y]), frozenset(), reply="250 queued as ID1")
IN_DOUBT = Fate.in_doubt("ConnectionLost")
NOT_SENT = Fate(Outcome.NOT_SENT, frozenset(), frozenset())


def judged(fate: Fate | None, *arrived: Arrived, doubts: int = 1) -> list[str]:
    ledger = Ledger()
    ledger.may_doubt(doubts)
    ledger.hand_in(ENVELOPE)
    if fate is not None:
        ledger.settle(ENVELOPE, fate)
    else:
        ledger.hand_in(other := letter("b"))
        ledger.settle(other, NOT_SENT)  # so that it is not empty
    return ledger.judge(arrived)


def letter(name: str) -> Envelope:
    return Envelope(f"from-{name}@example.org", [f"{name}@{TAKEN}"], f"Message-ID: <{name}@example.org>\r\n\r\n")


def test_what_is_true_passes() -> None:
    assert judged(PARTIAL, COPY) == []
    assert judged(IN_DOUBT, COPY) == []
    assert judged(IN_DOUBT) == []
    assert judged(NOT_SENT) == []
    assert judged(Fate.of_refused(ENVELOPE, [Y]), COPY) == []


WHOLE = Arrived(ENVELOPE.sender, (X, Y), ENVELOPE.content, "ID1")
ONLY_Y = Arrived(ENVELOPE.sender, (Y,), ENVELOPE.content, "ID1")


@pytest.mark.parametrize(
    ("claim", "fate", "arrived", "wrong"),
    [
        ("a loss", PARTIAL, [], f"a: partial (250 queued as ID1), yet 0 copies for {X}"),
        ("a loss for one", SENT, [COPY], f"a: sent (250 queued as ID1), yet 0 copies for {Y}"),
        ("twice", PARTIAL, [COPY, COPY], f"a: partial (250 queued as ID1), yet 2 copies for {X}"),
        ("twice for one", SENT, [WHOLE, ONLY_Y], f"a: sent (250 queued as ID1), yet 2 copies for {Y}"),
        ("twice in doubt", IN_DOUBT, [COPY, COPY], f"a: in doubt (), yet 2 copies for {X}"),
        ("told not sent", NOT_SENT, [COPY], f"a: not sent (), yet 1 copies for {X}"),
        ("told refused", PARTIAL, [WHOLE], f"a: partial (250 queued as ID1), yet 1 copies for {Y}"),
        ("nothing told", None, [], "a: no receipt"),
        ("a foreign sender", PARTIAL, [Arrived("b@example.org", (X,), COPY.content, "ID1")], "a: arrived from b@e"),
        (
            "a leak",
            PARTIAL,
            [Arrived(ENVELOPE.sender, (X, "z@example.net"), COPY.content, "ID1")],
            "a: leaked to ['z@example.net']",
        ),
        (
            "damage",
            PARTIAL,
            [Arrived(ENVELOPE.sender, (X,), COPY.content + b"MAIL FROM:<b>\r\n", "ID1")],
            "a: the content is not intact",
        ),
        (
            "nobody's",
            PARTIAL,
            [COPY, Arrived(ENVELOPE.sender, (X,), b"Subject: x\r\n\r\n")],
            "nobody's message arrived",
        ),
        (
            "another's reply",
            Fate(Outcome.SENT, frozenset([X, Y]), frozenset(), reply="250 queued as ID2"),
            [WHOLE],
            "a: receipt with another message's reply: '250 queued as ID2'",
        ),
        (
            "another's reply, partly sent",
            Fate(Outcome.PARTIAL, frozenset([X]), frozenset([Y]), reply="250 queued as ID2"),
            [COPY],
            "a: receipt with another message's reply: '250 queued as ID2'",
        ),
        ("no reply", Fate(Outcome.SENT, frozenset([X, Y]), frozenset()), [WHOLE], "a: sent without the server's reply"),
        (
            "another recipient's reply",
            Fate(
                Outcome.PARTIAL,
                frozenset([X]),
                frozenset([Y]),
                "250 queued as ID1",
                refusals={Y: naming("550 5.1.1", X, "nobody here")},
            ),
            [COPY],
            "a: receipt with another recipient's reply",
        ),
        (
            "a contradiction",
            Fate(Outcome.NOT_SENT, frozenset(), frozenset(), wrong=("contradiction",)),
            [],
            "a: contradiction",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_ledger_sees(claim: str, fate: Fate | None, arrived: list[Arrived], wrong: str) -> None:
    [found] = judged(fate, *arrived)
    assert found.startswith(wrong)


def test_the_ledger_sees_that_a_message_was_settled_twice() -> None:
    ledger = Ledger()
    ledger.hand_in(ENVELOPE)
    ledger.settle(ENVELOPE, NOT_SENT)
    ledger.settle(ENVELOPE, NOT_SENT)
    assert ledger.judge([]) == ["a: settled twice"]


def test_the_ledger_tells_what_the_threads_saw() -> None:
    ledger = Ledger()
    ledger.hand_in(ENVELOPE)
    ledger.settle(ENVELOPE, NOT_SENT)
    ledger.violated("soak-client: KeyError: 'x'")
    assert ledger.judge([]) == ["soak-client: KeyError: 'x'"]


# Raised errors --------------------------------------------------------------------------------------------------------


def receipt(outcome: Outcome, error: MailError | None = None, **parts: Any) -> Receipt:
    return Receipt(outcome, Phase.FINAL, ENVELOPE.sender, ENVELOPE.recipients, "<a@example.org>", error=error, **parts)


def raised(error: MailError, *, begun: bool = True) -> list[str]:
    ledger = Ledger()
    ledger.may_doubt()
    ledger.hand_in(ENVELOPE)
    if not begun:
        ledger.not_begun(ENVELOPE)
    ledger.settle_error(ENVELOPE, error)
    return ledger.judge([])


def test_an_error_that_its_receipt_contradicts_is_seen() -> None:
    error = TimedOut("late")
    error.receipt = receipt(Outcome.IN_DOUBT, error)
    assert raised(error) == ["a: TimedOut says not sent, its receipt in doubt"]


def test_an_error_without_a_receipt_is_seen_where_the_message_had_been_handed_in() -> None:
    assert raised(TimedOut("late")) == ["a: TimedOut carries no receipt"]
    assert raised(TimedOut("late"), begun=False) == []


def test_a_doubt_without_a_receipt_is_seen_always() -> None:
    error = ConnectionLost("gone", phase=Phase.FINAL)
    error.outcome = Outcome.IN_DOUBT
    assert raised(error, begun=False) == ["a: ConnectionLost carries no receipt"]


def test_an_error_that_agrees_with_its_receipt_passes() -> None:
    error = ConnectionLost("gone", phase=Phase.FINAL)
    error.outcome = Outcome.IN_DOUBT
    error.receipt = receipt(Outcome.IN_DOUBT, error)
    assert raised(error) == []


def test_a_receipt_that_contradicts_itself_is_seen() -> None:
    fate = Fate.of(receipt(Outcome.SENT, accepted=(X,), reply=Reply(250, b"ID1")))
    assert fate.wrong == ("receipt says sent, and accepted does not fit",)


# What no single message shows -----------------------------------------------------------------------------------------


def many(outcomes: dict[str, int], *, doubts: int = 0, hurried: bool = False, why: str = "", **how: Any) -> list[str]:
    ledger = Ledger(**how)
    ledger.may_doubt(doubts)
    arrived = []
    for outcome, number in outcomes.items():
        for index in range(number):
            envelope = letter(f"{outcome.replace(' ', '')}{index}")
            ledger.hand_in(envelope, hurried=hurried)
            accepted = frozenset(envelope.recipients) if outcome == "sent" else frozenset()
            if accepted:
                arrived.append(Arrived(envelope.sender, envelope.recipients, envelope.content, "ID1"))
            ledger.settle(envelope, Fate(Outcome(outcome), accepted, frozenset(), "250 ID1", why))
    return ledger.judge(arrived)


def test_a_product_that_calls_all_in_doubt_is_seen() -> None:
    assert many({"in doubt": 50}, doubts=3, floor=0.25) == [
        "50 in doubt, and no more than 3 can be by what was done to their connections",
        "too few sent: 0 of 50, and at least 25% can be",
    ]


def test_a_doubt_more_than_faults_can_explain_is_seen() -> None:
    assert many({"sent": 50, "in doubt": 3}, doubts=3, floor=0.25) == []
    assert many({"sent": 50, "in doubt": 4}, doubts=3, floor=0.25) == [
        "4 in doubt, and no more than 3 can be by what was done to their connections"
    ]


def test_a_deadline_of_its_own_explains_the_doubt_of_one_that_was_late_and_no_other() -> None:
    assert many({"sent": 50, "in doubt": 4}, hurried=True, why="ReplyTimedOut") == []
    assert len(many({"sent": 50, "in doubt": 4}, hurried=True, why="ConnectionLost")) == 1
    assert len(many({"sent": 50, "in doubt": 4}, hurried=False, why="ReplyTimedOut")) == 1


def test_where_nobody_does_anything_wrong_a_doubt_is_seen() -> None:
    assert many({"sent": 5, "in doubt": 1}, doubts=9, calm=True, why="BadReply") == [
        "indoubt0: BadReply, although nobody did anything wrong"
    ]


def test_a_product_that_sends_too_little_is_seen() -> None:
    assert many({"sent": 1, "not sent": 9}, floor=0.25) == ["too few sent: 1 of 10, and at least 25% can be"]


def test_an_empty_round_is_seen() -> None:
    assert many({}) == ["empty: 0 messages, and at least 1 are needed to say anything"]
    assert many({"sent": 4}, least=5) == ["empty: 4 messages, and at least 5 are needed to say anything"]


# What is told by callback, and what is left ---------------------------------------------------------------------------


def sender(ledger: Ledger, announced: dict[str, int], **left: int) -> subjects.SharedSender:
    subject = subjects.SharedSender.__new__(subjects.SharedSender)
    subject._ledger, subject._announced = ledger, Counter({f"<{name}@example.org>": n for name, n in announced.items()})
    subject._lock, subject._drain = threading.Lock(), True
    numbers = SimpleNamespace(**{"queued": 0, "retrying": 0, "in_flight": 0, **left})
    subject._sender = SimpleNamespace(close=lambda **_: None, stats=lambda: numbers)  # type: ignore[assignment]
    return subject


@pytest.mark.parametrize(
    ("announced", "settled", "wrong"),
    [
        ({"a": 1}, True, []),
        ({}, False, []),
        ({}, True, ["a: on_receipt was never called"]),
        ({"a": 2}, True, ["a: on_receipt was called 2 times"]),
        ({"a": 2}, False, ["a: on_receipt was called 2 times"]),
    ],
)
def test_each_message_is_told_by_callback_once(announced: dict[str, int], settled: bool, wrong: list[str]) -> None:
    ledger = Ledger()
    ledger.hand_in(ENVELOPE)
    if settled:
        ledger.settle(ENVELOPE, NOT_SENT)
    sender(ledger, announced).close()
    assert ledger.violations == wrong


def test_of_what_was_turned_away_or_is_another_subjects_no_callback_tells() -> None:
    ledger = Ledger()
    ledger.hand_in(ENVELOPE)
    ledger.turned_away(ENVELOPE)
    ledger.hand_in(other := letter("b"), announced=False)
    for envelope in (ENVELOPE, other):
        ledger.settle(envelope, NOT_SENT)
    sender(ledger, {}).close()
    assert ledger.violations == []


def pool(closed: bool, **numbers: int) -> subjects.SharedPool:
    subject = subjects.SharedPool.__new__(subjects.SharedPool)
    stats = SimpleNamespace(**{"leased": 0, "waiting": 0, "idle": 0, **numbers})
    subject._pool = SimpleNamespace(stats=lambda: stats, close=lambda **_: None)  # type: ignore[assignment]
    subject._closed = closed
    return subject


def client(connected: bool) -> subjects.SharedClient:
    subject = subjects.SharedClient.__new__(subjects.SharedClient)
    subject._client = SimpleNamespace(is_connected=connected, close=lambda **_: None)  # type: ignore[assignment]
    subject._closed = False
    return subject


def ended(subject: Any) -> list[str]:
    round_ = soak.Round.__new__(soak.Round)
    round_.ledger = Ledger()
    with patch.object(soak, "FAREWELLS", 0.1):
        round_._end(subject)
    return round_.ledger.violations


@pytest.mark.parametrize(
    ("subject", "wrong"),
    [
        (pool(False), []),
        (client(False), []),
        (sender(Ledger(), {}), []),
        (client(True), ["client: 1 connections left when it is closed"]),
        (
            pool(False, leased=1),
            ["pool: 1 clients leased left when its callers are gone", "pool: 1 clients leased left when it is closed"],
        ),
        (
            pool(False, waiting=2),
            [
                "pool: 2 threads waiting left when its callers are gone",
                "pool: 2 threads waiting left when it is closed",
            ],
        ),
        (pool(False, idle=subjects.POOL), [f"pool: {subjects.POOL} clients idle left when it is closed"]),
        (
            pool(False, idle=subjects.POOL + 1),
            [
                "pool: 1 clients idle left when its callers are gone",
                f"pool: {subjects.POOL + 1} clients idle left when it is closed",
            ],
        ),
        *(
            (
                sender(Ledger(), {}, **{what: 1}),
                [f"sender: 1 {shown} left when its callers are gone", f"sender: 1 {shown} left when it is closed"],
            )
            for what, shown in [("queued", "queued"), ("retrying", "retrying"), ("in_flight", "in flight")]
        ),
    ],
)
def test_what_is_left_of_their_use_is_seen(subject: Any, wrong: list[str]) -> None:
    """Leases, waiting threads, idle clients beyond the bound; connections, messages; and idle ones after the end."""
    assert ended(subject) == wrong


class Sloppy:
    """A server's stand-in, within which a thread and a socket are left behind."""

    host, port, faulty, hit = "127.0.0.1", 25, True, 0

    def __init__(self) -> None:
        self.struck: Counter[str] = Counter()

    def __enter__(self) -> Sloppy:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def arrived(self, at_least: int) -> list[Arrived]:
        return []


def test_threads_and_descriptors_that_are_left_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    left: list[Any] = []

    class Round(soak.Round):
        def run(self) -> None:
            thread = threading.Thread(target=over.wait, name="left over", daemon=True)
            left.append(thread)
            thread.join = lambda timeout=None: None  # type: ignore[method-assign]
            thread.start()
            left.append(open("/dev/null"))  # noqa: SIM115 - that is the point

    monkeypatch.setattr(soak, "Round", Round)
    try:
        _, violations, _ = soak.soak_round("1", [], lambda rng: Sloppy(), 0.0)  # type: ignore[arg-type, return-value]
    finally:
        over.set()
        left[1].close()
        threading.Thread.join(left[0])
    assert "thread left: left over" in violations
    assert any(line.startswith("descriptor left: /dev/null") for line in violations)


def test_memory_and_objects_that_grow_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    if not soak.GIL:
        pytest.skip("not judged free of the GIL")
    found = soak.Soak(lambda rng: None, [], 1)  # type: ignore[arg-type, return-value]
    found._memory = [(10.0, 100)] * soak.WARM + [(10.0 + soak.GROWTH + 1, 101 + soak.OBJECTS)]
    found._judge_memory()
    assert [line.partition(":")[0] for line in found.violations] == ["memory left", "objects left"]


def test_what_a_worker_raises_that_is_no_mail_error_is_seen() -> None:
    round_ = soak.Round.__new__(soak.Round)
    round_.ledger = Ledger()
    round_._guarded(lambda: dict[str, int]()["x"])
    assert round_.ledger.violations == [f"{threading.current_thread().name}: KeyError: 'x'"]
