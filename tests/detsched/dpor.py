"""Dynamic partial-order reduction with sleep sets: one run for each class of equivalent schedules.

Two schedules that differ only in the order of independent operations (`ops.dependent`) end in the same state, so one
of them is enough. The search runs one schedule, finds the pairs of dependent operations whose order was an accident
of the schedule (a *race*: neither happens before the other), and for each puts the later thread on the list of those
to try at the earlier one's place (Flanagan and Godefroid, POPL 2005). Sleep sets (Godefroid 1996) then cut runs that
could only repeat a class: a run in which every thread that could move is asleep is given up as "pruned".

Guaranteed, for a deterministic program whose visible operations are all announced: when the search ends, every
reachable final state and every deadlock was reached. An explorer is unproved code itself, so
test_detsched_selfcheck.py compares it with plain search on random programs.

Where a first attempt goes wrong quietly: operations still *pending* when a run ends race too, although they never
became events; an operation races with *every* earlier event that it does not happen after, not only with the latest;
and that a thread took what another one brought does not mean that it had to wait for that (somebody else may have
taken the first).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from .ops import CLOSE, LOOK, READ, READLINE, RECV, SEND, WRITE, Op, dependent, kinds_dependent, kinds_race
from .scheduler import Scheduler
from .task import NonDeterminism, Task

#: The events of one thread on one object: position in the trace, kind.
Events = list[tuple[int, str]]


# Operations on memory and connections. (A shutdown from elsewhere is how a blocked call is ended; that is no accident.)
_DATA = frozenset({READ, WRITE, SEND, READLINE, RECV, LOOK, CLOSE})


class _Node:
    """One choice of the current run: who could move, who was tried, who is to be tried."""

    __slots__ = ("chosen", "done", "enabled", "kinds", "pending", "sleep", "todo")

    def __init__(self, enabled: list[int], pending: dict[int, Op], sleep: set[int]) -> None:
        self.enabled = enabled
        self.pending = pending
        self.sleep = sleep
        self.chosen = -1
        self.done: set[int] = set()
        self.todo: set[int] = set()


class DPOR:
    """The reduced search. The three functions are parameters so that the self-check can break them."""

    exhaustive = True
    label = "DPOR, sleep sets"

    def __init__(
        self,
        *,
        dependent: Callable[[Op, Op], bool] = dependent,
        kinds_dependent: Callable[[str, str], bool] = kinds_dependent,
        kinds_race: Callable[[str, str], bool] = kinds_race,
        pending_race: bool = True,
    ) -> None:
        self._dependent, self._kinds_dependent, self._kinds_race = dependent, kinds_dependent, kinds_race
        self._pending_race = pending_race
        self._nodes: list[_Node] = []
        #: What raced, and how often: (name of the object, kind, kind). In a program whose every access is guarded,
        #: nothing races but the acquires of its locks; anything else in here is an access that no lock orders.
        self.races: Counter[tuple[str, str, str]] = Counter()

    @property
    def data_races(self) -> frozenset[str]:
        """Fields and connections that two threads used, not both only reading, in an order that no lock decides.

        Such a use orders what follows it, so of a chain of them the first is named for certain.
        """
        return frozenset(name for name, a, b in self.races if a in _DATA and b in _DATA)

    def begin(self) -> None:
        pass

    def pick(self, scheduler: Scheduler, enabled: Sequence[Task], current: Task | None) -> Task | None:
        at = len(scheduler.trace)
        pending = {task.tid: task.pending for task in scheduler.tasks if task.pending is not None}
        if at < len(self._nodes):
            return self._again(self._nodes[at], enabled, pending, at)
        node = _Node([task.tid for task in enabled], pending, self._asleep(at, pending))
        candidates = [task for task in enabled if task.tid not in node.sleep]
        if not candidates:
            return None
        choice = current if current is not None and current in candidates else candidates[0]
        node.chosen = choice.tid
        # Waits that time out because nothing else can happen race with each other, whatever they are waits for.
        node.todo = set(node.enabled) if scheduler.quiescent else {choice.tid}
        self._nodes.append(node)
        return choice

    def _again(self, node: _Node, enabled: Sequence[Task], pending: dict[int, Op], at: int) -> Task:
        if node.enabled != [task.tid for task in enabled] or any(
            (op.kind, op.obj.name) != (pending[tid].kind, pending[tid].obj.name) for tid, op in node.pending.items()
        ):
            raise NonDeterminism(
                f"step {at}, same choices before: {list(node.pending.values())} last time, now {list(pending.values())}"
            )
        node.pending = pending
        return next(task for task in enabled if task.tid == node.chosen)

    def _asleep(self, at: int, pending: dict[int, Op]) -> set[int]:
        if at == 0:
            return set()
        before = self._nodes[at - 1]
        performed = before.pending[before.chosen]
        return {
            tid
            for tid in before.sleep | before.done
            if tid != before.chosen and tid in pending and not self._dependent(pending[tid], performed)
        }

    def finished(self, scheduler: Scheduler) -> bool:
        nodes = self._nodes
        if len(scheduler.trace) < len(nodes):
            raise NonDeterminism(f"after {len(scheduler.trace)} steps the run was over, last time it went on")
        self._find_races(scheduler)
        while nodes:
            node = nodes[-1]
            node.done.add(node.chosen)
            rest = node.todo - node.done - node.sleep
            if rest:
                node.chosen = min(rest)
                return True
            nodes.pop()
        return False

    # Races ------------------------------------------------------------------------------------------------------

    def _find_races(self, scheduler: Scheduler) -> None:
        trace, count = scheduler.trace, len(scheduler.tasks)
        # clocks[p][q]: position of the last event of thread q that happens before thread p's next operation.
        clocks = [[-1] * count for _ in range(count)]
        born = [False] * count
        at_event: list[list[int]] = []
        # For each object its events by thread: {object: {thread: [(position, kind), ...]}}.
        history: dict[int, dict[int, Events]] = {}
        barrier = -1
        for at, op in enumerate(trace):
            tid = op.tid
            clock = clocks[tid]
            if not born[tid]:
                born[tid] = True
                _join(clock, at_event, scheduler.births[tid])
            events = history.get(id(op.obj))
            if events is None:
                events = history[id(op.obj)] = {}
            else:
                self._race(op, clock, events)
                self._happens_after(op, clock, events, at_event)
            # Only now: what was taken depends on who took before, so the cause does not excuse from those races.
            _join(clock, at_event, op.cause)
            # Nor does a barrier excuse what was pending when it came.
            _join(clock, at_event, barrier)
            if op.barrier:
                _join(clock, at_event, *range(at))
                barrier = at
            clock[tid] = at
            at_event.append(clock[:])
            events.setdefault(tid, []).append((at, op.kind))
        if self._pending_race:
            for op in scheduler.stuck:
                if not born[op.tid]:
                    _join(clocks[op.tid], at_event, scheduler.births[op.tid])
                self._race(op, clocks[op.tid], history.get(id(op.obj), {}))

    def _race(self, op: Op, clock: list[int], history: dict[int, Events]) -> None:
        """Note each earlier event that `op` could have come before."""
        # Not only the latest one: what `op` waited for may have come and gone while it was pending, and at the
        # latest event it was blocked for that reason.
        for other, events in history.items():
            if other != op.tid:
                for position, kind in reversed(events):
                    if position <= clock[other]:
                        break
                    if self._kinds_race(kind, op.kind):
                        self.races[op.obj.name, min(kind, op.kind), max(kind, op.kind)] += 1
                        self._try_before(op.tid, clock, position)

    def _try_before(self, tid: int, clock: list[int], position: int) -> None:
        node = self._nodes[position]
        if tid in node.enabled:
            node.todo.add(tid)
            return
        # It could not move there: somebody whose later move made this one possible goes first.
        helpers = [helper for helper in node.enabled if clock[helper] > position]
        if not helpers:
            node.todo.update(node.enabled)
        elif node.todo.isdisjoint(helpers):
            node.todo.add(helpers[0])

    def _happens_after(self, op: Op, clock: list[int], history: dict[int, Events], at_event: list[list[int]]) -> None:
        for other, events in history.items():
            if other != op.tid:
                for position, kind in reversed(events):
                    if position <= clock[other]:
                        break
                    if self._kinds_dependent(kind, op.kind):
                        _join(clock, at_event, position)
                        break


def _join(clock: list[int], at_event: list[list[int]], *positions: int) -> None:
    for position in positions:
        if position >= 0:
            for tid, known in enumerate(at_event[position]):
                if known > clock[tid]:
                    clock[tid] = known
