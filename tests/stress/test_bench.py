"""The benchmark measures what it says: its sink, its wire, its arithmetic, its verdicts and its page."""

from __future__ import annotations

import dataclasses
import random
import re
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stress.bench import against, figures, growth, plan, plots, table, targets
from stress.bench.__main__ import busy_share, fetch, main
from stress.bench.figures import Figure, Point
from stress.bench.job import Job
from stress.bench.line import DelayLine
from stress.bench.linecheck import Checked, check
from stress.bench.peers import PEERS, command
from stress.bench.plan import PROFILES, Cell, Filter
from stress.bench.rounds import Bench, Results, content
from stress.bench.running import Run, RunFailed, limit, run
from stress.bench.servers import serve
from stress.bench.tools import Tools, Unavailable
from stress.sink import OFFERS, Session, Sink

# The sink -----------------------------------------------------------------------------------------------------------

DIALOGUE = (
    b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nhello\r\n..\r\n.\r\n"
    b"RSET\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 5\r\n\r\n.\r\nBDAT 3 LAST\r\nRSTNOOP\r\n"
    b"DATA\r\n.\r\nBDAT 0 LAST\r\nQUIT\r\n"
)
REPLIES = re.compile(rb"(?:250-[^\r]*\r\n)*(\d\d\d) [^\r]*\r\n")
CODES = b"250 250 250 354 250 250 250 250 250 250 250 354 250 250 221".split()


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(DIALOGUE)])
def test_the_sink_takes_messages_in_pieces_of_any_size(size: int) -> None:
    session = Session()
    replies = b"".join(session.feed(DIALOGUE[i : i + size]) for i in range(0, len(DIALOGUE), size))
    assert REPLIES.findall(replies) == CODES
    assert session.taken == 4
    assert session.ended


def test_the_sink_says_what_it_can() -> None:
    said = Session(offers=("PIPELINING",)).feed(b"EHLO me\r\n")
    assert b"250-PIPELINING\r\n" in said
    assert b"CHUNKING" not in said
    assert "CHUNKING" in OFFERS


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


# The wire -----------------------------------------------------------------------------------------------------------


def test_the_line_delays_and_counts_and_loses_nothing(sink: Sink) -> None:
    """Time is bounded from below only: what a busy machine adds is not the line's."""
    before = sink.messages
    with DelayLine((sink.host, sink.port), 0.004) as line:
        with smtplib.SMTP(line.host, line.port, local_hostname="me", timeout=30) as smtp:
            smtp.ehlo()
            opening = line.trips
            assert opening == 3  # two for the connection and its greeting, one for EHLO
            for _ in range(5):
                smtp.sendmail("a@b.example", ["c@d.example"], content(4096))
            assert line.trips - opening == 5 * 4  # MAIL, RCPT, DATA, content
            smtp.sendmail("a@b.example", ["c@d.example"], content(1 << 20))
            assert line.trips - opening == 6 * 4  # however long
    assert sink.messages - before == 6


def converse(line: DelayLine, groups: list[tuple[bytes, int]]) -> int:
    """Send each group when all replies to the one before are there; returns the round trips, less those of opening."""
    with socket.create_connection((line.host, line.port), timeout=30) as sock, sock.makefile("rb") as replies:
        assert replies.readline().startswith(b"220")
        before = line.trips
        for group, answers in groups:
            sock.sendall(group)
            for _ in range(answers):
                assert replies.readline()
        return line.trips - before


def test_the_line_counts_groups_and_windows(sink: Sink) -> None:
    commands = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
    text = b"x: y\r\n\r\n" + b"z" * 100 + b"\r\n"
    chunk = b"RSET\r\n" + commands + b"BDAT %d LAST\r\n" % len(text) + text
    riding = [(commands + b"DATA\r\n", 3), *[(text + b".\r\n" + commands + b"DATA\r\n", 4)] * 9, (text + b".\r\n", 1)]
    with DelayLine((sink.host, sink.port), 0.002) as line:
        assert converse(line, riding) == 11  # ten messages
        assert converse(line, [(chunk * 16, 64)] * 3) == 3  # 48 messages


def test_the_line_is_checked() -> None:
    found = check(0.01, pings=5, size=1 << 20)
    assert found.rtt >= 0.01
    assert found.worst >= found.rtt
    assert found.rate > 0
    assert "measured" in str(found)


# Arithmetic ---------------------------------------------------------------------------------------------------------


