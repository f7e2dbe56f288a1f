"""Defects of the product that were found on the way, each with the schedule that shows it.

The mend is taken out again, the schedule replayed, and the oracle must see what it saw then; with the mend in its
place the scenario is exhausted in test_exhaustive.py. A proof that finds nothing is worth what it would have found.
"""

from __future__ import annotations

import inspect
import textwrap

import pytest

from tests.detsched import replay, watched
from tests.proof.scenario import OWNER, SENDER
from tests.proof.scenarios_sender import put_back_late, replaced_in_vain
from threadmail import _dispatch
from threadmail._dispatch import Dispatcher

#: The lane is about to fail to replace its connection when the other thread takes the message, or the queue, back.
CANCELLED = "0x123 1x12 0x152"
PUT_BACK = "0x124 1x9 0x58 1x16 0x28"


def without(monkeypatch: pytest.MonkeyPatch, method: str, mend: str, before: str) -> None:
    """Put `before` in the place of `mend` in a method of the dispatcher."""
    source = textwrap.dedent(inspect.getsource(getattr(Dispatcher, method)))
    assert source.count(mend) == 1, f"{method} does not read as it did: adapt this test"
    scope = dict(vars(_dispatch))
    exec(source.replace(mend, before), scope)
    monkeypatch.setattr(Dispatcher, method, scope[method])


def test_a_message_taken_back_was_sent_when_its_connection_could_not_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The failed reconnect put it into the queue again, and nobody remembered that it was cancelled."""
    mend = "receipt is None or job.state is JobState.WITHDRAWN"
    with watched(*SENDER, constant=OWNER):
        without(monkeypatch, "judge", mend, "receipt is None")
        bad, _ = replay(replaced_in_vain, CANCELLED, timeouts=1)
    assert "reported not sent, but delivered" in bad.violations


def test_a_message_put_back_while_the_sender_closed_was_never_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its future would have waited for ever."""
    with watched(*SENDER, constant=OWNER):
        without(monkeypatch, "close", "late = self._end_all(closed)", "late = []")
        bad, _ = replay(put_back_late, PUT_BACK, timeouts=1)
    assert "no report" in bad.violations
