"""Defects of the product that were found on the way, each with the schedule that shows it.

The mend is taken out again, the schedule replayed, and the oracle must see what it saw then; with the mend in its
place the scenario is searched in test_exhaustive.py or test_mutation.py. A proof that finds nothing is worth what it
would have found.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest

from tests.detsched import NonDeterminism, Replay
from tests.proof.scenario import Scenario
from tests.proof.scenarios import SMALL, SUITE
from threadmail._dispatch import dispatcher as _dispatcher
from threadmail._dispatch.schedule import Schedule
from threadmail._pool.keys import Keys
from threadmail._runtime.guard import InEachProcess
from threadmail.smtp import _Client

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in SUITE + SMALL}


@dataclass(frozen=True)
class Found:
    """A defect.

    Attributes:
        what: went wrong.
        owner, method: where the mend is; `mend` its text there, `before` what stood in its place.
        scenario, schedule: where it shows, and how.
        violation: what the oracle says of it.
        also: another piece of the mend, and what stood in its place.
    """

    what: str
    owner: Any  # a class, or the module that calls it
    method: str
    mend: str
    before: str
    scenario: str
    schedule: str
    violation: str
    also: tuple[str, str] = ("", "")

    def put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(getattr(self.owner, self.method)))
        assert source.count(self.mend) == 1, f"{self.method} does not read as it did: adapt this test"
        assert self.also[0] in source
        source = source.replace(*self.also)
        scope = dict(vars(sys.modules[getattr(self.owner, self.method).__module__]))
        exec(source.replace(self.mend, self.before), scope)
        monkeypatch.setattr(self.owner, self.method, scope[self.method])


FOUND = [
    # Whoever limits himself to a message a minute waited a minute longer for it.
    Found(
        "a message put back because its connection could not be replaced had its token taken twice",
        Schedule,
        "give_back",
        "    self.return_token()\n",
        "",
        "sender, cancel while a connection is replaced in vain",
        "0x415 1x9",
        "tokens were lost or won",
    ),
    # The count of the first thread began anew with the second one's, and the challenge for the password was taken for
    # the one for the user name.
    Found(
        "two threads logged in by challenges, and the user name was sent for the password",
        _Client,
        "auth",
        "@exclusive\ndef auth(self, ",
        "def auth(self, *given):\n"
        "    self._auth_challenge_count = 0\n"
        "    return exclusive(auth_in_one_step)(self, *given)\n\n"
        "def auth_in_one_step(self, ",
        "SMTP, a login by challenges from two threads",
        "0x75 1 0x62 1x135",
        "failed: LoginRefused",
        also=("    self._auth_challenge_count = 0\n    name,", "    name,"),
    ),
    # In a child forked without Python's hooks: the first thread said that the child had begun anew before it had.
    Found(
        "a thread of a forked child used its parent's connection",
        InEachProcess,
        "enter_child",
        "        inherited = self._inherited(pid)\n",
        "        inherited = self._inherited(pid)\n        self._pid = pid\n",
        "fork, two threads come first to an SMTP",
        "0x5 1x8 0x4",
        "failed: ConnectionLost",
        also=("        self._begin(", "        self._pid = 0\n        self._begin("),
    ),
    # The second one used what the parent had left.
    Found(
        "a thread of a forked child waited for a lock that its parent held",
        InEachProcess,
        "enter_child",
        "        inherited = self._inherited(pid)\n",
        "        inherited = self._inherited(pid)\n        self._ready_in = pid\n",
        "fork, two threads come first to a pool",
        "0x9 1x3 0x18",
        "deadlock",
        also=("        self._begin(", "        self._ready_in = 0\n        self._begin("),
    ),
    # A client that came free for a thread that was just interrupted went to the idle ones, where nobody looks again.
    Found(
        "a closed pool kept the connection that it had handed to an interrupted thread",
        Keys,
        "_changed",
        "        self._end_idle()\n",
        "",
        "pool of 1, a waiter is interrupted and close()",
        "0x18 1x12 2x11",
        "a closed pool kept a connection",
    ),
    # It was counted at its worker's next step: too late, if in between the dial of another worker failed.
    Found(
        "a queue was given up although a connection stood ready",
        _dispatcher,
        "told_of_dial",
        "worker.connected = True",
        "pass",
        "sender, lanes, one connects and one does not",
        "0x33 1x98 0x48",
        "failed: AssertionError",
    ),
]


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.what)
def test_with_its_mend_taken_out_the_schedule_shows_it(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS[found.scenario]
    found.put_back(monkeypatch)
    try:
        result = scenario.run(Replay(found.schedule))
    except (
        NonDeterminism
    ):  # a schedule of Python 3.11, and in this version the executor takes other steps: find it anew
        result = scenario.run(limit=500, stop_at_failure=True)
    assert result.first is not None, "the schedule shows nothing"
    assert found.violation in result.first.violations
