"""The stress commands run, with tiny bounds; and what they would report is reported."""

from __future__ import annotations

import logging
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stress import explore, kill, million, soak
from tests.detsched import DepthFirst, Run
from tests.detsched.scenario import PostOffice
from tests.proof.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]


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


def test_kill_counts_what_arrived(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiosmtpd")
    monkeypatch.setattr(kill, "MESSAGES", 500)
    monkeypatch.setattr(kill, "LATEST", 0.02)  # before they can have sent all of them
    monkeypatch.setattr(kill, "WORKERS", 1)
    assert kill.main(["--seconds", "1", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "0 violations; seed 3" in printed
    assert "500 messages" in printed or "1,000 messages" in printed
