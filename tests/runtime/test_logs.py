"""Records go to their handlers as ever, and wait for none that somebody is in."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import pytest

from tests.support.loggers import handed_over
from threadmail._runtime import logs
from threadmail._runtime.deadline import Deadline
from threadmail._runtime.guard import holding
from threadmail._runtime.locks import is_owned
from threadmail._runtime.logs import say

SOON = 10.0


class Kept(logging.Handler):
    """Keeps what it is given, with the thread that gave it."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.records: queue.Queue[logging.LogRecord] = queue.Queue()
        self.threads: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.append(threading.get_ident())
        self.records.put(record)

    def said(self, number: int) -> list[str]:
        return [self.records.get(timeout=SOON).getMessage() for _ in range(number)]


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    made = logging.getLogger(f"threadmail.tests.{request.node.name}")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    yield made
    made.handlers.clear()


@contextmanager
def busy(handler: logging.Handler) -> Iterator[None]:
    """Another thread is in the handler meanwhile."""
    inside, leave = threading.Event(), threading.Event()

    def be_there() -> None:
        assert handler.lock is not None
        with handler.lock:
            inside.set()
            leave.wait(SOON)

    thread = threading.Thread(target=be_there)
    thread.start()
    assert inside.wait(SOON)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def by_itself(act: Callable[[], object]) -> None:
    """On another thread, which must come back from it."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive(), "it waits for the handler"


def count(log: logging.Logger, most: int) -> None:
    for number in range(most):
        say(log, logging.INFO, "%s", number)


def not_for_records(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def refused(thread: threading.Thread) -> None:
        if thread.name == "threadmail-log":
            raise RuntimeError("can't start new thread")
        start(thread)

    return refused


def over(handler: logging.Handler) -> None:
    """The thread that handed over has ended."""
    handed_over()
    assert not handler.__dict__["_threadmail_behind"].is_busy


def test_a_record_is_what_logging_itself_would_have_made(log: logging.Logger) -> None:
    here, there = Kept(), Kept()
    log.handlers[:] = [here]
    try:
        raise LookupError("x")
    except LookupError:
        say(log, logging.WARNING, "%s of %s", 1, "two", exc_info=True)
        log.handlers[:] = [there]
        log.log(logging.WARNING, "%s of %s", 1, "two", exc_info=True)
    ours, its = here.records.get_nowait(), there.records.get_nowait()
    assert here.threads == [threading.get_ident()]
    assert (ours.getMessage(), ours.levelname, ours.name) == (its.getMessage(), its.levelname, its.name)
    assert (ours.pathname, ours.funcName, ours.lineno + 2) == (its.pathname, its.funcName, its.lineno)
    assert (ours.threadName, ours.exc_info) == (its.threadName, its.exc_info)


def test_handlers_are_asked_in_the_order_of_logging_and_by_their_levels(log: logging.Logger) -> None:
    child, own, high, above = logging.getLogger(f"{log.name}.child"), Kept(), Kept(logging.ERROR), Kept()
    child.handlers[:] = [own, high]
    log.handlers[:] = [above]
    say(child, logging.INFO, "low")
    say(child, logging.ERROR, "high")
    assert (own.said(2), high.said(1), above.said(2)) == (["low", "high"], ["high"], ["low", "high"])
    child.propagate = False
    say(child, logging.ERROR, "own")
    assert (own.said(1), above.records.empty()) == (["own"], True)
    child.handlers.clear()


def test_what_nobody_wants_to_hear_is_not_said(log: logging.Logger) -> None:
    handler = Kept()
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING)
    say(log, logging.INFO, "too low")
    log.addFilter(lambda record: "not" not in record.getMessage())
    say(log, logging.ERROR, "not this")
    log.disabled = True
    say(log, logging.ERROR, "disabled")
    log.disabled = False
    assert handler.records.empty()


def test_without_handlers_it_is_logging_that_has_the_last_resort(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())
    log.handlers.clear()  # pytest's
    say(log, logging.ERROR, "all alone")
    assert "all alone" in capsys.readouterr().err


def test_a_logger_that_knows_better_is_let_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(logging.Logger):
        got: list[str] = []  # noqa: RUF012

        def callHandlers(self, record: logging.LogRecord) -> None:
            self.got.append(record.getMessage())

    logger = Own("own")
    logger.addHandler(logging.NullHandler())  # which has no lock
    say(logger, logging.ERROR, "mine")
    assert Own.got == ["mine"]


def test_nobody_waits_for_a_handler_that_somebody_is_in_and_it_is_told_later_in_order(log: logging.Logger) -> None:
    slow, quick = Kept(), Kept()
    log.handlers[:] = [slow, quick]
    with busy(slow):
        by_itself(partial(count, log, 5))
        assert quick.said(5) == list("01234")
        assert slow.records.empty()
    assert slow.said(5) == list("01234")
    over(slow)
    say(log, logging.INFO, "as ever")
    assert slow.said(1) == ["as ever"]
    assert slow.threads[-1] == threading.get_ident()


def test_only_the_first_one_waits_a_moment_for_it(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, asked = Kept(), []

    def seen(lock: Any, end: Deadline) -> Any:
        asked.append(lock)
        return holding(lock, end)

    log.handlers[:] = [handler]
    monkeypatch.setattr(logs, "holding", seen)
    with busy(handler):
        by_itself(partial(count, log, 5))
    assert handler.said(5) == list("01234")
    assert len(asked) == 1
    over(handler)


def test_the_thread_that_is_in_the_handler_may_log_there(log: logging.Logger) -> None:
    """A re-entrant lock is had by its own thread at once, as `logging` has it."""
    handler = Kept()
    log.handlers[:] = [handler]
    assert handler.lock is not None
    with handler.lock:
        say(log, logging.INFO, "inside")
    assert handler.said(1) == ["inside"]


def test_a_handler_that_raises_is_nobodys_concern_and_one_that_exits_is(log: logging.Logger) -> None:
    class Raising(logging.Handler):
        def __init__(self, what: BaseException) -> None:
            super().__init__()
            self.what = what

        def handle(self, record: logging.LogRecord) -> bool:
            raise self.what

    log.handlers[:] = [Raising(LookupError())]
    say(log, logging.ERROR, "x")
    log.handlers[:] = [Raising(SystemExit())]
    with pytest.raises(SystemExit):
        say(log, logging.ERROR, "x")


def test_behind_one_that_raises_the_rest_is_told(log: logging.Logger) -> None:
    class Raises(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            raise LookupError

    handler = Raises()
    log.handlers[:] = [handler]
    with busy(handler):
        by_itself(partial(count, log, 3))
    assert handler.said(3) == list("012")
    over(handler)


def test_there_is_an_end_to_what_waits_and_that_is_said(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST", 3)
    handler = Kept()
    log.handlers[:] = [handler]
    with busy(handler):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", not_for_records(threading.Thread.start))
            by_itself(partial(count, log, 5))
        by_itself(partial(say, log, logging.INFO, "5"))
    assert handler.said(4) == ["0", "1", "2", "3 records were dropped, for this handler was busy"]
    over(handler)


def test_where_there_is_no_thread_the_next_one_tries_again(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Kept()
    log.handlers[:] = [handler]
    with busy(handler):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", not_for_records(threading.Thread.start))
            by_itself(lambda: say(log, logging.INFO, "first"))
        by_itself(lambda: say(log, logging.INFO, "second"))
    assert handler.said(2) == ["first", "second"]
    over(handler)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_hands_over_by_a_thread_of_its_own(log: logging.Logger) -> None:
    handler = Kept()
    log.handlers[:] = [handler]
    with busy(handler):
        by_itself(lambda: say(log, logging.INFO, "the parent's"))
        child = os.fork()
        if not child:
            status = 1
            try:
                # `logging` makes its handlers' locks anew in a child.
                say(log, logging.INFO, "the child's")
                status = 0 if handler.said(1) == ["the child's"] else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert handler.said(1) == ["the parent's"]
    over(handler)


def test_at_exit_what_is_behind_has_a_moment(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more than that: the handler may be one that never comes back."""
    handler = Kept()
    log.handlers[:] = [handler]
    with busy(handler):
        by_itself(lambda: say(log, logging.INFO, "last"))
        monkeypatch.setattr(logs, "LAST_WORDS", 0.01)
        logs._at_exit()
        assert handler.records.empty()
    monkeypatch.setattr(logs, "LAST_WORDS", SOON)
    logs._at_exit()
    assert handler.records.get_nowait().getMessage() == "last"
    over(handler)


