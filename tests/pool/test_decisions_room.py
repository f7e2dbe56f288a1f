"""How many connections a server takes at once, each decision at its boundaries. Time and chance are arguments."""

from __future__ import annotations

import random

import pytest

from threadmail._pool.room import FIRST_PAUSE, LONGEST_PAUSE, Room
from threadmail.errors import GreetingRefused

FULL, FULLER = GreetingRefused(421, b"4.3.2 too many"), GreetingRefused(421, b"4.3.2 still too many")


class Chance(random.Random):
    """Of what may be drawn, the least or the most."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part
        self.drawn: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.drawn.append((a, b))
        return a + self.part * (b - a)


def test_a_new_room_has_refused_nobody() -> None:
    room = Room(Chance(1.0))
    assert (room.refusals, room.opens_at, room.error) == (0, 0.0, None)


@pytest.mark.parametrize(("part", "pause"), [(0.0, 0.5), (1.0, 1.0)])
def test_the_first_pause_is_between_half_a_second_and_one(part: float, pause: float) -> None:
    room = Room(Chance(part))
    room.refused(FULL, 100.0)
    assert (room.refusals, room.opens_at, room.error) == (1, 100.0 + pause, FULL)
    assert FIRST_PAUSE == 1.0


def test_each_refusal_after_a_pause_doubles_it_up_to_a_minute() -> None:
    room = Room(Chance(1.0))
    pauses = []
    for _ in range(8):
        now = room.opens_at
        room.refused(FULL, now)
        pauses.append(room.opens_at - now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert LONGEST_PAUSE == 60.0
    assert room.refusals == 8


def test_those_of_one_moment_are_one() -> None:
    room = Room(Chance(1.0))
    room.refused(FULL, 0.0)
    room.refused(FULLER, 0.999)
    assert (room.refusals, room.opens_at, room.error) == (1, 1.0, FULL)
    room.refused(FULLER, 1.0)
    assert (room.refusals, room.opens_at, room.error) == (2, 3.0, FULLER)


def test_who_is_alone_tells_something_new_each_time() -> None:
    room = Room(Chance(1.0))
    room.refused(FULL, 0.0, alone=True)
    room.refused(FULLER, 0.5, alone=True)
    assert (room.refusals, room.opens_at, room.error) == (2, 2.5, FULLER)


@pytest.mark.parametrize("number", [1023, 5000])
def test_no_number_of_refusals_is_too_large_to_count_with(number: int) -> None:
    room = Room(Chance(1.0))
    room.refusals = number
    room.refused(FULL, 0.0)
    assert room.opens_at == 60.0


def test_one_more_that_is_let_in_ends_it() -> None:
    room = Room(Chance(1.0))
    room.refused(FULL, 5.0)
    room.found()
    assert (room.refusals, room.opens_at, room.error) == (0, 0.0, None)
    room.refused(FULL, 7.0)
    assert room.opens_at == 8.0
