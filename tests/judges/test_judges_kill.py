"""The judge of the killed processes on forged records: for each thing that it claims to see one shows just that."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from stress import kill
from threadmail.testing import CapturedMessage


def message(name: str, run: int = 1, content: bytes | None = None, **changes: str) -> CapturedMessage:
    sent = kill.letter(name, run)
    now = datetime.now(timezone.utc)
    sender = changes.get("sender", sent.sender)
    to = (changes["to"],) if "to" in changes else sent.recipients
    return CapturedMessage(sender, to, content or sent.content, "me", (), ((),), None, False, 0, now)


def judged(
    folder: Path,
    record: str,
    *arrived: CapturedMessage,
    names: tuple[str, ...] = ("a",),
    finished: dict[int, tuple[str, ...]] | None = None,
    kills: int = 1,
    violations: tuple[str, ...] = (),
) -> list[str]:
    file = folder / "record"
    file.write_text("".join(f"{line}\n" for line in record.split(", ") if line))
    tally = kill.Tally(2, kills, [file], list(names), list(violations), finished or {})
    return kill.judge(list(arrived), tally)[0]


def test_what_is_true_passes(tmp_path: Path) -> None:
    assert judged(tmp_path, "1 a SENT", message("a"), finished={1: ("a",)}) == []


def test_that_a_second_process_sends_again_what_the_first_could_not_record_is_not_claimed_to_be_prevented(
    tmp_path: Path,
) -> None:
    assert judged(tmp_path, "2 a SENT", message("a"), message("a", 2), finished={2: ("a",)}) == []


CUT = kill.letter("a", 1).content[:-4]
KEPT = ("b",)


@pytest.mark.parametrize(
    ("claim", "record", "arrived", "violation"),
    [
        ("twice from one process", "1 a SENT", [message("a"), message("a")], "a arrived 2 times from run 1"),
        ("a loss", "1 a SENT", [message("a", 2)], "a of run 1 is recorded as sent, and did not arrive"),
        ("told not sent", "1 b SENT, 1 a NOT_SENT", [message("a")], "a of run 1 is recorded as not sent, and arrived"),
        ("four receipts", "1 a SENT, 1 a SENT", [message("a")], "a of run 1 was told 2 times: ['sent', 'sent']"),
        (
            "a second word",
            "1 a IN_DOUBT, 1 a SENT",
            [message("a")],
            "a of run 1 was told 2 times: ['in doubt', 'sent']",
        ),
        ("a doubt without a fault", "1 a IN_DOUBT", [message("a")], "1 in doubt, and no more than 0 can be"),
        ("damage", "1 a SENT", [message("a", 1, CUT)], "a of run 1 is not whole"),
        ("a foreign sender", "1 a SENT", [message("a", sender="x@example.org")], "a of run 1 is not whole"),
        ("a leak", "1 a SENT", [message("a", to="x@example.net")], "a of run 1 is not whole"),
        ("nobody's", "1 a SENT", [message("a"), message("a", 1, b"x")], "nobody's message arrived"),
        ("never sent", "1 a SENT", [], "a never arrived"),
        ("nothing but failures", "1 a NOT_SENT, 1 b NOT_SENT", [], "too few sent: 0 of 2"),
        ("nothing at all", "", [message("a")], "empty: 0 messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_judge_of_the_killed_sees(
    tmp_path: Path, claim: str, record: str, arrived: list[CapturedMessage], violation: str
) -> None:
    found = judged(tmp_path, record, *arrived)
    assert sum(violation in line for line in found) == 1, found


def test_a_process_that_ended_in_peace_and_was_not_told_is_seen(tmp_path: Path) -> None:
    """`on_receipt` was never called for one of its messages."""
    found = judged(tmp_path, "1 a SENT", message("a"), message("b"), names=("a", "b"), finished={1: ("a", "b")})
    assert found == ["b of run 1 was never told"]


def test_a_run_in_which_nobody_was_killed_is_seen(tmp_path: Path) -> None:
    assert judged(tmp_path, "1 a SENT", message("a"), kills=0) == ["empty: nobody was killed"]


@pytest.mark.parametrize("status", [kill.UNEVEN, kill.LEFT, 1, "a hang"])
def test_how_a_process_ended_is_seen(tmp_path: Path, status: object) -> None:
    """Told by `on_receipt` and by `send_each` differently, a thread left, a crash, a hang."""
    ended = f"run 1 ended with {status}"
    assert judged(tmp_path, "1 a SENT", message("a"), violations=(ended,)) == [ended]


class Uneven:
    """A sender whose `on_receipt` says nothing."""

    def __init__(self, url: str, *, workers: int, on_receipt: object) -> None: ...

    def __enter__(self) -> Uneven:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def send_each(self, letters: object) -> list[object]:
        from threadmail import Outcome, Receipt

        return [Receipt(Outcome.SENT, None, "from-a@example.org", ("to-a@example.net",))]


def test_a_process_that_is_told_by_one_way_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "ThreadedSender", Uneven)
    assert kill.work("smtp://x", 1, ["a"], tmp_path / "record") == kill.UNEVEN


def test_a_line_that_a_kill_cut_short_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "record").write_text("1 a SENT\n2 b SE")
    assert list(kill.settled(tmp_path / "record")) == [("a", 1)]
    assert kill.settled(tmp_path / "none") == {}
