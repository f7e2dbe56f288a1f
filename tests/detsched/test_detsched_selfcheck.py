"""Who tests the tester: the reduced search against plain search, on random programs.

An explorer is unproved code, and a wrong one reports false properties as proved. So: for random programs over every
kind of operation, the reduced search must reach exactly the end states and deadlocks that plain search reaches; and
an explorer with a defect put in on purpose must be noticed by this very comparison.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import pytest

from tests.detsched import DPOR, DepthFirst, Run, Verdict, explore, ops, watched
from tests.detsched.dpor import Events
from tests.detsched.modelserver import ModelServer
from tests.detsched.modelsocket import ModelSocket

Action = tuple[str, int]


class Board:
    """Shared memory of a random program: two plain fields and a container."""

    def __init__(self) -> None:
        self.x = self.y = 0
        self.seen: list[tuple[int, int]] = []

    def write(self, which: int, value: int) -> None:
        if which:
            self.y = value
        else:
            self.x = value

    def read(self, which: int) -> int:
        return self.y if which else self.x


# Chance of each action; "release" closes the latest lock. Three threads get shorter lists, so that plain search ends.
_MENU = {
    "acquire": 6, "release": 3, "try": 4, "timed": 3, "read": 3, "write": 4, "note": 4, "put": 6, "get": 4,
    "get_nowait": 2, "timed_get": 2, "qsize": 1, "spawn": 2, "sleep": 1, "wait": 1, "timed_wait": 2, "notify": 3,
    "send": 4, "recv": 2, "readline": 2, "look": 2, "shutdown": 1,
}  # fmt: skip


def random_program(chance: random.Random) -> list[list[Action]]:
    threads = chance.choice([2, 2, 3])
    program = []
    for _ in range(threads):
        actions: list[Action] = []
        held: list[int] = []
        for _ in range(chance.randint(2, 4) if threads == 2 else chance.randint(1, 2)):
            kind = chance.choices(list(_MENU), list(_MENU.values()))[0]
            which = int(chance.random() < 0.2)  # few objects, so that threads meet
            if kind == "acquire":
                if which in held:
                    continue
                held.append(which)
            elif kind == "release":
                if not held:
                    continue
                which = held.pop()
            actions.append((kind, which))
        actions += [("release", which) for which in reversed(held)]
        program.append(actions)
    return program


class Machine:
    """Interprets a random program; everything a thread learns goes into its log, and so into the outcome."""

    def __init__(self, program: list[list[Action]], run: Run) -> None:
        self.locks: list[Any] = [threading.Lock(), threading.RLock()]
        self.queues: list[queue.SimpleQueue[int]] = [queue.SimpleQueue(), queue.SimpleQueue()]
        self.condition = threading.Condition()
        self.board = Board()
        self.server = run.context.enter_context(ModelServer(read_timeouts=True))
        self.sock: Any = socket.create_connection(("model", 25), timeout=4)
        self.sock.recv(100)
        self.logs: list[list[object]] = []
        for number, actions in enumerate(program):
            log: list[object] = []
            self.logs.append(log)
            run.thread(lambda n=number, a=actions, log=log: self.interpret(n, a, log))  # type: ignore[misc]
        run.judge(lambda: Verdict(outcome=self.outcome()))

    def outcome(self) -> object:
        return (
            tuple(map(tuple, self.logs)),
            (self.board.x, self.board.y, tuple(self.board.seen)),
            tuple(q.qsize() for q in self.queues),
            (tuple(sorted(self.server.connections[0].violations)), len(self.server.connections[0].replies)),
        )

    def interpret(self, number: int, actions: list[Action], log: list[object]) -> None:
        for step, (kind, which) in enumerate(actions):
            result = getattr(self, "do_" + kind)(which, number * 10 + step)
            log.append((kind, result, time.monotonic()))

    def do_acquire(self, which: int, mark: int) -> None:
        self.locks[which].acquire()

    def do_release(self, which: int, mark: int) -> None:
        self.locks[which].release()

    def do_try(self, which: int, mark: int) -> bool:
        return self._short_hold(self.locks[which].acquire(blocking=False), which, mark)

    def do_timed(self, which: int, mark: int) -> bool:
        return self._short_hold(self.locks[which].acquire(timeout=2), which, mark)

    def _short_hold(self, got: bool, which: int, mark: int) -> bool:
        if got:
            self.board.write(which, mark)
            self.locks[which].release()
        return got

    def do_read(self, which: int, mark: int) -> int:
        return self.board.read(which)

    def do_write(self, which: int, mark: int) -> None:
        self.board.write(which, mark)

    def do_note(self, which: int, mark: int) -> int:
        seen = self.board.seen
        seen.append((which, mark))
        return len(seen)

    def do_put(self, which: int, mark: int) -> None:
        self.queues[which].put(mark)

    def do_get(self, which: int, mark: int) -> int:
        return self.queues[which].get()

    def do_get_nowait(self, which: int, mark: int) -> int | None:
        try:
            return self.queues[which].get_nowait()
        except queue.Empty:
            return None

    def do_timed_get(self, which: int, mark: int) -> int | None:
        try:
            return self.queues[which].get(timeout=3)
        except queue.Empty:
            return None

    def do_qsize(self, which: int, mark: int) -> int:
        return self.queues[which].qsize()

    def do_spawn(self, which: int, mark: int) -> bool:
        thread = threading.Thread(target=self.board.write, args=(which, -mark), daemon=True)
        thread.start()
        if which:
            thread.join()
        return thread.is_alive()

    def do_sleep(self, which: int, mark: int) -> None:
        time.sleep(which + 1)

    def do_wait(self, which: int, mark: int) -> bool:
        with self.condition:
            return self.condition.wait()

    def do_timed_wait(self, which: int, mark: int) -> bool:
        with self.condition:
            return self.condition.wait(timeout=5)

    def do_send(self, which: int, mark: int) -> str:
        try:
            self.sock.sendall(b"NOOP\r\n" * (which + 1))
        except OSError as error:
            return type(error).__name__
        return "sent"

    def _read(self, read: Callable[[], bytes]) -> object:
        try:
            return len(read())
        except OSError as error:
            return type(error).__name__

    def do_recv(self, which: int, mark: int) -> object:
        return self._read(lambda: self.sock.recv(100))

    def do_readline(self, which: int, mark: int) -> object:
        return self._read(self.sock.makefile("rb").readline)

    def do_look(self, which: int, mark: int) -> object:
        return self._read(lambda: ModelSocket(self.sock.connection, 0).recv(100))

    def do_shutdown(self, which: int, mark: int) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)

    def do_notify(self, which: int, mark: int) -> None:
        with self.condition:
            self.condition.notify(which + 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A random program and what plain search, run to its end, reaches in it."""

    actions: list[list[Action]]
    timeouts: int | None
    runs: int
    outcomes: frozenset[Hashable]

    def program(self, run: Run) -> None:
        Machine(self.actions, run)


