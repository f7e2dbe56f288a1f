"""The scheduler and its primitives: what they promise to the programs under them and to the searches above."""

from __future__ import annotations

import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pytest

from tests.detsched import (
    DPOR,
    PCT,
    DepthFirst,
    NonDeterminism,
    Preempt,
    Program,
    RandomWalk,
    Replay,
    Result,
    Run,
    Scheduler,
    UncontrolledBlocking,
    Verdict,
    explore,
    line_tracer,
    read_schedule,
    replay,
    write_schedule,
)

Body = Callable[[list[Any]], None]


def program(*bodies: Body) -> Program:
    """Threads that share one list, which is the outcome."""

    def build(run: Run) -> None:
        log: list[Any] = []
        for body in bodies:
            run.thread(lambda body=body: body(log))  # type: ignore[misc]
        run.judge(lambda: Verdict(outcome=tuple(log)))

    return build


def outcomes(program: Program, **options: Any) -> set[Any]:
    """All reachable outcomes and endings by plain search; the reduced search must agree."""
    plain, reduced = explore(program, DepthFirst(), **options), explore(program, DPOR(), **options)
    assert plain.complete
    assert reduced.complete
    assert plain.outcomes == reduced.outcomes
    return set(plain.outcomes)


# Choices ------------------------------------------------------------------------------------------------------------


def locked_twice(run: Run) -> None:
    lock, log = threading.Lock(), []

    def work(name: str) -> None:
        for _ in range(2):
            with lock:
                log.append(name)

    for name in "ab":
        run.thread(lambda name=name: work(name), name)  # type: ignore[misc]
    run.judge(lambda: Verdict(("a last",) if log[-1] == "a" else (), tuple(log)))


def test_every_order_of_the_critical_sections_is_reached_once() -> None:
    result = explore(locked_twice, DPOR())
    assert (result.complete, result.runs, result.pruned, len(result.outcomes)) == (True, 6, 0, 6)


def test_a_schedule_can_be_written_and_read() -> None:
    assert write_schedule([0, 0, 0, 1, 0]) == "0x3 1 0"
    assert read_schedule("0x3 1 0") == [0, 0, 0, 1, 0]
    assert write_schedule([]) == ""
    assert read_schedule("") == []


def test_a_failure_can_be_replayed_from_its_schedule() -> None:
    result = explore(locked_twice, DepthFirst(), stop_at_failure=True)
    assert result.first is not None
    verdicts = {replay(locked_twice, result.first.schedule)[0] for _ in range(20)}
    assert verdicts == {Verdict(("a last",), (verdicts.copy().pop().outcome[0], None))}  # type: ignore[index]
    with pytest.raises(NonDeterminism):
        explore(locked_twice, Replay("5"))


def test_the_certificate_says_what_was_done() -> None:
    line = explore(locked_twice, DPOR(), scenario="locked 2x2").certificate()
    assert line.startswith("locked 2x2 | DPOR, sleep sets | switch points: locks, sockets | schedules 6 (+0 redundant)")
    assert "complete=yes | violations 3 | data races: none |" in line
    assert "data races: not looked for" in explore(locked_twice, DepthFirst()).certificate()


@pytest.mark.parametrize("make", [lambda: RandomWalk(40, 1), lambda: PCT(40, 1, depth=3, length=8)])
def test_strategies_by_chance_repeat_by_seed(make: Callable[[], Any]) -> None:
    def found(result: Result) -> Any:
        return result.runs, result.failing, result.outcomes, result.first and result.first.schedule

    first = explore(locked_twice, make())
    assert found(first) == found(explore(locked_twice, make()))
    assert first.runs == 40
    assert not first.complete
    assert len(first.outcomes) > 1


def test_a_bound_on_preemptions() -> None:
    assert [explore(locked_twice, DepthFirst(bound)).runs for bound in (0, 1, 2)] == [2, 4, 6]
    assert explore(locked_twice, Preempt({})).outcomes == {(("a", "a", "b", "b"), None)}


# Endings ------------------------------------------------------------------------------------------------------------


def opposite_locks(run: Run) -> None:
    one, two = threading.Lock(), threading.Lock()

    def work(first: Any, second: Any) -> None:
        with first, second:
            pass

    run.thread(lambda: work(one, two))
    run.thread(lambda: work(two, one))


