"""The report of the proof: pictures with the right events, tables made of results, a page in docs/ that is not stale.

The searches that take long are not repeated here, `tests/proof` does that. Their rows are read back from the page and
must have the numbers of the registry; everything else on the page is made anew and compared, but for seconds and
versions.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stress import report as command
from stress._evidence import HEAD, Certificate, Reproduction, Shown, certificate, certify, goldens, reproduce, show
from stress._page import Block, Items, Table, Text, html, markdown, table_row
from stress._pictures import draw
from stress._proof import LIMITS, POINTS, Report, blocks
from stress._story import Event, Fault, Kind, OneSwitch, tell
from stress._svg import Canvas, Overflow, width, wrap
from tests.detsched import DPOR, Result, Run, Verdict, explore
from tests.proof.scenario import Scenario
from tests.proof.scenarios import SCENARIOS, SUITE
from tests.proof.scenarios_client import guarded
from tests.proof.test_reproduce import raw

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def shown() -> dict[str, Shown]:
    return {golden.picture.name: show(golden) for golden in goldens()}


# Pictures -----------------------------------------------------------------------------------------------------------


def texts(svg: str) -> list[tuple[float, str, str]]:
    """Height, class and text of each text, from top to bottom."""
    found = ET.fromstring(svg).iter(f"{SVG}text")
    return sorted((float(text.get("y", "")), text.get("class", ""), text.text or "") for text in found)


def test_the_picture_of_the_silent_loss_tells_it_in_order(shown: dict[str, Shown]) -> None:
    wanted = [
        *("MAIL FROM:<T0@here.test>", "250 2.1.0 sender ok", "RCPT TO:<r0.T0@there.test>", "250 2.1.5 recipient ok"),
        *("DATA", "354 go ahead", "thread switch", "MAIL FROM:<T1@here.test>", "T1's MAIL lands in T0's message"),
        *("Subject: T0", "Body of T0", ".", "250 2.0.0 stored as conn0-1", "T1 waits for ever for an answer"),
    ]
    found = [text for _, _, text in texts(shown["race-silent-loss"].svg)]
    assert [text for text in found if text in wanted][: len(wanted)] == wanted
    stored = found[found.index("The server stored") :]
    assert [text for text in stored if "T" in text and ("FROM" in text or ": T" in text)] == [
        "MAIL FROM:<T1@here.test>",
        "Subject: T0",
    ]


def test_the_fault_of_the_silent_loss_is_marked_at_its_arrow(shown: dict[str, Shown]) -> None:
    svg = shown["race-silent-loss"].svg
    mark = next(y for y, look, text in texts(svg) if text == "T1's MAIL lands in T0's message" and "white" in look)
    red = [box for box in ET.fromstring(svg).iter(f"{SVG}rect") if box.get("class") == "bad"]
    assert len(red) == 1
    top, high = float(red[0].get("y", "")), float(red[0].get("height", ""))
    assert top < mark < top + high
    arrows = [line.get("points", "") for line in ET.fromstring(svg).iter(f"{SVG}polyline")]
    middle = f",{top + high / 2:g}"
    assert any(line.startswith("765") and line.endswith(middle) for line in arrows), "T1's arrow is beside it"


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("race-silent-loss", Fault.TEXT, ["T1's MAIL lands in T0's message"]),
        ("race-leak", Fault.RECIPIENT, ["T1's recipient joins T0's message"]),
        ("race-nested-mail", Fault.NESTED, ["T1's MAIL comes inside T0's transaction: refused"]),
        ("race-hang", Fault.HANG, ["T0 waits for ever for an answer", "T1 waits for ever for an answer"]),
    ],
)
def test_each_picture_shows_its_fault(shown: dict[str, Shown], name: str, fault: Fault, words: list[str]) -> None:
    assert shown[name].good
    assert shown[name].golden.picture.fault is fault
    assert [event.words for event in shown[name].story.events if event.fault is fault] == words


def test_the_guarded_picture_has_no_fault_and_one_vain_switch(shown: dict[str, Shown]) -> None:
    events = shown["race-guarded"].story.events
    assert [event for event in events if event.fault is not None] == []
    kinds = [(event.thread, event.kind) for event in events if event.kind not in (Kind.SAYS, Kind.HEARS)]
    assert kinds == [(0, Kind.TAKES), (1, Kind.HELD_OFF), (0, Kind.GIVES), (1, Kind.TAKES), (1, Kind.GIVES)]
    before = events[[event.kind for event in events].index(Kind.HELD_OFF) - 1]
    assert before.lines == ("354 go ahead",)


def test_the_guarded_picture_tries_the_same_switch_that_loses_a_mail() -> None:
    assert tell(raw, OneSwitch("354")).schedule == "0x6 1 0x2"


def test_a_golden_replay_that_shows_something_else_is_not_good(shown: dict[str, Shown]) -> None:
    loss, leak = shown["race-silent-loss"], shown["race-leak"]
    assert not dataclasses.replace(loss, golden=leak.golden).good
    assert not dataclasses.replace(loss, golden=shown["race-guarded"].golden).good


def test_a_picture_is_drawn_the_same_every_time(shown: dict[str, Shown]) -> None:
    for golden in goldens():
        again = show(golden)
        assert again.svg == shown[golden.picture.name].svg == draw(golden.picture, again.story)


def test_no_text_leaves_its_picture(shown: dict[str, Shown]) -> None:
    for one in shown.values():
        root = ET.fromstring(one.svg)
        wide = float(root.get("width", ""))
        for text in root.iter(f"{SVG}text"):
            size, x = float(text.get("font-size", "")), float(text.get("x", ""))
            bold, mono = text.get("font-weight") is not None, "mono" in text.get("class", "")
            long = 0 if text.get("transform") else width(text.text or "", size, mono=mono, bold=bold)
            left = x - long / 2 if text.get("text-anchor") == "middle" else x
            assert left >= 8, text.text
            assert left + long <= wide - 8, text.text


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(Overflow):
        Canvas(100).text(0, 0, "much too long for this", "ink", room=50)
    with pytest.raises(Overflow):
        wrap("unbreakable", 20, 13)
    assert wrap("two words", 50, 13) == ["two", "words"]


# The table ----------------------------------------------------------------------------------------------------------


def odd(run: Run) -> None:
    """Two threads, and a verdict that is bad once."""
    for _ in range(2):
        run.thread(lambda: None)
    run.judge(lambda: Verdict(("bad",), ((), (("T0m0", "sent", ""),))))


def test_a_certificate_says_what_the_search_found() -> None:
    scenario = Scenario("odd", odd, schedules=7, formula=True, options={"timeouts": 3})
    found = certify(scenario)
    cells = [*found.cells()[:-1]]
    assert cells == [
        "odd", "2", "1", "3 each", "1",
        "**7 expected** by formula", "yes", "**1**", "none",
    ]  # fmt: skip
    assert found.switch_points == "locks, sockets"
    assert not found.good


def result(**changes: Any) -> Result:
    return dataclasses.replace(explore(lambda run: None, DPOR()), **changes)


@pytest.mark.parametrize(
    ("changes", "column", "cell"),
    [
        ({"runs": 1234567}, "Schedules", "1,234,567"),
        ({"complete": False}, "Complete", "**no**"),
        ({"failing": 12}, "Violations", "**12**"),
        ({"data_races": frozenset(["SMTP._x"])}, "Data races", "**`SMTP._x`**"),
        ({"seconds": 6.28}, "Seconds", "6.3"),
    ],
)
def test_each_cell_comes_from_the_result(changes: dict[str, Any], column: str, cell: str) -> None:
    scenario = Scenario("one", odd)
    found = certificate(scenario, result(outcomes=frozenset(), **changes), threads=2)
    assert found.cells()[HEAD.index(column)] == cell
    assert found.good == (column in ("Schedules", "Seconds"))


def test_the_races_of_abort_are_by_design_and_a_good_row_can_be_read_back() -> None:
    races = frozenset(["Client._aborted", "Wire.aborted"])
    found = certificate(SUITE[3], result(runs=90, outcomes=frozenset(), data_races=races, seconds=1.5), threads=3)
    assert found.good
    assert found.races == ("Client._aborted", "Wire.aborted")
    assert found.cells()[HEAD.index("Data races")] == "by design: `Client._aborted`, `Wire.aborted`"
    assert Certificate.read(found.switch_points, found.cells()) == found
    assert found.switch_points == "locks, sockets of SMTP, Client, Wire"


# The page -----------------------------------------------------------------------------------------------------------

SECONDS = re.compile(r"[\d.]+ \|$", re.M)
VERSIONS = re.compile(r"^Made by .*$", re.M)


def masked(page: str) -> str:
    return VERSIONS.sub("VERSIONS", SECONDS.sub("SECONDS |", page))


def written_rows(page: str) -> list[Certificate]:
    """The certificates on the page in docs/."""
    found = []
    for section in page.split(f"### {POINTS}")[1:]:
        points, _, rest = section.partition("\n\n")
        head, _, *rows = rest.partition("\n\n")[0].splitlines()
        assert head == table_row(HEAD)
        found += [Certificate.read(points, row.strip("| ").split(" | ")) for row in rows]
    return found


def renewed(written: Certificate, scenario: Scenario) -> Certificate:
    """The row made anew where that is quick; else with the number that the registry knows."""
    if scenario.schedules is None:
        return written
    if scenario.schedules <= 16:
        return certify(scenario)
    return dataclasses.replace(written, schedules=scenario.schedules, expected=scenario.schedules)


@pytest.fixture(scope="module")
def race() -> Reproduction:
    return reproduce()


@pytest.fixture(scope="module")
def fresh(shown: dict[str, Shown], race: Reproduction) -> Report:
    rows = written_rows((command.DOCS / "proof.md").read_text(encoding="utf-8"))
    named = {scenario.name: scenario for scenario in SCENARIOS}
    assert {row.scenario for row in rows} <= set(named), "a scenario on the page is gone: python -m stress.report"
    certificates = [renewed(row, named[row.scenario]) for row in rows]
    left_out = [scenario for name, scenario in named.items() if name not in {row.scenario for row in rows}]
    return Report(certificates, race, list(shown.values()), left_out)


def test_the_page_in_docs_is_what_the_report_writes(fresh: Report) -> None:
    for name, content in command.documents(fresh).items():
        written = (command.DOCS / name).read_text(encoding="utf-8")
        assert masked(written) == masked(content), f"docs/{name} is stale: run python -m stress.report"


def test_the_page_in_docs_has_every_scenario_of_the_suite_and_keeps_its_claim(fresh: Report) -> None:
    assert {scenario.name for scenario in SUITE} <= {row.scenario for row in fresh.certificates}
    assert fresh.good
    assert "**Proved within these bounds, argued beyond:**" in markdown(blocks(fresh))


def test_a_page_whose_evidence_is_bad_claims_nothing(fresh: Report) -> None:
    broken = dataclasses.replace(fresh.certificates[0], violations=1)
    page = markdown(blocks(dataclasses.replace(fresh, certificates=[broken, *fresh.certificates[1:]])))
    assert f"**Not proved.** Not as it has to be: {broken.scenario}." in page
    assert "Proved within" not in page


def test_an_open_mutant_spoils_the_claim(fresh: Report) -> None:
    score = dataclasses.replace(fresh.score, killed=fresh.score.killed - 1)
    page = markdown(blocks(dataclasses.replace(fresh, score=score)))
    assert "**Not proved.** Not as it has to be: the mutation score." in page
    assert f"**{score.killed} of {score.mutants} mutants are killed**, {score.harmless} cannot matter, 1 are" in page


def test_the_limits_stand_beside_the_claim(fresh: Report) -> None:
    page = markdown(blocks(fresh))
    assert all(limit in page for limit in LIMITS)
    assert len(LIMITS) == 7


def test_the_replay_on_the_page_runs_as_it_stands(fresh: Report, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", markdown(blocks(fresh)), re.M | re.S)
    exec(compile(code, "proof.md", "exec"), {})
    assert "silent loss: reported sent, not delivered intact" in capsys.readouterr().out


class Balanced(HTMLParser):
    """Fails on an end tag that closes something else; `open` is what nobody closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert tag not in ("script", "link", "img"), "the page needs nothing beside itself"