# Programs that earlier versions of the explorer got wrong, or that show one way to get it wrong.
_KNOWN: list[tuple[int | None, list[list[Action]]]] = [
    # Both take the one item; the loser's get never becomes an event.
    (None, [[("get", 0)], [("put", 0), ("get", 0)]]),
    # The first get could also have taken the item that get_nowait took.
    (None, [[("get", 0), ("get", 0)], [("put", 0), ("get_nowait", 0), ("put", 0)]]),
    # What was found empty could also have been looked at after the put.
    (1, [[("write", 0), ("put", 0)], [("get_nowait", 0), ("timed", 1), ("get", 0)]]),
    # A wait that times out because nothing else can happen comes after everything; what was pending then races on.
    (0, [[("acquire", 0), ("timed_get", 0), ("release", 0)], [("acquire", 0), ("timed_wait", 0), ("release", 0)]]),
    # Virtual time must not travel backwards through a queue.
    (1, [[("write", 0), ("write", 0), ("put", 0), ("get", 0)], [("timed_get", 0), ("put", 0)]]),
    # A read that may time out does not commute with what it reads.
    (None, [[("send", 0), ("timed_wait", 0)], [("write", 0), ("write", 0), ("readline", 0)]]),
]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    chance = random.Random(7)
    found = []
    programs = [*_KNOWN, *(((None, 0, 1)[number % 3], random_program(chance)) for number in range(150))]
    with watched(Board):
        for timeouts, actions in programs:
            case = Case(actions, timeouts, 0, frozenset())
            plain = explore(case.program, DepthFirst(), limit=120, timeouts=case.timeouts)
            if plain.complete:
                found.append(dataclasses.replace(case, runs=plain.runs, outcomes=plain.outcomes))
    return found


def mismatches(cases: list[Case], explorer: Callable[[], DPOR]) -> list[Case]:
    """The cases in which the reduced search does not end with the outcomes of plain search."""
    with watched(Board):
        results = [explore(case.program, explorer(), limit=2000, timeouts=case.timeouts) for case in cases]
    return [c for c, r in zip(cases, results, strict=True) if not r.complete or r.outcomes != c.outcomes]


def test_the_reduced_search_reaches_what_plain_search_reaches(cases: list[Case]) -> None:
    assert mismatches(cases, DPOR) == []


def test_the_random_programs_put_the_explorer_to_the_test(cases: list[Case]) -> None:
    """Enough of them end in more than one way, and enough can hang."""
    assert len(cases) > 100
    assert sum(len(case.outcomes) > 1 for case in cases) > 30
    assert sum("deadlock" in repr(case.outcomes) for case in cases) > 30


class _LatestOnly(DPOR):
    """Races only with the latest event of each thread: the defect that this explorer was first written with."""

    def _race(self, op: ops.Op, clock: list[int], history: dict[int, Events]) -> None:
        super()._race(op, clock, {tid: events[-1:] for tid, events in history.items()})


class _NeverAsleepLongEnough(DPOR):
    """Keeps threads asleep whatever happens: cuts runs that are not redundant."""

    def _asleep(self, at: int, pending: dict[int, ops.Op]) -> set[int]:
        before = self._nodes[at - 1] if at else None
        return set() if before is None else {tid for tid in before.sleep | before.done if tid in pending}


def _try_commutes(a: str, b: str) -> bool:
    return ops.TRY not in (a, b) and ops.kinds_race(a, b)


def _acquires_never_race(a: str, b: str) -> bool:
    return (a, b) != (ops.ACQUIRE, ops.ACQUIRE) and ops.kinds_race(a, b)


def _writes_commute(a: str, b: str) -> bool:
    return (a, b) != (ops.WRITE, ops.WRITE) and ops.kinds_race(a, b)


@pytest.mark.parametrize(
    "defective",
    [
        pytest.param(lambda: DPOR(pending_race=False), id="pending operations do not race"),
        pytest.param(lambda: DPOR(kinds_race=_try_commutes), id="try-lock commutes"),
        pytest.param(lambda: DPOR(kinds_race=_acquires_never_race), id="order of acquires is never reversed"),
        pytest.param(lambda: DPOR(kinds_race=_writes_commute), id="writes commute"),
        pytest.param(_LatestOnly, id="races with the latest event only"),
        pytest.param(_NeverAsleepLongEnough, id="sleeps too long"),
    ],
)
def test_a_defect_of_the_explorer_is_noticed(cases: list[Case], defective: Callable[[], DPOR]) -> None:
    assert mismatches(cases, defective)