def one(messages: int, seconds: float, **more: float) -> Run:
    return Run(messages, seconds, **{"cpu": 0.01, "peak": 30.0, "base": 20.0, **more})  # type: ignore[arg-type]


def test_a_slope_is_free_of_what_is_fixed_and_of_work() -> None:
    points = [
        Point(rtt, n, 0.3 + 4 * rtt + n * (0.002 + 2.1 * rtt)) for rtt in (0.001, 0.01, 0.05) for n in (5, 25, 60)
    ]
    assert figures.slope(points) == pytest.approx(2.1)


def test_a_slope_needs_two_distances_and_two_counts() -> None:
    assert figures.slope([Point(0.01, 5, 1.0), Point(0.01, 25, 2.0)]) is None
    assert figures.slope([Point(0.01, 5, 1.0), Point(0.05, 5, 2.0)]) is None
    assert figures.slope([]) is None


def test_ratios_are_taken_pair_by_pair() -> None:
    ours, theirs = [one(100, 1.0), one(100, 2.0), one(100, 8.0)], [one(100, 2.0), one(100, 4.0), one(100, 4.0)]
    assert figures.paired(ours, theirs, figures.rate) == Figure(2.0, 0.5, 2.0, 3)
    assert figures.paired(ours, theirs[:1], figures.rate) == Figure(2.0, 2.0, 2.0, 1)
    assert figures.paired([], theirs, figures.rate) is None


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.0671, "0.067")])
def test_a_figure_has_the_digits_that_mean_something(value: float, text: str) -> None:
    assert figures.in_words(value) == text


@pytest.mark.parametrize("size", [300, 400, 401, 477, 478, 479, 2048, 1 << 20])
def test_content_is_of_its_size_and_fit_for_the_wire(size: int) -> None:
    made = content(size)
    assert len(made) == size
    assert made.endswith(b"\r\n")
    assert made.count(b"\r\n") == made.count(b"\r") == made.count(b"\n")


# Verdicts and the page ----------------------------------------------------------------------------------------------


def made_up() -> Results:
    """Results of a library that keeps every promise by a little, on lines that are exact."""
    results = Results(missing={"django": "offline"}, failures=["x | y: lost"], about={"seed": 7, "machine": "a|b"})
    profile = PROFILES["default"]
    trips = {"threadmail": 1.0, "threadmail-window": 0.07, "threadmail-client": 2.0, "nodemailer": 2.0}
    costs = {"nodemailer": 400e-6, "smtplib": 60e-6, "smtp-source": 30e-6, "threadmail": 25e-6}
    for cell in [*plan.cells(profile), *growth.cells(profile)]:
        results.lines[cell.rtt] = Checked(cell.rtt / 1e3, cell.rtt / 1e3, 0.002, 0.002, 1e9)
        for peer in cell.peers:
            needs, cost = trips.get(peer, 4.0), costs.get(peer, 20e-6) * max(1.0, cell.size / 2048)
            n = cell.messages or 200
            seconds = n * max(needs * cell.rtt / 1e3, cost) / (cell.connections if cell.rtt else 1)
            peak = 20.0 + (50.0 if cell.form == "ready" else 15.0) * (cell.part == "memory")
            run_ = one(n, seconds, cpu=n * cost, peak=peak, trips=round(needs * n) + 5)
            results.runs[cell, peer] = [run_] * cell.rounds
    return results


def test_targets_are_met_only_by_what_was_measured() -> None:
    results = made_up()
    assert {
        target.number: target.judge(results).value for target in targets.TARGETS if target.number != 3
    } == dict.fromkeys((1, 2, 4, 5, 6, 7, 8), "met")
    assert targets.TARGETS[2].judge(results) is targets.Verdict.MET
    for key in [key for key in results.runs if key[1] == "nodemailer" and key[0].part == "speed"]:
        del results.runs[key]
    assert targets.TARGETS[1].judge(results) is targets.Verdict.UNMEASURED
    assert {target.judge(Results()).value for target in targets.TARGETS} == {"not measured"}


def test_a_target_is_short_by_its_worst_figure() -> None:
    results = made_up()
    [cell] = [c for c in results.cells("memory") if c.form == "file"]
    results.runs[cell, "threadmail"] = [one(8, 1.0, peak=41.0)]
    assert targets.TARGETS[6].judge(results) is targets.Verdict.SHORT
    assert "**short**" in table.targets(results)
    assert "* Row 7, streamed from a file, in all: 41.0 MiB where <= 40 MiB is asked." in table.shortfalls(results)


