"""The heap of times, against a plain dictionary; and what it may keep of those who have left."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threadmail._dispatch.timeheap import _FEW, _WORN, TimeHeap


def filled(number: int, *, at: float = 0.0) -> TimeHeap[int]:
    heap: TimeHeap[int] = TimeHeap()
    for thing in range(number):
        heap.add(thing, at + thing)
    return heap


def held(heap: TimeHeap[int]) -> int:
    """Entries in memory, dead ones included."""
    return len(heap._heap) + len(heap._old)


def test_an_empty_heap_has_no_time() -> None:
    heap: TimeHeap[int] = TimeHeap()
    assert (len(heap), heap.first_at(), heap.first_due(inf), list(heap), heap.at(1)) == (0, inf, None, [], inf)


@pytest.mark.parametrize(("now", "due"), [(4.9, None), (5.0, 7), (5.1, 7)])
def test_what_comes_first_is_due_when_its_time_has_come(now: float, due: int | None) -> None:
    heap: TimeHeap[int] = TimeHeap()
    heap.add(8, 6.0)
    heap.add(7, 5.0)
    assert heap.first_due(now) == due
    assert (heap.first_at(), len(heap), 7 in heap, 9 in heap) == (5.0, 2, True, False)


def test_of_two_at_one_time_the_first_that_came_is_the_first() -> None:
    heap: TimeHeap[str] = TimeHeap()
    for thing in ("b", "a", "c"):
        heap.add(thing, 5.0)
    order = []
    while (thing_due := heap.first_due(5.0)) is not None:
        order.append(thing_due)
        assert heap.discard(thing_due)
    assert order == ["b", "a", "c"]


def test_who_is_added_again_has_his_new_time_alone() -> None:
    heap = filled(3)
    heap.add(0, 9.0)
    assert (heap.at(0), heap.first_at(), len(heap)) == (9.0, 1.0, 3)
    heap.add(0, 0.5)
    assert (heap.at(0), heap.first_at(), len(heap)) == (0.5, 0.5, 3)


def test_who_is_forgotten_is_so_and_once() -> None:
    heap = filled(2)
    assert heap.discard(0)
    assert not heap.discard(0)
    assert not heap.discard(7)
    assert (heap.first_at(), len(heap), 0 in heap, list(heap)) == (1.0, 1, False, [1])


def test_few_dead_entries_are_let_lie_and_then_they_become_the_old_heap() -> None:
    """Not before there are twice as many as live, and a few more."""
    heap = filled(_FEW + 1)
    for thing in range(_FEW + 1, 0, -1):
        heap.discard(thing)
    assert (len(heap), len(heap._heap), len(heap._old)) == (1, _FEW + 1, 0)
    heap.add(1, 1.0)
    assert (len(heap), len(heap._heap)) == (2, _FEW + 2)
    heap.discard(1)
    heap.add(2, 1.0)  # 67 entries for 2
    assert len(heap._old) == 0
    heap.discard(2)  # ... for 1: more than 2 + 64
    assert (len(heap._old), len(heap._heap)) == (_FEW + 3, 0)
    heap.discard(99)
    heap.add(3, 3.0)
    assert len(heap._old) == _FEW + 3 - _WORN


def test_the_old_heap_is_worn_down_some_at_a_time_and_loses_nobody() -> None:
    heap = filled(1000)
    for thing in range(1, 1000, 2):
        heap.discard(thing)
    for thing in range(2, 80, 2):
        heap.discard(thing)
    assert heap._old
    before = len(heap._old)
    heap.add(5000, 0.5)
    assert len(heap._old) == before - _WORN
    assert (heap.first_at(), heap.first_due(0.0)) == (0.0, 0)
    for number in range(2000):
        heap.add(6000 + number, 7000.0 + number)
    assert not heap._old
    found = []
    while (thing_due := heap.first_due(6999.0)) is not None:
        found.append(thing_due)
        heap.discard(thing_due)
    assert found == [0, 5000, *range(80, 1000, 2)]


def test_of_the_two_heaps_the_earlier_one_is_the_first() -> None:
    """Whichever it is in; at one time the one that came before."""
    heap = filled(400)
    for thing in range(10, 390):
        heap.discard(thing)
    assert heap._old
    assert heap.first_at() == 0.0
    heap.add(7777, -1.0)
    assert heap.first_due(0.0) == 7777
    heap.discard(7777)
    heap.add(8888, 0.0)
    assert heap.first_due(0.0) == 0
    heap.discard(0)
    assert heap.first_due(0.0) == 8888


def test_who_is_added_again_or_forgotten_is_held_once_or_not_at_all() -> None:
    """A dead entry holds no content."""
    heap = filled(3)
    heap.add(0, 9.0)
    assert sum(entry[2] == 0 for entry in heap._heap) == 1
    heap.discard(0)
    assert sum(entry[2] == 0 for entry in heap._heap) == 0


def test_memory_is_in_proportion_to_who_is_here() -> None:
    heap = filled(2000)
    for thing in range(2000):
        heap.discard(thing)
        assert held(heap) <= 3 * len(heap) + 2 * _FEW + 2000 * (thing < 1400)
    for number in range(10_000):
        heap.add(number, float(number))
        heap.discard(number)
        assert held(heap) <= 3 * _FEW
    assert (len(heap), _WORN, _FEW) == (0, 4, 64)


steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "discard", "pop"]), st.integers(0, 40), st.integers(0, 60)), max_size=400
)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_it_does_what_a_plain_dictionary_does(done: list[tuple[str, int, int]]) -> None:
    heap: TimeHeap[int] = TimeHeap()
    model: dict[int, tuple[float, int]] = {}
    for number, (what, thing, at) in enumerate(done):
        if what == "add":
            heap.add(thing, float(at))
            model[thing] = (float(at), number)
        elif what == "discard":
            assert heap.discard(thing) == (model.pop(thing, None) is not None)
        else:
            due = heap.first_due(float(at))
            first = min(model, key=lambda each: model[each]) if model else None
            expected = first if first is not None and model[first][0] <= at else None
            assert due == expected
            if due is not None:
                heap.discard(due)
                del model[due]
        assert set(heap) == model.keys()
        assert len(heap) == len(model)
        assert heap.first_at() == min((at for at, _ in model.values()), default=inf)
