"""Time that passes when a test says so."""

from __future__ import annotations

import pytest

from threadmail import throttle


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of `threadmail.throttle`."""
    made = Clock()
    monkeypatch.setattr(throttle, "now", made)
    return made