def test_what_falls_short_says_what_was_full() -> None:
    results = made_up()
    cell = results.find("objects", connections=1)
    assert cell is not None
    results.runs[cell, "threadmail"] = [one(100, 1.0, cpu=0.95, busy=0.05)] * 5
    said = table.shortfalls(results)
    assert said.count("* Row") == 1
    assert "the core that both share is full (client 95%, server 5% of the time)" in said


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.9, 0.2, 0.1), "the client is busy 90%"),
        ((0.4, 0.9, 0.1), "the server is busy 90%"),
        ((0.4, 0.5, 0.9), "the delay line is busy 90%"),
        ((0.4, 0.3, 0.3), "they share the machine"),
        ((0.1, 0.2, 0.0), "nothing is full (client 10%, server 20% of a core)"),
    ],
)
def test_the_limit_is_what_was_busiest(shares: tuple[float, float, float], said: str) -> None:
    client, server, wire = shares
    assert said in limit([one(10, 1.0, cpu=client, busy=server, wire=wire)])


def test_a_bend_is_where_round_trips_begin_to_grow() -> None:
    results = made_up()
    for cell in results.cells("growth-recipients"):
        trips = 3 + cell.messages * (1 if cell.recipients < 100 else 2 if cell.recipients == 100 else 12)
        results.runs[cell, "threadmail"] = [one(cell.messages, 0.1, trips=trips)] * 2
    [lines] = [lines for part, _, lines in growth.sentences(results) if part == "growth-recipients"]
    assert "the bend is at 100" in lines[0]
    assert "(1.00 for 1, 1.00 for 10, 2.00 for 100, 12.0 for 1,000)" in lines[0]


def test_the_page_is_whole() -> None:
    results = made_up()
    drawn = plots.pictures(results)
    written = table.measured(results, drawn)
    assert set(re.findall(r"\]\((bench-[^)]*)\)", written)) == set(drawn)
    assert {"bench-speed.svg", "bench-trips.svg", "bench-memory.svg", "bench-growth-connections.svg"} <= set(drawn)
    blocks = [block.splitlines() for block in written.split("\n\n") if block.startswith("|")]
    assert len(blocks) > 12
    for lines in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(widths) == 1, lines
        assert re.fullmatch(r"\|(---\|)+", lines[1])
    assert "Not to be had: django: offline." in written
    assert "Failed, and left out: x | y: lost." in written
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")


ROOT = Path(__file__).resolve().parents[2]
PAGES = {"docs/performance.md": table.measured, "README.md": table.brief}


@pytest.mark.parametrize("name", PAGES)
def test_what_is_written_by_hand_stays(name: str) -> None:
    page = (ROOT / name).read_text()
    once = table.into(page, PAGES[name](made_up()))
    again = table.into(once, "| other |")
    assert once != again
    for text in (once, again):
        assert [text.partition(table.BEGIN)[0], text.partition(table.END)[2]] == [
            page.partition(table.BEGIN)[0], page.partition(table.END)[2]
        ]  # fmt: skip
    assert PAGES[name](made_up()) in once
    assert PAGES[name](made_up()) not in again


@pytest.mark.parametrize("page", ["", table.BEGIN, f"{table.END} {table.BEGIN}", f"{table.BEGIN}{table.END}" * 2])
def test_a_page_without_a_place_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="marks"):
        table.into(page, "x")


def test_the_page_has_every_row_of_the_targets() -> None:
    written = (ROOT / "docs" / "performance.md").read_text()
    rows = re.findall(r"^\| (\d+) \| \*\*(.*?)\*\* \| (.*?) \|", written, re.M)
    assert rows == [(str(target.number), target.what, target.wording) for target in targets.TARGETS]
    for picture in re.findall(r"\]\(([^)]*\.svg)\)", written):
        assert (ROOT / "docs" / picture).exists()


def test_the_table_of_the_readme_has_a_row_for_each_who_was_measured() -> None:
    lines = table.brief(made_up()).splitlines()
    assert lines[2].startswith("| threadmail | 1.00 | ")
    assert len(lines) == 8
    assert table.brief(Results()).count("\n") == 1


def test_a_figure_beside_the_default_decides_nothing() -> None:
    results = made_up()
    for key in [key for key in results.runs if key[1] in ("threadmail-kept", "threadmail-window-kept")]:
        results.runs[key] = [one(10, 1000.0, cpu=900.0)] * 5
    assert {target.judge(results).value for target in targets.TARGETS} == {"met"}
    assert "max_messages=None" in table.targets(results)
    assert table.shortfalls(results) == ""


