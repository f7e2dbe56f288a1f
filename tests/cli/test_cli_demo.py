"""`threadmail demo`: it proves what it says, and would notice if it were not so."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator

import pytest

from threadmail import Envelope
from threadmail.cli import demo as _cli_demo
from threadmail.cli import main
from threadmail.cli.demo import Verdict, compare
from threadmail.cli.exit_codes import Exit
from threadmail.testing import CapturedMessage, CaptureServer


@pytest.fixture(scope="module")
def arrived() -> Iterator[list[CapturedMessage]]:
    """Ten messages as they arrive."""
    from threadmail import ThreadedSender

    with CaptureServer() as server, ThreadedSender(server.config, workers=2) as sender:
        sender.send_all(_cli_demo._envelopes(10)).raise_for_failures()
        yield server.messages


def test_all_arrive_intact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--messages", "60", "--workers", "4"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^60 of 60 delivered intact, [\d,]+ messages a second$", out, re.MULTILINE)
    assert "from 4 threads" in err
    assert main(["demo", "-q", "--messages", "3"]) == 0
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), err) == (1, "")


def test_no_two_messages_are_alike() -> None:
    envelopes = list(_cli_demo._envelopes(50))
    for part in (
        {e.sender for e in envelopes},
        {e.recipients for e in envelopes},
        {e.content.partition(b"\r\n\r\n")[2] for e in envelopes},
    ):
        assert len(part) == 50
    assert any(b"\r\n.." in e.content for e in envelopes)  # what a server takes a dot off


def test_the_comparison_sees_every_fault(arrived: list[CapturedMessage]) -> None:
    first, second, *rest = arrived
    assert compare(10, arrived) == Verdict(10, 0, 0, 0)
    assert compare(10, [second, *rest]) == Verdict(9, 1, 0, 0)
    assert compare(10, [*arrived, first]) == Verdict(9, 0, 1, 0)
    for damaged in (
        dataclasses.replace(first, content=second.content),
        dataclasses.replace(first, content=first.content[:-1]),
        dataclasses.replace(first, recipients=second.recipients),
        dataclasses.replace(first, sender=second.sender),
        dataclasses.replace(first, sender="nobody@demo.example"),
    ):
        assert compare(10, [damaged, second, *rest]) == Verdict(9, 1, 0, 1)


def test_one_fault_is_enough_to_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = _cli_demo._envelopes

    def tampering(total: int) -> Iterator[Envelope]:
        for number, envelope in enumerate(original(total)):
            yield (
                envelope if number != 7 else Envelope(envelope.sender, envelope.recipients, b"Subject: x\r\n\r\nx\r\n")
            )

    monkeypatch.setattr(_cli_demo, "_envelopes", tampering)
    assert main(["demo", "--messages", "10"]) == Exit.SOFTWARE
    assert "9 of 10 delivered intact" in capsys.readouterr().out


def test_without_aiosmtpd_it_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aiosmtpd.smtp", None)
    assert main(["demo"]) == Exit.UNAVAILABLE
    assert "pip install 'threadmail[cli,sandbox]'" in capsys.readouterr().err
