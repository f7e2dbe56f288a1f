"""A signal handler in the middle of a step of `TimeHeap`, wherever CPython lets one in: behind a call, and where a loop
turns. It uses the same heap, on the same thread. Whatever it does, nobody who is here is without his entry."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any

import pytest

from threadmail._dispatch.timeheap import TimeHeap

Heap = TimeHeap[Any]
STEPS = [getattr(TimeHeap, name) for name in ("add", "discard", "_first", "_living_top", "_wear_down")]


def doors(code: CodeType) -> list[int]:
    """Where a handler comes in."""
    instructions = list(dis.get_instructions(code))
    return [
        after.offset
        for before, after in pairwise(instructions)
        if before.opname.startswith("CALL") or "JUMP_BACKWARD" in before.opname or before.opname == "JUMP_ABSOLUTE"
    ]


def worn() -> Heap:
    """Its old heap is being worn down."""
    heap = Heap()
    for thing in range(200):
        heap.add(thing, 1000.0 + thing)
    for thing in range(200):
        if heap._old:
            break
        heap.discard(thing)
    assert heap._old
    return heap


def dead_on_top() -> Heap:
    heap = Heap()
    for thing in range(10):
        heap.add(thing, 1000.0 + thing)
    heap.discard(0)
    return heap


def nearly_worn_out() -> Heap:
    heap = worn()
    while len(heap._old) > 3:
        heap.add(f"more {len(heap._old)}", 3000.0)
    return heap


ACTS: dict[str, Callable[[Heap], object]] = {
    "add": lambda heap: heap.add("new", 500.0),
    "add again": lambda heap: heap.add(150 if 150 in heap else 5, 400.0),
    "discard": lambda heap: heap.discard(151 if 151 in heap else 6),
    "look": lambda heap: heap.first_at(),
}


def with_handler(
    code: CodeType, door: int, heap: Heap, act: Callable[[Heap], object], handler: Callable[[], object]
) -> bool:
    """Act, and call the handler the first time that it comes by this door. Returns whether it did."""
    called: list[bool] = []

    def at_each(frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode" and frame.f_lasti == door and not called:
            called.append(True)
            sys.settrace(None)
            handler()
        return at_each

    def enter(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not code or called:
            return None
        frame.f_trace_opcodes = True
        return at_each

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        act(heap)
    finally:
        sys.settrace(before)
    return bool(called)


def lost(heap: Heap) -> list[Any]:
    indexed = {id(entry) for entry in (*heap._heap, *heap._old)}
    return [thing for thing, entry in heap._entries.items() if id(entry) not in indexed]


def places() -> Iterator[tuple[CodeType, int]]:
    for step in STEPS:
        for door in doors(step.__code__):
            yield step.__code__, door


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="does not tell of each instruction of a frame under way")
@pytest.mark.parametrize("made", [worn, dead_on_top, nearly_worn_out])
@pytest.mark.parametrize("handler", ACTS)
@pytest.mark.parametrize("act", ACTS)
def test_nobody_is_lost_to_a_handler(act: str, handler: str, made: Callable[[], Heap]) -> None:
    came_by = 0
    for code, door in places():
        heap = made()
        came_by += with_handler(code, door, heap, ACTS[act], lambda heap=heap: ACTS[handler](heap))  # type: ignore[misc]
        assert lost(heap) == [], (code.co_name, door)
        alive = {thing: heap.at(thing) for thing in heap}
        came = []
        while (thing := heap.first_due(9999.0)) is not None:
            came.append(heap.at(thing))
            heap.discard(thing)
        assert came == sorted(alive.values()), (code.co_name, door)
    assert came_by, "nobody came in"


def test_who_had_no_memory_to_add_has_added_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap()
    heap.add("a", 5.0)

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("threadmail._dispatch.timeheap.heapq.heappush", no_memory)
        for thing in ("a", "b"):
            with pytest.raises(MemoryError):
                heap.add(thing, 1.0)
    assert (heap.at("a"), "b" in heap, heap.first_at(), len(heap)) == (5.0, False, 5.0, 1)
