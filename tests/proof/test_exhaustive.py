"""Every schedule, within the bounds of each scenario: complete, without a violation, as many as predicted or known.

And no field is used by two threads in an order that no lock decides, but for those that are by design.

`pytest -rP tests/proof/test_exhaustive.py` shows the certificate of each run; `python -m stress.report` collects them.
"""

from __future__ import annotations

import pytest

from tests.proof.scenario import BY_DESIGN, Scenario
from tests.proof.scenarios import SUITE


@pytest.mark.parametrize("scenario", SUITE, ids=lambda s: s.name)
def test_no_schedule_breaks_it(scenario: Scenario) -> None:
    result = scenario.run()
    print(result.certificate())
    assert result.complete
    assert result.failing == 0, str(result.first)
    assert (result.data_races or frozenset()) <= BY_DESIGN
    if scenario.schedules is not None:
        assert result.runs == scenario.schedules, "lost coverage, or something new to disagree on"
