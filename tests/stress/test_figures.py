"""The sender's figures: the servers answer as they say, the best of several runs counts, and what is short is told."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stress import figures, operations
from stress.figures import EveryOtherRefused, Greylisting, HalfPutOff, Measure, Value
from stress.sink import Sink

ROOT = Path(__file__).resolve().parents[2]


def values(**bounds: float) -> tuple[Value, ...]:
    return tuple(Value(key, key, "ms", bound) for key, bound in bounds.items())


def given(*runs: dict[str, float]) -> Iterator[dict[str, float]]:
    yield from runs
    raise AssertionError("one run too many")


def test_half_of_the_recipients_are_put_off() -> None:
    session = HalfPutOff(())
    session.feed(b"MAIL FROM:<a1@b.example>\r\n")
    replies = [session.feed(b"RCPT TO:<user%d@b.example>\r\n" % n) for n in range(4)]
    assert [reply[:3] for reply in replies] == [b"250", b"450", b"250", b"450"]


def test_one_domain_is_greylisted() -> None:
    session = Greylisting(())
    assert session.feed(b"RCPT TO:<x@grey.example>\r\nRCPT TO:<x@b.example>\r\n").startswith(b"450 4.7.1")
    assert session.feed(b"RCPT TO:<x@b.example>\r\n").startswith(b"250")


def test_every_other_connection_is_refused_and_all_are_counted() -> None:
    with Sink(session=EveryOtherRefused) as sink:
        for number in range(4):
            if number % 2:
                with pytest.raises(smtplib.SMTPConnectError):
                    smtplib.SMTP(sink.host, sink.port, local_hostname="me", timeout=10)
                continue
            smtp = smtplib.SMTP(sink.host, sink.port, local_hostname="me", timeout=10)
            assert smtp.ehlo()[0] == 250
            with pytest.raises(smtplib.SMTPServerDisconnected):
                smtp.noop()
        assert sink.messages == 4


def test_the_best_run_counts() -> None:
    """Other work makes a wait longer, never shorter; and what is met, or hopeless, is not asked again."""
    measure = Measure("x", lambda host, port, scale: {}, values(wait=20.0), runs=3)
    assert figures.best_of(measure, given({"wait": 30.0}, {"wait": 25.0}, {"wait": 90.0}).__next__) == {"wait": 25.0}
    assert figures.best_of(measure, given({"wait": 30.0}, {"wait": 5.0}).__next__) == {"wait": 5.0}
    assert figures.best_of(measure, given({"wait": 7000.0}).__next__) == {"wait": 7000.0}
    share = Measure("y", lambda host, port, scale: {}, (Value("share", "share", "x", 0.8, at_least=True),), runs=2)
    assert figures.best_of(share, given({"share": 0.7}, {"share": 0.1}).__next__) == {"share": 0.7}
    assert figures.best_of(share, given({"share": 0.7}, {"share": 0.9}).__next__) == {"share": 0.9}


def test_a_second_number_of_a_run_must_be_met_as_well() -> None:
    measure = Measure("x", lambda host, port, scale: {}, values(wait=20.0, more=1.0), runs=2)
    first, second = {"wait": 5.0, "more": 9.0}, {"wait": 4.0, "more": 0.5}
    assert figures.best_of(measure, given(first, second).__next__) == second


@pytest.mark.parametrize("measure", figures.MEASURES, ids=lambda measure: measure.name)
def test_each_measurement_gives_what_the_table_shows(measure: Measure) -> None:
    """A hundredth of it: in a process of its own, against its server, by the working tree."""
    found = figures.once(measure, ROOT, 0.01)
    assert found.keys() >= {value.key for value in measure.values}
    assert all(number >= 0.0 for number in found.values())
    assert any(value.bound is not None for value in measure.values)


def test_no_operation_of_the_queue_grows_with_it() -> None:
    """Twenty times as many messages: no operation costs three times as much, where a linear one costs twenty."""
    few, many = operations.measure(500), operations.measure(10_000)
    assert few.each.keys() == many.each.keys()
    assert len(few.each) == 7
    for name, each in few.each.items():
        assert many.each[name] < 3 * each + 5.0, name


def test_what_is_asked_and_not_met_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for found, code in ((20.0, 0), (20.5, 1)):
        measure = Measure("S7", lambda host, port, scale: {}, (Value("alive", "alive", "", 20.0),))
        monkeypatch.setattr(figures, "MEASURES", (measure,))
        monkeypatch.setattr(figures, "once", lambda measure, tree, found=found: {"alive": found})
        assert figures.main(["--only", "S7"]) == code
        assert ("**short**" in capsys.readouterr().out) is bool(code)


def test_what_before_had_nothing_of_is_a_dash_and_what_is_not_measured_is_not_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Measure("S7", lambda host, port, scale: {}, values(alive=20.0), runs=3)
    assert figures.best_of(measure, given({"server": 0.0}).__next__) == {"server": 0.0}
    monkeypatch.setattr(figures, "MEASURES", (measure,))
    monkeypatch.setattr(figures, "once", lambda measure, tree: {"server": 0.0})
    assert figures.main([]) == 1
    assert "| S7 | alive | <= 20.0 ms | - | **short** |" in capsys.readouterr().out


def test_code_of_before_gets_no_module_of_ours(tmp_path: Path) -> None:
    """Not even from an editable installation, which lends its modules to a package that lacks one."""
    (tmp_path / "threadmail").mkdir()
    for path in (ROOT / "threadmail").iterdir():
        if path.name != "_dispatch":
            (tmp_path / "threadmail" / path.name).symlink_to(path)
    (tmp_path / "threadmail" / "__init__.py").unlink()
    (tmp_path / "threadmail" / "__init__.py").write_text(
        "from .envelope import Envelope\nfrom .errors import MailError\nfrom .receipt import Receipt\n"
        "from .retry import RetryPolicy\n"
    )
    [measure] = [measure for measure in figures.MEASURES if measure.name == "queue"]
    assert figures.once(measure, tmp_path, 0.01) == {"server": 0.0}


def test_what_is_measured_is_what_was_meant(tmp_path: Path) -> None:
    [measure] = [measure for measure in figures.MEASURES if measure.name == "S7"]
    with pytest.raises(SystemExit, match="not what was to be measured"):
        figures.once(measure, tmp_path)
