"""Schedules drawn and shrunk by Hypothesis.

The whole schedule is drawn *before* the threads start, as its preemptions: {step: which other thread}. So the run
under test is an ordinary function of an ordinary value, and shrinking goes where a reader wants it: towards fewer
preemptions, and earlier ones. The empty schedule runs the threads one after the other.
"""

from __future__ import annotations

from hypothesis import strategies as st

from .strategies import Preempt


def schedules(*, steps: int, threads: int, preemptions: int = 5) -> st.SearchStrategy[Preempt]:
    """Schedules of programs of about `steps` operations and `threads` threads, with at most so many preemptions."""
    # A list of pairs, not st.dictionaries: its elements can be deleted one by one, and so the empty ones go.
    point = st.tuples(st.integers(0, steps - 1), st.integers(0, max(threads - 2, 0)))
    return st.lists(point, max_size=preemptions).map(lambda points: Preempt(dict(points)))