def test_a_deadlock_is_a_verdict_not_a_timeout() -> None:
    for strategy in (DepthFirst(), DPOR()):
        result = explore(opposite_locks, strategy)
        assert result.complete
        assert result.kinds["deadlock"] == result.failing > 0
        assert result.seconds < 1
    assert threading.active_count() == 1


def test_an_endless_run_is_cut_off() -> None:
    def spin(run: Run) -> None:
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    pass

        run.thread(work)

    result = explore(spin, DepthFirst(), max_steps=50, limit=1)
    assert (result.failing, dict(result.kinds)) == (1, {"steps": 1})


def test_an_exception_that_leaves_a_thread_is_a_violation() -> None:
    def broken(log: list[Any]) -> None:
        raise KeyError("x")

    assert dict(explore(program(broken), DPOR()).kinds) == {"thread died: KeyError": 1}


def test_a_given_up_run_unwinds_even_threads_that_catch_everything() -> None:
    def stubborn(log: list[Any]) -> None:
        lock = threading.Lock()
        lock.acquire()
        while True:
            try:
                lock.acquire()
            except BaseException:
                if len(log) > 5:
                    raise
                log.append("again")

    result = explore(program(stubborn), DPOR())
    assert dict(result.kinds) == {"deadlock": 1}


@pytest.mark.parametrize("operations_before", [0, 1])
def test_the_watchdog_reports_what_it_does_not_control(operations_before: int) -> None:
    foreign = threading.Lock()  # made outside of any run: a real lock
    foreign.acquire()
    schedulers: list[Scheduler] = []

    def blocked(run: Run) -> None:
        schedulers.append(run.scheduler)
        lock = threading.Lock()

        def work() -> None:
            for _ in range(operations_before):
                lock.acquire()
            with foreign:
                pass

        run.thread(work, "blocked one")

    with pytest.raises(UncontrolledBlocking, match=r"(?s)blocked one.*with foreign"):
        explore(blocked, DPOR(), patience=0.2)
    foreign.release()
    assert schedulers[0].ended_within(10)


def test_a_program_that_changes_between_runs_is_noticed() -> None:
    calls: list[int] = []

    def moody(run: Run) -> None:
        calls.append(1)
        locks = [threading.Lock() for _ in range(2)]

        def work() -> None:
            for lock in locks[: 1 + len(calls) % 2]:
                with lock:
                    pass

        run.thread(work)
        run.thread(work)

    for strategy in (DepthFirst(), DPOR()):
        with pytest.raises(NonDeterminism):
            explore(moody, strategy)