def test_results_can_be_kept() -> None:
    results = made_up()
    again = Results.from_json(results.to_json())
    assert again == results
    assert table.measured(again) == table.measured(results)


def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    """Rounds that are whole stay, one that is not is done again, and the rest follows."""
    cell = Cell("linear", ("threadmail", "smtplib"), "sink", 0.0, 1, messages=2, rounds=3)
    other = dataclasses.replace(cell, part="core")
    earlier = Results(missing={"nodemailer": "offline"}, failures=["interrupted"])
    earlier.runs = {
        (cell, "threadmail"): [one(2, 1.0), one(2, 2.0)], (cell, "smtplib"): [one(2, 3.0)], (other, "smtplib"): [],
    }  # fmt: skip
    earlier.keep(lambda cell: cell.part == "linear")
    assert (earlier.missing, earlier.failures) == ({}, [])
    assert earlier.runs == {(cell, "threadmail"): [one(2, 1.0)], (cell, "smtplib"): [one(2, 3.0)]}
    seen: list[object] = []
    with Bench(
        Tools(tmp_path, fetch=False), random.Random(1), seen.append, earlier=earlier,
        save=lambda results: seen.append(results.rounds(cell)),
    ) as bench:  # fmt: skip
        bench.work([cell])
    assert [each for each in seen if isinstance(each, int)] == [1, 2, 3]
    assert [len(runs) for runs in bench.results.runs.values()] == [3, 3]
    assert bench.results.runs[cell, "threadmail"][0] == one(2, 1.0)


