"""The stress commands run, with tiny bounds; and what they would report is reported."""

from __future__ import annotations

import logging
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from stress import explore, kill, million, soak
from stress.ledger import REFUSED, TAKEN, Arrived, Fate, Ledger
from tests.detsched import DepthFirst, Run
from tests.detsched.scenario import PostOffice
from tests.proof.scenario import Scenario
from threadmail import Envelope, Outcome
from threadmail.testing import CapturedMessage

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The soak turns the log down."""
    logger = logging.getLogger("threadmail")
    before = logger.level
    yield
    logger.setLevel(before)


def raw(run: Run) -> None:
    office = PostOffice(run)
    client = smtplib.SMTP("model", 25, local_hostname="me")
    client.ehlo()
    office.senders(threads=2, messages=1, sendmail=client.sendmail)


def test_explore_says_what_it_could_not_finish(capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main(["--seconds", "0.1", "--only", "all: pool of 1, 3x2"]) == 0
    printed = capsys.readouterr().out
    assert "INCOMPLETE" in printed
    assert "complete=no" in printed


def test_explore_draws_schedules_by_chance(capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main(["--seconds", "0.2", "--seed", "3", "--only", "pool of 3, 8x10"]) == 0
    printed = capsys.readouterr().out
    assert "RandomWalk seed=3" in printed
    assert "PCT depth=3" in printed


def test_explore_tells_a_failure_and_replays_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = explore.Search("all", Scenario("raw, 2x1", raw), lambda seed, length: DepthFirst(), 1.0)
    monkeypatch.setattr(explore, "SEARCHES", [broken])
    assert explore.main(["--seconds", "60"]) == 1  # it ends when all are done
    printed = capsys.readouterr().out
    assert "BROKEN: 582 of 586 schedules" in printed
    [again] = [line for line in printed.splitlines() if "again:" in line]
    schedule = again.split('--replay "')[1].rstrip('"')
    assert explore.main(["--only", "raw, 2x1", "--replay", schedule]) == 1
    assert "reply read by the wrong thread" in capsys.readouterr().out


def test_soak_comes_out_even(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiosmtpd")
    assert soak.main(["--seconds", "0.5", "--only", "client"]) == 0
    printed = capsys.readouterr().out
    assert "0 violations" in printed
    assert "faults survived" in printed


def test_soak_in_a_storm_comes_out_even(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiosmtpd")
    assert soak.main(["--minutes", "0.01", "--faults", "cuts,greylist,logins", "--only", "client"]) == 0
    printed = capsys.readouterr().out
    assert "0 lost, 0 twice, 0 leaked, 0 otherwise wrong" in printed
    assert "greylisted" in printed


def test_soak_knows_its_faults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--faults", "cuts,earthquakes"])
    assert "no such faults: earthquakes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("violation", "kind"),
    [
        ("a: sent (250 ok), yet 0 copies for x@example.net", "lost"),
        ("a: in doubt (ConnectionLost), yet 2 copies for x@example.net", "twice"),
        ("a: not sent (TimedOut), yet 1 copies for x@example.net", "twice"),
        ("thread left: soak", "leaked"),
        ("descriptor left: socket:[1]", "leaked"),
        ("memory left: 90 MiB more than after round 2", "leaked"),
        ("a: the content is not intact", "otherwise wrong"),
    ],
)
def test_soak_says_what_a_violation_comes_to(violation: str, kind: str) -> None:
    assert soak.kind_of(violation) == kind


def test_million_sends_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["million", "--messages", "100"])
    assert million.main() == 0


def test_free_threaded_says_how_to_call_it() -> None:
    done = subprocess.run(["bash", ROOT / "stress/free-threaded.sh"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert "usage:" in done.stderr


# The ledger: each way in which receipt and server can disagree ------------------------------------------------------

ENVELOPE = Envelope(
    "from-a@example.org", [f"x@{TAKEN}", f"y@{REFUSED}"], b"Message-ID: <a@example.org>\r\n\r\nhello\r\n"
)
X, Y = ENVELOPE.recipients
COPY = Arrived(ENVELOPE.sender, (X,), ENVELOPE.content, "ID1")
PARTIAL = Fate(Outcome.PARTIAL, frozenset([X]), frozenset([Y]), reply="250 queued as ID1")
IN_DOUBT = Fate.in_doubt("ConnectionLost")
NOT_SENT = Fate(Outcome.NOT_SENT, frozenset(), frozenset())


def judged(fate: Fate | None, *arrived: Arrived) -> list[str]:
    ledger = Ledger()
    ledger.hand_in(ENVELOPE)
    if fate is not None:
        ledger.settle(ENVELOPE, fate)
    return ledger.judge(arrived)


def test_a_ledger_that_comes_out_even() -> None:
    assert judged(PARTIAL, COPY) == []
    assert judged(IN_DOUBT, COPY) == []
    assert judged(IN_DOUBT) == []
    assert judged(NOT_SENT) == []


@pytest.mark.parametrize(
    ("fate", "arrived", "wrong"),
    [
        (PARTIAL, [], "0 copies"),
        (PARTIAL, [COPY, COPY], "2 copies"),
        (IN_DOUBT, [COPY, COPY], "2 copies"),
        (NOT_SENT, [COPY], "1 copies"),
        (None, [], "no receipt"),
        (PARTIAL, [Arrived(ENVELOPE.sender, (X, Y), ENVELOPE.content)], f"1 copies for {Y}"),
        (PARTIAL, [Arrived("from-b@example.org", (X,), ENVELOPE.content)], "arrived from"),
        (PARTIAL, [Arrived(ENVELOPE.sender, (X, "z@example.net"), ENVELOPE.content)], "leaked to"),
        (PARTIAL, [Arrived(ENVELOPE.sender, (X,), ENVELOPE.content + b"MAIL FROM:<b>\r\n")], "not intact"),
        (PARTIAL, [COPY, Arrived(ENVELOPE.sender, (X,), b"Subject: x\r\n\r\n")], "nobody's message"),
    ],
)
def test_a_ledger_that_does_not(fate: Fate | None, arrived: list[Arrived], wrong: str) -> None:
    found = judged(fate, *arrived)
    assert any(wrong in line for line in found), found


def test_the_reply_of_another_message_is_noticed() -> None:
    sent = Fate(Outcome.SENT, frozenset([X, Y]), frozenset(), reply="250 queued as ID2")
    assert judged(sent, Arrived(ENVELOPE.sender, (X, Y), ENVELOPE.content, "ID1")) == [
        "a: told '250 queued as ID2', which is another message's reply"
    ]


def test_settled_twice_is_noticed() -> None:
    ledger = Ledger()
    ledger.hand_in(ENVELOPE)
    ledger.settle(ENVELOPE, NOT_SENT)
    ledger.settle(ENVELOPE, NOT_SENT)
    assert ledger.judge([]) == ["a: settled twice"]


def test_kill_counts_what_arrived(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiosmtpd")
    monkeypatch.setattr(kill, "MESSAGES", 40)
    monkeypatch.setattr(kill, "WORKERS", 1)
    assert kill.main(["--seconds", "1", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "0 violations; seed 3" in printed
    assert "40 messages" in printed or "80 messages" in printed


def test_kill_sees_each_way_to_be_wrong(tmp_path: Path) -> None:
    """Twice from one run, recorded and not there, there and recorded as not sent, not whole, nobody's, lost."""

    def message(name: str, run: int, content: bytes | None = None) -> CapturedMessage:
        sent = kill.letter(name, run)
        now = datetime.now(timezone.utc)
        whole = content or sent.content
        return CapturedMessage(sent.sender, sent.recipients, whole, "me", (), ((),), None, False, 0, now)

    record = tmp_path / "record"
    record.write_text("1 a SENT\n1 b SENT\n1 c NOT_SENT\n2 d SE")
    tally = kill.Tally(runs=2, kills=1, records=[record], names=["a", "b", "c", "d", "e"])
    cut = kill.letter("e", 2).content[:-4]
    arrived = [message("a", 1), message("a", 1), message("c", 1), message("e", 2, cut), message("x", 1, b"x")]
    wrong, figures = kill.judge(arrived, tally)
    for expected in ("a arrived 2 times", "b of run 1 is recorded as sent", "c of run 1 is recorded as not sent"):
        assert sum(expected in line for line in wrong) == 1, wrong
    assert sum("is not whole" in line for line in wrong) == 1
    assert sum("nobody's" in line for line in wrong) == 1
    assert sum("b never arrived" in line or "d never arrived" in line for line in wrong) == 2
    assert "unknown (arrived, and the process was killed before it recorded that): 1" in figures
