"""Every order in which threads that share one lookup can run: each gets the answer, or stops waiting when told to.

The lookup has no lock: who asks writes first and looks then, and so does who answers. What that promises is exhausted
here with each field of it, and the table of lookups under way, as a switch point.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest

from tests.detsched import DPOR, Run, Verdict, explore, watched
from threadmail._runtime.deadline import NEVER, Deadline
from threadmail._transport import lookup as _lookup
from threadmail._transport.lookup import CalledOff, Waiter


class Table:
    """In the place of the module's dictionary, so that the explorer sees each use of it."""

    def __init__(self) -> None:
        self.entries: dict[Hashable, Any] = {}

    def setdefault(self, key: Hashable, value: Any) -> Any:
        return self.entries.setdefault(key, value)

    def pop(self, key: Hashable, default: object) -> Any:
        return self.entries.pop(key, default)


class Sharing:
    """Threads with the same question; one of them, perhaps, is called off."""

    def __init__(self, threads: int, *, called_off: bool) -> None:
        self.threads, self.called_off = threads, called_off

    def __call__(self, run: Run) -> None:
        table = Table()
        _lookup._under_way = table  # type: ignore[assignment]  # put back below
        ends: dict[int, str] = {}
        waiters = [Waiter() for _ in range(self.threads)]
        asked: list[int] = []

        def resolve() -> str:
            asked.append(1)
            return "192.0.2.1"

        def ask(i: int) -> None:
            try:
                ends[i] = waiters[i].ask("name", resolve, NEVER)
            except CalledOff:
                ends[i] = "called off"

        for i in range(self.threads):
            run.thread(lambda i=i: ask(i), f"asks-{i}")  # type: ignore[misc]
        if self.called_off:
            run.thread(waiters[0].call_off, "calls-off")

        def judge() -> Verdict:
            answers = ("192.0.2.1", "called off")
            wrong = [i for i, end in ends.items() if end not in answers[: 2 if i == 0 and self.called_off else 1]]
            violations = []
            if wrong or len(ends) != self.threads:
                violations.append(f"ended with {ends}")
            if table.entries:
                violations.append("a lookup is under way for ever")
            if not 1 <= len(asked) <= self.threads:
                violations.append(f"the resolver was asked {len(asked)} times")
            return Verdict(tuple(violations), (tuple(sorted(ends.items())), len(asked)))

        run.judge(judge)


@pytest.mark.parametrize(
    "sharing",
    [
        Sharing(2, called_off=False),
        Sharing(1, called_off=True),
        Sharing(2, called_off=True),
    ],
    ids=["two ask", "one, called off", "two, one called off"],
)
def test_no_schedule_loses_an_answer_or_a_call_off(sharing: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    """No deadlock, nobody left waiting, nothing left in the table; each has the answer, or was called off."""
    monkeypatch.setattr(_lookup, "_under_way", {})
    with watched(_lookup._Lookup, Waiter, Table):
        result = explore(sharing, DPOR(), scenario="a shared lookup", granularity="queues, threads, fields")
    print(result.certificate())
    assert result.complete
    assert result.failing == 0, str(result.first)
    assert result.runs > 1


def test_the_search_would_notice_an_answer_told_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that the promise rests on, turned around: somebody waits for ever."""

    def run(self: Any, key: Hashable) -> None:
        for waiter in list(self.waiting):
            waiter.wake()
        self.answer.append(self._ask())
        _lookup._under_way.pop(key, None)

    monkeypatch.setattr(_lookup, "_under_way", {})
    monkeypatch.setattr(_lookup._Lookup, "run", run)
    with watched(_lookup._Lookup, Waiter, Table):
        result = explore(Sharing(2, called_off=False), DPOR(), scenario="told too early")
    assert result.failing > 0


def test_a_lookup_whose_beginning_was_struck_is_begun_by_the_next_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name had no answer for the rest of the process: there was a question that nobody asked."""

    def struck(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_lookup, "_under_way", {})
    with monkeypatch.context() as patched:
        patched.setattr(_lookup, "_start", struck)
        with pytest.raises(KeyboardInterrupt):
            _lookup.Waiter().ask("who", lambda: "first", Deadline.after(10.0))
    assert _lookup.Waiter().ask("who", lambda: "second", Deadline.after(10.0)) == "first"
    assert _lookup._under_way == {}
