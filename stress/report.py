"""The proof as a page: runs it and writes down what came of it.

    python -m stress.report [--long] [--only NAME] [--out DIR]

Searches the scenarios of `tests/proof/scenarios.py`, reproduces the race on `smtplib.SMTP` and replays the shortest
ways to break it. Writes `docs/proof.md` with its pictures, and `DIR/proof.html`, one self-contained page. Exits with 1
if anything is not as it has to be: a violation, an incomplete search, a number of schedules that was not expected, a
data race that is not there by design.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.proof.scenario import Scenario
from tests.proof.scenarios import LONG, SCENARIOS, SUITE

from ._evidence import Certificate, certify, goldens, reproduce, show
from ._page import html, markdown
from ._proof import TITLE, Report, blocks

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run(scenarios: Sequence[Scenario]) -> Report:
    """Everything, with a line for each search on the way."""
    found: list[Certificate] = []
    for scenario in scenarios:
        found.append(certify(scenario))
        print("  ".join(found[-1].cells()), flush=True)
    chosen = {scenario.name for scenario in scenarios}
    left_out = [scenario for scenario in SCENARIOS if scenario.name not in chosen]
    return Report(found, reproduce(), [show(golden) for golden in goldens()], left_out)


def documents(report: Report) -> dict[str, str]:
    """What belongs into docs/: names of files, and what is in them."""
    pictures = {f"{one.golden.picture.name}.svg": one.svg for one in report.shown}
    return {"proof.md": markdown(blocks(report)), **pictures}


def page(report: Report) -> str:
    """The page as HTML."""
    return html(TITLE, blocks(report))


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m stress.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/proof"), metavar="DIR", help="for proof.html")
    parser.add_argument("--long", action="store_true", help="also the searches that take minutes")
    parser.add_argument("--only", metavar="NAME", help="scenarios with NAME in their name; docs/ is left alone")
    options = parser.parse_args(arguments)

    scenarios = SUITE + LONG if options.long else SUITE
    if options.only:
        scenarios = [scenario for scenario in scenarios if options.only in scenario.name]
        if not scenarios:
            parser.error(f"no scenario has {options.only!r} in its name")
    report = run(scenarios)
    written = {options.out / "proof.html": page(report)}
    if not options.only:
        written |= {docs / name: content for name, content in documents(report).items()}
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(f"wrote {path}")
    print("as it has to be" if report.good else "NOT as it has to be")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