def test_the_html_is_well_formed_and_needs_nothing_else(fresh: Report) -> None:
    page = command.page(fresh)
    ET.fromstring(page.partition("\n")[2])
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert parser.seen.count("svg") == len(fresh.shown)
    assert not {"script", "link", "img"} & set(parser.seen)
    assert len(re.findall(r"<tr>", page)) > len(fresh.certificates)


def test_both_forms_of_a_page_say_the_same() -> None:
    page: list[Block] = [
        Text("A **b** `**c**` *d* [e](f) <g>"),
        Items(["x & y"]),
        Table(("H",), [["1 | 2"]], right=("H",)),
    ]
    assert markdown(page) == "A **b** `**c**` *d* [e](f) <g>\n\n* x & y\n\n| H |\n| ---: |\n| 1 \\| 2 |\n"
    body = html("t", page).partition("<body>")[2]
    assert '<p>A <strong>b</strong> <code>**c**</code> <em>d</em> <a href="f">e</a> &lt;g&gt;</p>' in body
    assert "<li>x &amp; y</li>" in body
    assert '<td class="right">1 | 2</td>' in body


def test_the_command_writes_the_page_and_leaves_docs_alone_with_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, race: Reproduction, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "reproduce", lambda: race)
    assert command.main(["--only", "SMTP shared, 2x1", "--out", str(tmp_path / "out")], docs=tmp_path / "docs") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "SMTP shared, 2x1" in (tmp_path / "out" / "proof.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith("as it has to be\n")


def test_a_command_that_finds_nothing_to_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "no such scenario"])
    assert "no scenario has" in capsys.readouterr().err


def test_a_violation_makes_the_command_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, race: Reproduction, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "reproduce", lambda: race)
    monkeypatch.setattr(command, "SUITE", [Scenario("odd", odd)])
    assert command.main(["--out", str(tmp_path / "out")], docs=tmp_path / "docs") == 1
    assert "**Not proved.**" in (tmp_path / "docs" / "proof.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith("NOT as it has to be\n")


def test_an_event_reads_as_a_line() -> None:
    assert str(Event(0, Kind.SAYS, ("a", "b"), words="c")) == "T0 > a / b  [c]"
    assert len(tell(guarded(2, 1), OneSwitch("354")).stored) == 2
