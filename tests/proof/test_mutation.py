"""The proof notices the loss of any piece of the package's locking.

What kills each mutant is recorded in killers.json; here each recorded schedule is run again on its mutant, and must
still fail. A mutant without a record fails the suite: new locking needs a scenario that would notice its loss. To find
one: `python -m tests.proof.mutation --new --write`.

Nothing is skipped on any version of Python. The schedules were recorded on 3.11; where a step of the standard library's
executor or futures comes at another place (a dozen of them on 3.13), the recorded scenario is searched again, within a
bound of some seconds, and must fail.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from tests.proof.hunting import scenarios_over, still_killed
from tests.proof.mutants import Mutant, mutants_of
from tests.proof.mutation import HARMLESS, all_mutants, read_killers, read_score, score
from tests.proof.scenario import Scenario
from tests.proof.scenarios import SMALL

MUTANTS = {mutant.name: mutant for mutant in all_mutants()}
KILLERS = read_killers()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    handler = logging.NullHandler()
    logging.getLogger("threadmail").addHandler(handler)
    yield
    logging.getLogger("threadmail").removeHandler(handler)


@pytest.fixture(autouse=True, scope="module")
def _swept() -> Iterator[None]:
    """A hundred packages imported afresh are garbage by now, which every later collection would look at."""
    yield
    gc.collect()


def test_every_mutant_is_killed_or_argued_for() -> None:
    assert len(MUTANTS) >= 120, "the tool finds less than there was"
    assert KILLERS.keys() | HARMLESS.keys() == MUTANTS.keys()
    assert not KILLERS.keys() & HARMLESS.keys()


def test_the_score_that_was_written_down_is_the_one_there_is() -> None:
    assert read_score() == score(MUTANTS.values(), KILLERS)
    assert read_score().open == 0


@pytest.mark.parametrize("name", KILLERS)
def test_its_schedule_still_kills_it(name: str) -> None:
    kill = KILLERS[name]
    with scenarios_over(MUTANTS[name]) as scenarios:
        assert still_killed(scenarios[kill.scenario], kill)


@pytest.mark.parametrize("scenario", SMALL, ids=lambda s: s.name)
def test_without_a_mutant_nothing_breaks_it(scenario: Scenario) -> None:
    result = scenario.run()
    assert result.complete or "limit" in scenario.options
    assert not result.failing, str(result.first)


def test_a_guard_that_gives_a_value_gives_it_and_holds_nothing() -> None:
    source = "def f():\n    with self._lock as value:\n        return value\n"
    (mutant,) = mutants_of(source, "module")
    assert held_while(mutant) == ("value", [])


def held_while(mutant: Mutant) -> tuple[object, list[str]]:
    held: list[str] = []

    class Lock:
        def __enter__(self) -> str:
            held.append("lock")
            return "value"

        def __exit__(self, *exc: object) -> None:
            held.pop()

    class Self:
        _lock = Lock()

    namespace: dict[str, object] = {"self": Self()}
    exec(compile(mutant.tree, "mutant", "exec"), namespace)
    return namespace["f"](), held  # type: ignore[operator]