@pytest.mark.parametrize(("failures", "runs"), [(1, 1), (2, 0)])
def test_who_fails_is_tried_once_more(
    failures: int, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [RunFailed("it hung")] * failures

    def fail(*args: object) -> Run:
        if left:
            raise left.pop()
        return one(2, 1.0)

    monkeypatch.setattr("stress.bench.rounds.run", fail)
    cell = Cell("linear", ("threadmail",), "sink", messages=2, rounds=1)
    with Bench(Tools(tmp_path, fetch=False), random.Random(1), lambda line: None) as bench:
        bench.work([cell])
    assert len(bench.results.failures) == failures
    assert len(bench.results.of(cell, "threadmail")) == runs


# Plans --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_every_plan_has_what_the_targets_ask_for(name: str) -> None:
    found = [*plan.cells(PROFILES[name]), *growth.cells(PROFILES[name])]
    assert len(set(found)) == len(found)
    assert all(peer in PEERS for cell in found for peer in cell.peers)
    assert 10**6 in {cell.messages for cell in found} or name == "quick"
    assert {cell.part for cell in found} >= {"trips", "speed", "core", "window", "objects", "large", "memory", "linear"}


def test_a_filter_keeps_what_was_asked_for() -> None:
    everything = plan.cells(PROFILES["default"])
    kept = Filter(peers=("nodemailer",), rtts=(10.0,), connections=(8,), servers=("smtp-sink",)).of(everything)
    assert [(cell.part, cell.peers) for cell in kept] == [("speed", ("nodemailer",))]
    assert Filter().of(everything) == everything


def test_runs_are_long_enough_for_every_connection() -> None:
    cell = Cell("speed", ("threadmail",), connections=32, size=25 << 20)
    assert plan.fitting(cell, "threadmail", 1.0) == 32
    assert plan.fitting(dataclasses.replace(cell, size=2048), "threadmail", 1000.0) == 992
    assert plan.fitting(dataclasses.replace(cell, size=2048), "threadmail", 1.0) == 128
    assert plan.fitting(dataclasses.replace(cell, size=2048), "smtplib-locked", 1.0) == 32


# Runs ---------------------------------------------------------------------------------------------------------------


def test_the_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [Cell("linear", ("threadmail", "smtplib"), "sink", 0.0, 2, messages=6, rounds=1)]
    monkeypatch.setattr("stress.bench.__main__.cells", lambda profile: tiny)
    monkeypatch.setattr("stress.bench.__main__.busy_share", lambda: 0.5)
    monkeypatch.chdir(tmp_path)
    assert main(["--quick", "--seed", "1", "--offline", "--out", "page"]) == 0
    printed = capsys.readouterr().out
    assert "1/1 linear: sink, 0 ms, k=2, 2 KiB: smtplib" in printed
    page = (tmp_path / "page" / "performance.md").read_text()
    assert "threadmail" in page
    assert "50% busy before" in page
    assert "these figures say little" in page
    [kept] = (tmp_path / "build" / "bench").glob("*.json")
    runs = Results.from_json(kept.read_text()).runs
    assert {peer: [run.messages for run in runs] for (_, peer), runs in runs.items()} == {
        "threadmail": [6],
        "smtplib": [6],
    }
    assert all(run.seconds > 0 and run.peak >= run.base > 0 for found in runs.values() for run in found)


class Counting:
    """The sink, as a server to send to."""

    def __init__(self, sink: Sink) -> None:
        self.host, self.port, self._sink = sink.host, sink.port, sink

    def taken(self) -> int:
        return self._sink.messages

    def processes(self) -> list[int]:
        return []


class Losing(Counting):
    """A server that loses a message."""

    _lost = 0

    def taken(self) -> int:
        lost, self._lost = self._lost, -1  # one too many from the second look on
        return super().taken() - lost


def test_a_run_in_which_a_message_came_twice_is_no_run(sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "x.eml").write_bytes(content(500))
    job = Job("smtplib", sink.host, sink.port, 1, 2, str(tmp_path / "x.eml"))
    with pytest.raises(RunFailed, match="3 messages arrived of 2"):
        run(PEERS["smtplib"], job, Losing(sink), Tools(tmp_path, fetch=False))


def test_who_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = Tools(tmp_path, fetch=False)
    told: list[str] = []
    with Bench(tools, random.Random(1), told.append) as bench:
        bench.work([Cell("linear", ("nodemailer",), "sink", rounds=2)])
    assert bench.results.missing == {"nodemailer": "there is no node on this machine"}
    assert told == ["without nodemailer: there is no node on this machine"]


def test_a_fetch_says_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch(Tools(tmp_path, fetch=False)) == 1
    printed = capsys.readouterr().out
    assert "smtplib, one a thread: comes with Python" in printed
    assert "nodemailer's pool: not to be had: there is no node on this machine" in printed


def test_how_busy_the_machine_is() -> None:
    assert 0.0 <= busy_share(0.05) <= 1.0


def test_the_reason_names_no_registry() -> None:
    assert str(Unavailable("x: no route to https://registry.example/simple (host='registry.example')")) == (
        "x: no route to ... (...)"
    )


def test_what_a_peer_cannot_take_is_not_measured_with_something_else(tmp_path: Path) -> None:
    job = Job("smtplib", "127.0.0.1", 1, 1, 1, "x", form="file")
    with pytest.raises(Unavailable, match="'file'"):
        command(PEERS["smtplib"], job, Tools(tmp_path, fetch=False))


def test_an_unknown_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"), serve("nowhere", Tools(tmp_path, fetch=False)):
        pass


# Before and after ---------------------------------------------------------------------------------------------------


def laps(*seconds: float, messages: int = 1000) -> Run:
    """A run whose laps took so long, half of it the user's."""
    each = tuple((lap, lap / 2, lap / 4) for lap in seconds)
    return one(messages * len(seconds), sum(seconds), laps=each)  # type: ignore[arg-type]


def row_of(reading: against.Reading = against.RATE) -> against.Row:
    return against.Row(4, "x", "threadmail", Cell("core", ("threadmail",)), reading, 3)


def taking(given: dict[str, list[Run]], order: list[str]) -> against.Take:
    def take(row: against.Row, tree: str) -> Run:
        order.append(tree)
        return given[tree].pop(0)

    return take


def test_the_low_end_counts() -> None:
    """What other work adds to some laps, however much, changes nothing; and neither does one lap that is too good."""
    assert against.low([5.0]) == 5.0
    assert against.low([float(n) for n in range(1, 12)]) == 2.0
    quiet = [1.0] * 5 + [2.0] * 5
    assert against.low(quiet) == against.low([*quiet[:5], *[99.0] * 5]) == 1.0
    found = against.Found(row_of(), {"before": [laps(0.1, 0.1, 0.5)], "after": [laps(0.2, 0.9, 0.2)]})
    assert found.cost("before") == pytest.approx(100.0)
    assert found.quotient == pytest.approx(0.5)
    assert against.CPU.of(laps(0.1, 0.2)) == pytest.approx([75.0, 150.0])


def test_both_take_turns_and_a_good_row_needs_no_more() -> None:
    order: list[str] = []
    found = against.compare(row_of(), taking({"before": [laps(1.0)] * 3, "after": [laps(0.5)] * 3}, order), 3)
    assert order == ["before", "after", "after", "before", "before", "after"]
    assert found.quotient == pytest.approx(2.0)
    assert (found.is_short, found.verdict, found.scatter) == (False, "kept", 0.0)


def test_a_row_is_short_only_beyond_what_before_differs_from_itself() -> None:
    """Three more turns, with before twice in each; its own scatter is the bound, and is told."""
    for again, short in (([laps(1.0)] * 3, True), ([laps(1.0), laps(1.25), laps(1.0)], False)):
        order: list[str] = []
        before = [laps(1.0)] * 2
        for two in again:
            before += [laps(1.0), two] if len(before) % 4 == 2 else [two, laps(1.0)]
        found = against.compare(row_of(), taking({"before": before, "after": [laps(1.1)] * 5}, order), 2)
        assert order[4:] == ["before", "after", "before"] * 3
        assert found.quotient == pytest.approx(1 / 1.1)
        assert found.is_short is short
        assert found.scatter == pytest.approx(0.0 if short else 0.2)
        assert ("**short**" in found.verdict) is short
        assert f"before against before {found.scatter:.1%}" in against.in_table([found])


def test_a_row_that_recovers_in_further_turns_is_kept() -> None:
    found = against.compare(
        row_of(), taking({"before": [laps(1.0)] * 9, "after": [laps(1.5), *[laps(1.0)] * 4]}, []), 1
    )
    assert not found.is_short
    assert found.verdict == "kept; before against before 0.0%"


def test_a_row_that_fails_is_short() -> None:
    def fail(row: against.Row, tree: str) -> Run:
        raise RunFailed("it hung")

    found = against.compare(row_of(), fail, 2)
    assert found.is_short
    assert "**not measured: it hung**" in against.in_table([found])


def test_the_rows_are_those_of_the_targets() -> None:
    rows = against.rows()
    assert {row.number for row in rows} >= {target.number for target in targets.TARGETS}
    assert all(PEERS[row.peer].ours and row.peer in row.cell.peers for row in rows)
    whole = [row for row in rows if row.number == 4 and row.reading is against.CPU]
    assert {row.cell.connections for row in whole} == {1, 8}
    assert any(row.peer == "threadmail-client-all" for row in rows)
    assert all(row.cell.rtt for row in rows if row.reading is against.TRIPS)


in_a_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout of git")


@in_a_checkout
def test_a_commit_is_measured_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From end to end: HEAD, checked out beside the working tree, and gone afterwards."""
    cell = Cell("linear", ("threadmail",), "sink", 0.0, 2, messages=6, pinned=True)
    monkeypatch.setattr(against, "rows", lambda: [against.Row(8, "tiny", "threadmail", cell, against.CPU)])
    monkeypatch.setattr(against, "SLOWEST", 0.0)  # six messages say nothing of speed
    monkeypatch.chdir(tmp_path)
    assert main(["--against", "HEAD", "--quick", "--offline", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| 8 \| tiny \| CPU \| [\d,.]+ us \| [\d,.]+ us \|.* kept \|$", printed, re.M)
    assert "threadmail-against-" not in worktrees()
    assert main(["--against", "HEAD", "--part", "nothing", "--offline"]) == 1  # an empty run is none
    with pytest.raises(SystemExit, match="worktree add"):
        main(["--against", "no-such-commit", "--offline"])


def worktrees() -> str:
    command = ["git", "-C", str(ROOT), "worktree", "list"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_what_is_measured_is_what_was_meant(sink: Sink, tmp_path: Path) -> None:
    """A folder that holds no threadmail would have another one measured in its place."""
    (tmp_path / "x.eml").write_bytes(content(500))
    job = Job("threadmail", sink.host, sink.port, 1, 2, str(tmp_path / "x.eml"), laps=2)
    tools = Tools(tmp_path, fetch=False)
    with pytest.raises(RunFailed, match="not what was to be measured"):
        run(PEERS["threadmail"], job, Counting(sink), tools, tree=tmp_path)
    (tmp_path / "threadmail").symlink_to(ROOT / "threadmail", target_is_directory=True)
    found = run(PEERS["threadmail"], job, Counting(sink), tools, tree=tmp_path)
    assert (found.messages, len(found.laps)) == (4, 2)