def test_an_interrupted_attempt_to_have_it_seen_to_leaves_it_to_the_next(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Kept()
    log.handlers[:] = [handler]

    def struck(*args: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    with busy(handler):
        with monkeypatch.context() as patched:
            patched.setattr(threading, "Thread", struck)
            with pytest.raises(KeyboardInterrupt):
                say(log, logging.INFO, "first")
        assert not handler.__dict__["_threadmail_behind"].busy.locked()
        by_itself(lambda: say(log, logging.INFO, "second"))
    assert handler.said(2) == ["first", "second"]
    over(handler)


# What is not as the standard library has it ---------------------------------------------------------------------------


def test_an_agent_that_has_wrapped_the_class_hears_of_it(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Sentry and New Relic do: the records of ours never came there."""
    heard: list[str] = []
    theirs = logging.Logger.callHandlers

    @wraps(theirs)
    def wrapped(logger: logging.Logger, record: logging.LogRecord) -> None:
        heard.append(record.getMessage())
        theirs(logger, record)

    handler = Kept()
    log.handlers[:] = [handler]
    monkeypatch.setattr(logging.Logger, "callHandlers", wrapped)
    say(log, logging.ERROR, "said")
    assert (heard, handler.said(1)) == (["said"], ["said"])
    with busy(handler):
        by_itself(partial(say, log, logging.ERROR, "behind"))
    assert handler.said(1) == ["behind"]
    assert heard == ["said", "behind"]
    handed_over()


@pytest.mark.parametrize("method", ["handle", "callHandlers", "_log"])
def test_what_a_logger_has_of_its_own_is_called(
    log: logging.Logger, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(log, method, lambda *args, **settings: called.append(args))
    say(log, logging.ERROR, "x")
    assert len(called) == 1


def test_a_handler_that_is_no_handler_has_its_record_and_so_have_those_behind_it(log: logging.Logger) -> None:
    class Duck:
        level = logging.NOTSET

        def handle(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    heard: list[str] = []
    behind: Any = Kept()
    duck: Any = Duck()
    log.handlers[:] = [duck, behind]
    say(log, logging.ERROR, "x")
    assert (heard, behind.said(1)) == (["x"], ["x"])


def test_filters_of_a_handler_are_asked_without_its_lock(log: logging.Logger) -> None:
    """One that removes duplicates has a lock of its own, and who has that may be about to log."""
    handler, own = Kept(), threading.Lock()
    held: list[bool] = []

    def filtered(record: logging.LogRecord) -> bool:
        with own:
            held.append(is_owned(handler.lock))
        return record.getMessage() != "dropped"

    handler.addFilter(filtered)
    log.handlers[:] = [handler]
    say(log, logging.ERROR, "kept")
    say(log, logging.ERROR, "dropped")
    assert (held, handler.said(1), handler.records.empty()) == ([False, False], ["kept"], True)


def test_a_lock_that_is_not_for_one_thread_twice_will_do(log: logging.Logger) -> None:
    class Plain(Kept):
        def createLock(self) -> None:
            self.lock: Any = threading.Lock()

    handler = Plain()
    log.handlers[:] = [handler]
    by_itself(partial(say, log, logging.ERROR, "x"))
    assert handler.said(1) == ["x"]


def test_a_record_at_which_a_handler_exits_is_given_once_and_the_rest_follows(log: logging.Logger) -> None:
    class Exits(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            raise SystemExit

    handler = Exits()
    log.handlers[:] = [handler]
    with busy(handler):
        by_itself(partial(count, log, 3))
    assert handler.said(3) == list("012")
    over(handler)
    assert handler.records.empty()


def test_what_waits_keeps_no_frames_and_says_what_was_raised(log: logging.Logger) -> None:
    class Message: ...

    def fails() -> None:
        message = Message()
        alive.append(weakref.ref(message))
        raise LookupError("why")

    def logs_it() -> None:
        try:
            fails()
        except LookupError:
            say(log, logging.ERROR, "it failed: %s", "x", exc_info=True)

    handler, alive = Kept(), list[weakref.ref[Message]]()
    log.handlers[:] = [handler]
    with busy(handler):
        by_itself(logs_it)
        gc.collect()
        assert alive[0]() is None
    record = handler.records.get(timeout=SOON)
    assert record.getMessage() == "it failed: x"
    assert "LookupError: why" in logging.Formatter().format(record)
    over(handler)


def test_what_is_handed_over_later_has_the_context_it_was_said_in(log: logging.Logger) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    class Tells(Kept):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(request.get())
            super().emit(record)

    def in_a_request() -> None:
        request.set("7")
        say(log, logging.ERROR, "x")

    handler = Tells()
    log.handlers[:] = [handler]
    with busy(handler):
        by_itself(in_a_request)
    assert (handler.said(1), seen) == (["x"], ["7"])
    over(handler)


def test_a_start_that_is_interrupted_though_the_thread_runs_has_no_record_given_twice(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, start = Kept(), threading.Thread.start
    log.handlers[:] = [handler]

    def struck(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "threadmail-log":
            raise KeyboardInterrupt

    with busy(handler):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", struck)
            with pytest.raises(KeyboardInterrupt):
                say(log, logging.INFO, "0")
        by_itself(partial(say, log, logging.INFO, "1"))
    assert handler.said(2) == ["0", "1"]
    over(handler)
    assert handler.records.empty()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_multiprocessing_gives_it_a_moment_too() -> None:
    """Such a child ends without `atexit`."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("the child's\n", "")


CHILD = """
import logging, multiprocessing, sys, threading
from threadmail._runtime.logs import say

class Writes(logging.Handler):
    def emit(self, record):
        sys.stdout.write(record.getMessage() + chr(10))
        sys.stdout.flush()

def child():
    handler = Writes()
    log = logging.getLogger("threadmail.x")
    log.handlers[:] = [handler]
    inside, leave = threading.Event(), threading.Event()
    def be_there():
        with handler.lock:
            inside.set()
            leave.wait(10)
    threading.Thread(target=be_there, daemon=True).start()
    inside.wait(10)
    say(log, logging.ERROR, "the child's")
    timer = threading.Timer(0.2, leave.set)
    timer.daemon = True
    timer.start()

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
"""
