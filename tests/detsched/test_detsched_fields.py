"""Watched fields: a forgotten lock is found although no lock operation shows it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, ClassVar

import pytest

from tests.detsched import DPOR, DepthFirst, Run, Verdict, explore, watched
from tests.detsched.fields import ConstantWritten, assigned_fields


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def add(self) -> None:
        value = self.value
        self.value = value + 1


class SlottedCounter:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self) -> None:
        value = self.value
        self.value = value + 1


class DefaultCounter:
    value = 0

    def add(self) -> None:
        value = self.value
        self.value = value + 1


class Derived(Counter):
    pass


def adding(cls: Any, threads: int = 2) -> Any:
    def program(run: Run) -> None:
        counter = cls()
        for _ in range(threads):
            run.thread(counter.add)
        run.judge(lambda: Verdict(outcome=counter.value))

    return program


@pytest.mark.parametrize("cls", [Counter, SlottedCounter, DefaultCounter, Derived])
def test_a_lost_update_is_found_only_where_fields_are_watched(cls: type) -> None:
    assert explore(adding(cls), DepthFirst()).outcomes == {(2, None)}
    with watched(cls):
        assert explore(adding(cls), DepthFirst()).outcomes == {(1, None), (2, None)}
        assert explore(adding(cls), DPOR()).outcomes == {(1, None), (2, None)}
    counter = cls()
    counter.add()
    assert counter.value == 1
    assert "value" not in vars(Derived)


def test_reads_commute_and_writes_do_not() -> None:
    class Cell:
        def __init__(self) -> None:
            self.value = 1

        def set(self, value: int) -> None:
            self.value = value

    def program(run: Run, write: bool = False) -> None:
        cell = Cell()
        for number in range(3):
            run.thread(lambda number=number: cell.set(number) if write else cell.value)  # type: ignore[misc]
        run.judge(lambda: Verdict(outcome=cell.value))

    with watched(Cell):
        assert explore(program, DPOR()).runs == 1
        assert explore(lambda run: program(run, True), DPOR()).runs == 6


class Box:
    """Only its constructor assigns its fields, but one of them holds a container."""

    limit: ClassVar[int] = 3

    def __init__(self, items: Any) -> None:
        self.boxed = items
        self.box_lock = threading.Lock()

    def take(self) -> Any:
        return self.boxed.pop() if self.boxed else None

    @property
    def size(self) -> int:
        return len(self.boxed)


@pytest.mark.parametrize("items", [[1], deque([1]), {1}])
def test_a_container_in_a_field_is_seen(items: Any) -> None:
    """Check and take are two steps: the second of two threads may find it empty in between."""

    def program(run: Run) -> None:
        box = Box(type(items)(items))
        for _ in range(2):
            run.thread(box.take)

    with watched(Box) as watch:
        result = explore(program, DPOR())
        assert watch.names == []  # for no field is ever assigned again
    assert {kind for kind in result.kinds if kind.startswith("thread died")}
    assert explore(program, DPOR()).failing == 0


class Parcel:
    def __init__(self) -> None:
        self.stamp = 0


def stamp(parcel: Parcel) -> None:
    parcel.stamp = parcel.stamp + 1


def test_an_assignment_elsewhere_in_the_package_makes_a_field_variable() -> None:
    assert assigned_fields(Parcel) == {"stamp": True}
    assert watched(Parcel).names == ["Parcel.stamp"]


def test_constant_fields_are_found_and_checked() -> None:
    assert assigned_fields(Box) == {"boxed": True, "box_lock": True}
    assert assigned_fields(Counter) == {"value": False}

    def rewrites(run: Run) -> None:
        box = Box([])
        run.thread(lambda: setattr(box, "box_lock", None))

    with watched(Box), pytest.raises(ConstantWritten, match=r"Box\.box_lock"):
        explore(rewrites, DPOR())
    with watched(Box, variable=["box_lock"]):
        assert explore(rewrites, DPOR()).failing == 0
    assert explore(rewrites, DPOR()).failing == 0


def test_a_field_can_be_declared_constant() -> None:
    with watched(Counter, constant=["value"]), pytest.raises(ConstantWritten, match=r"Counter\.value"):
        explore(adding(Counter), DPOR())


def test_fields_set_from_outside_are_watched_by_name() -> None:
    class Bag:
        pass

    def program(run: Run) -> None:
        bag: Any = Bag()
        bag.value = 0

        def add() -> None:
            bag.value = bag.value + 1

        run.thread(add)
        run.thread(add)
        run.judge(lambda: Verdict(outcome=bag.value))

    with watched(Bag, variable=["value"]):
        assert explore(program, DPOR()).outcomes == {(1, None), (2, None)}


def test_watched_classes_behave_as_before() -> None:
    class Loose:
        kind = "default"

        def __init__(self) -> None:
            self.name = "n"
            self.__secret = 1

        def rename(self) -> None:
            self.name = self.kind = "new"

        def __getattr__(self, name: str) -> str:
            return f"no {name}"

        @property
        def both(self) -> str:
            return self.name + self.kind

        @both.setter
        def both(self, value: str) -> None:
            self.name = self.kind = value

    with watched(Loose, Box, SlottedCounter):
        thing = Loose()
        assert (thing.name, thing.kind, thing.missing, Loose.kind) == ("n", "default", "no missing", "default")
        thing.both = "x"
        assert (thing.both, thing.name) == ("xx", "x")
        del thing.kind
        assert thing.kind == "default"
        del thing.name
        assert thing.name == "no name"
        assert Box([1]).size == 1
        empty = SlottedCounter.__new__(SlottedCounter)
        with pytest.raises(AttributeError):
            _ = empty.value
    assert "name" not in vars(Loose)
    assert Loose.kind == "default"


def test_sets_of_watched_objects_have_the_same_order_in_every_run() -> None:
    """By address they would not, and the same choices would lead elsewhere."""

    class Knot:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    def program(run: Run) -> None:
        kept: list[Any] = [object() for _ in range(explored.append(1) or len(explored) % 7)]  # type: ignore[func-returns-value]
        knots = {Knot() for _ in range(8)}

        def work() -> None:
            for knot in knots:
                with knot.lock:
                    pass

        run.thread(work)
        run.thread(work)
        run.judge(lambda: Verdict(outcome=len(kept) > 99))

    explored: list[int] = []
    with watched(Knot):
        assert explore(program, DPOR(), limit=60).failing == 0
    assert Knot.__hash__ is object.__hash__