def test_everything_is_put_back() -> None:
    names = [
        (threading, "Lock"), (threading, "RLock"), (threading, "Thread"), (threading, "_allocate_lock"),
        (threading, "get_ident"), (threading, "current_thread"), (time, "monotonic"), (time, "sleep"),
        (queue, "SimpleQueue"), (sys, "unraisablehook"),
    ]  # fmt: skip
    before = [getattr(module, name) for module, name in names]
    explore(locked_twice, DPOR())
    with pytest.raises(ZeroDivisionError):
        explore(lambda run: run.thread(print, str(1 // 0)), DPOR())
    assert [getattr(module, name) for module, name in names] == before


# Primitives ---------------------------------------------------------------------------------------------------------


def test_an_inner_level_of_an_rlock_is_no_switch_point() -> None:
    def nested(run: Run) -> None:
        lock = threading.RLock()

        def work() -> None:
            with lock, lock, lock:
                pass

        run.thread(work)

    assert explore(nested, DPOR()).steps == 2


def test_a_lock_works_outside_a_run_and_says_when_it_cannot() -> None:
    def build(run: Run) -> None:
        for lock in (threading.Lock(), threading.RLock()):
            with lock:
                assert lock.acquire(blocking=False) is hasattr(lock, "_recursion_count")
        busy = threading.Lock()
        busy.acquire()
        assert not busy.acquire(timeout=0.01)
        with pytest.raises(RuntimeError, match="held by outside"):
            busy.acquire()
        busy.release()
        with pytest.raises(RuntimeError):
            busy.release()
        with pytest.raises(RuntimeError):
            threading.RLock().release()

    explore(build, DPOR())


def test_a_waiter_misses_no_notify_that_comes_after_its_check() -> None:
    def build(run: Run, loops: bool = True) -> None:
        condition, items = threading.Condition(), [1]

        def take() -> None:
            with condition:
                while not items:
                    condition.wait()
                items.pop()

        def put() -> None:
            with condition:
                items.append(1)
                condition.notify()

        for body in (take, take, put):
            run.thread(body)

    result = explore(build, DPOR())
    assert (result.complete, result.failing) == (True, 0)


def test_a_notify_without_a_waiter_is_lost() -> None:
    def build(run: Run) -> None:
        condition = threading.Condition()

        def wait() -> None:
            with condition:
                condition.wait()

        def notify() -> None:
            with condition:
                condition.notify()

        run.thread(wait)
        run.thread(notify)

    assert outcomes(build) == {(None, None), (None, "deadlock")}


def test_several_conditions_on_one_lock() -> None:
    """A bounded buffer with its two conditions on one RLock, taken twice by the waiting thread."""

    def build(run: Run) -> None:
        lock = threading.RLock()
        filled, emptied = threading.Condition(lock), threading.Condition(lock)
        slots: list[int] = []
        got: list[int] = []

        def produce() -> None:
            for item in range(2):
                with lock, emptied:
                    emptied.wait_for(lambda: not slots)
                    slots.append(item)
                    filled.notify_all()

        def consume() -> None:
            with lock:
                filled.wait_for(lambda: bool(slots))
                got.append(slots.pop())
                emptied.notify()

        for body in (produce, consume, consume):
            run.thread(body)
        run.judge(lambda: Verdict(outcome=tuple(got)))

    assert explore(build, DPOR()).outcomes == {((0, 1), None)}


def test_event_semaphore_barrier_and_queue_are_under_control() -> None:
    def build(run: Run) -> None:
        event, semaphore, barrier = threading.Event(), threading.Semaphore(0), threading.Barrier(2)
        jobs: queue.Queue[int] = queue.Queue(maxsize=1)
        log: list[Any] = []

        def one() -> None:
            event.wait()
            jobs.put(1)
            jobs.put(2)
            semaphore.acquire()
            barrier.wait()
            log.append("one")

        def two() -> None:
            event.set()
            log.append(jobs.get() + jobs.get())
            semaphore.release()
            barrier.wait()

        run.thread(one)
        run.thread(two)
        run.judge(lambda: Verdict(outcome=tuple(log)))

    for strategy in (RandomWalk(100, 3), DPOR()):
        result = explore(build, strategy, limit=300)
        assert result.outcomes == {((3, "one"), None)}


def test_an_executor_with_thread_local_state() -> None:
    """Each worker makes its own state once; nothing is lost, and the workers end."""

    def build(run: Run) -> None:
        local, made = threading.local(), []

        def job(number: int) -> int:
            if not hasattr(local, "name"):
                local.name = threading.current_thread().name
                made.append(local.name)
            assert local.name == threading.current_thread().name
            return number * 2

        results: list[int] = []

        def main() -> None:
            with ThreadPoolExecutor(2, thread_name_prefix="lane") as executor:
                futures = [executor.submit(job, number) for number in range(2)]
                results.extend(future.result(timeout=5) for future in futures)

        run.thread(main)
        run.judge(lambda: Verdict(outcome=(tuple(results), tuple(sorted(made)))))

    result = explore(build, DPOR(), timeouts=0)
    assert (result.complete, result.failing) == (True, 0)
    assert result.outcomes == {(((0, 2), names), None) for names in [("lane_0",), ("lane_1",), ("lane_0", "lane_1")]}
    assert threading.active_count() == 1


def test_a_future_waits_and_times_out() -> None:
    def build(run: Run) -> None:
        future: Future[int] = Future()
        log: list[Any] = []

        def wait() -> None:
            try:
                log.append(future.result(timeout=3))
            except FutureTimeout:
                log.append("late")

        run.thread(wait)
        run.thread(lambda: future.set_result(1))
        run.judge(lambda: Verdict(outcome=tuple(log)))

    assert outcomes(build) == {((1,), None), (("late",), None)}
    assert outcomes(build, timeouts=0) == {((1,), None)}


def test_threads_start_join_and_tell_whether_they_live() -> None:
    def child(log: list[Any]) -> None:
        log.append(threading.current_thread().name)

    def parent(log: list[Any]) -> None:
        thread = threading.Thread(target=child, args=(log,), name="kid", daemon=True)
        assert thread.ident is None
        thread.start()
        alive = thread.is_alive()
        thread.join()
        log.append((alive, thread.is_alive(), thread.daemon))

    assert outcomes(program(parent)) == {
        (("kid", (True, False, True)), None),
        (("kid", (False, False, True)), None),
    }


def test_identity_is_the_same_in_every_run() -> None:
    def body(log: list[Any]) -> None:
        log.append((threading.get_ident(), threading.current_thread().ident, threading.current_thread().name))

    results = {explore(program(body), DPOR()).outcomes for _ in range(5)}
    assert results == {frozenset({(((1_000_000, 1_000_000, "T0"),), None)})}


def test_a_weak_reference_callback_may_use_locks() -> None:
    def build(run: Run) -> None:
        class Thing:
            pass

        done = threading.Event()
        things = [Thing()]
        reference = weakref.ref(things[0], lambda _: done.set())
        run.thread(lambda: done.wait())
        run.thread(things.clear)
        run.judge(lambda: Verdict(outcome=reference() is None))

    assert outcomes(build) == {(True, None)}


# Time ---------------------------------------------------------------------------------------------------------------


def timed(run: Run) -> None:
    """One thread waits for a lock at most five seconds; the other holds it for a while."""
    lock, log = threading.Lock(), []

    def hold() -> None:
        with lock:
            pass

    def wait() -> None:
        start = time.monotonic()
        got = lock.acquire(timeout=5)
        log.append((got, time.monotonic() - start))
        if got:
            lock.release()

    run.thread(hold)
    run.thread(wait)
    run.judge(lambda: Verdict(outcome=tuple(log)))


def test_a_timed_wait_may_time_out_while_it_is_busy() -> None:
    assert outcomes(timed) == {(((True, 0.0),), None), (((False, 5.0),), None)}


def test_with_no_early_timeouts_it_waits_as_long_as_somebody_can_move() -> None:
    assert outcomes(timed, timeouts=0) == {(((True, 0.0),), None)}


def test_when_nobody_can_move_the_earliest_deadline_comes_first() -> None:
    def build(run: Run) -> None:
        event, log = threading.Event(), []

        def wait(seconds: float) -> None:
            event.wait(seconds)
            log.append((seconds, time.monotonic()))

        run.thread(lambda: wait(3))
        run.thread(lambda: wait(2))
        run.judge(lambda: Verdict(outcome=tuple(log)))

    assert outcomes(build, timeouts=0) == {(((2, 1002.0), (3, 1003.0)), None)}


def test_a_clock_never_runs_behind_what_a_thread_has_seen() -> None:
    def build(run: Run) -> None:
        event, stamps = threading.Event(), [0.0]
        late: list[bool] = []

        def sleep() -> None:
            time.sleep(30)
            stamps[0] = time.monotonic()
            event.set()

        def look() -> None:
            event.wait()
            late.append(time.monotonic() < stamps[0])

        run.thread(sleep)
        run.thread(look)
        run.judge(lambda: Verdict(outcome=(tuple(late), stamps[0])))

    assert outcomes(build) == {(((False,), 1030.0), None)}


# The second net -----------------------------------------------------------------------------------------------------


def test_lines_can_be_switch_points() -> None:
    """A lost update in plain code, which no lock and no watched field would show."""

    def build(run: Run) -> None:
        counter = {"value": 0}

        def add() -> None:
            value = counter["value"]
            counter["value"] = value + 1

        run.thread(add)
        run.thread(add)
        run.judge(lambda: Verdict(outcome=counter["value"]))

    assert explore(build, DepthFirst()).outcomes == {(2, None)}
    assert explore(build, DepthFirst(2), tracer=line_tracer(__file__)).outcomes == {(1, None), (2, None)}


def test_the_end_of_a_given_up_run_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The executor's workers catch and log whatever ends them."""

    def build(run: Run) -> None:
        kept = []  # an executor that is forgotten tells its workers to end

        def main() -> None:
            kept.append(ThreadPoolExecutor(1))
            kept[0].submit(int).result()

        run.thread(main)

    assert set(explore(build, DPOR()).kinds) == {"deadlock"}
    assert caplog.records == []
