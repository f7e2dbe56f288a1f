"""Wrong decisions are noticed: no recorded mutant is open, and a sample of them dies again, each by its killer.

To hunt for all of them: `python -m stress.mutants`. That takes long, so the gate holds what it came to.
"""

from __future__ import annotations

import subprocess
import sys

from .deciding import ARGUED, ROOT, TARGETS, argument, mutants_of_module, read_record, still_open

RECORD = read_record()
MODULES = sorted({name.partition(":")[0] for name in RECORD})
SAMPLE = 12
CHEAP = 2.0  # seconds that a hunt took on the machine that recorded it
#: The shells around what decides: locks and I/O. The list may only become shorter.
UNSEARCHED = {
    "threadmail._dispatch.closing",
    "threadmail._dispatch.dispatcher",
    "threadmail._dispatch.admission",
    "threadmail._dispatch.job",
    "threadmail._connection.kept_connection",
    "threadmail._dispatch.sender_stats",
    "threadmail._dispatch.starter",
    "threadmail._dispatch.stream",
    "threadmail._dispatch.teller",
    "threadmail._dispatch.withdrawal",
    "threadmail._dispatch.worker",
    "threadmail.pool",
}
KNOWN = 0.7  # of the mutants that a module has now must be on record; new code is hunted by the long run


def test_no_recorded_mutant_is_open_without_an_argument() -> None:
    assert list(still_open(RECORD)) == []


def test_every_argument_is_about_a_mutant_that_nobody_notices() -> None:
    assert not [name for name, fate in RECORD.items() if fate.killer is not None and argument(name) is not None]
    assert all(ARGUED.values())


def test_the_record_is_of_the_code_there_is() -> None:
    for module in MODULES:
        names = {mutant.name for mutant in mutants_of_module(module)}
        known = {name for name in names if name in RECORD or argument(name) is not None}
        assert len(known) >= KNOWN * len(names), f"{module} has changed: python -m stress.mutants --module {module}"


def test_nothing_is_on_record_that_is_no_more() -> None:
    names = {mutant.name for module in MODULES for mutant in mutants_of_module(module)}
    assert sorted(RECORD.keys() - names) == []


def test_which_modules_nobody_has_searched_is_said() -> None:
    assert TARGETS.keys() - set(MODULES) == UNSEARCHED


def test_a_sample_dies_again_each_by_its_recorded_killer() -> None:
    names = {mutant.name for module in MODULES for mutant in mutants_of_module(module)}
    cheap = sorted(n for n, fate in RECORD.items() if n in names and fate.how == "failed" and fate.seconds <= CHEAP)
    sample = cheap[:: max(1, len(cheap) // SAMPLE)][:SAMPLE]
    assert len(sample) == SAMPLE
    command = [sys.executable, "-m", "stress.mutants", "--replay", *sample]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed: ") == SAMPLE, done.stdout
