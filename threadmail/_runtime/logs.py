"""Log records that hold nobody up.

Owns `say`, by which the whole package logs. A log handler has a lock, and may do anything under it: one that mails by
this very client or sender waits for a thread that may be about to log, and that one must not wait for it in turn.
Guarantees: a record goes to each of its handlers on the thread that logs, as ever, where that handler's lock can be had
in a moment; else another thread, for which nobody waits, hands it over when it can, in order; and no handler that
raises comes between a message and its outcome. Leaves to the handler what it does with its time: one that is called is
waited for.

Programs change how `logging` logs: agents wrap `Logger.callHandlers`, others have loggers or handlers of their own.
What is not as the standard library has it is called as it is, and its lock is looked at before that, and not held.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from copy import copy
from functools import partial
from typing import Any, TypeAlias

from ..errors import TimedOut
from .deadline import Deadline
from .guard import holding
from .outside import is_of_a_handler

#: Seconds that a record waits for one handler: longer than a handler that writes needs, and less than anybody notices.
PATIENCE = 0.1

#: Records that wait for one handler that is busy; what comes on top of them is counted, and that is said.
MOST = 1000

#: Seconds for all that is still to be handed over, when the main thread ends and again when the interpreter does.
LAST_WORDS = 1.0

#: Where the records that wait for a handler, or a logger, are found: on it, to end with it.
_ATTRIBUTE = "_threadmail_behind"

#: As `logging` finds its own file. Of its methods agents wrap many; and `logging._srcfile` programs set to None.
_THEIR_FILE = logging.addLevelName.__code__.co_filename

_Act: TypeAlias = Callable[[logging.LogRecord], object]


def say(
    logger: logging.Logger, level: int, text: str, *details: object, exc_info: bool = False, stacklevel: int = 1
) -> None:
    """Log, as `logger.log` does.

    Args:
        stacklevel: 1 names the line that calls this, 2 the one that called that.
    Raises:
        BaseException: what a signal handler raises in this, and what a log handler raises that is no `Exception`.
    """
    if not logger.isEnabledFor(level):
        return
    try:
        if not _is_theirs(logger._log):  # it may change what is said
            logger.log(level, text, *details, exc_info=exc_info, stacklevel=stacklevel + 1)
            return
        frame = sys._getframe(stacklevel)  # `findCaller` counts otherwise on 3.10
        raised = sys.exc_info() if exc_info else None
        record = logger.makeRecord(
            logger.name, level, frame.f_code.co_filename, frame.f_lineno, text, details, raised, frame.f_code.co_name
        )
        handlers = list(_handlers(logger))
        if handlers and _is_theirs(logger.handle) and _is_theirs(logger.callHandlers):
            _call_handlers(logger, handlers, record)
        else:
            last = [each for each in (logging.lastResort,) if each is not None]
            _hand_over(logger, handlers or last, record)
    except Exception as exc:
        if is_of_a_handler(exc):
            raise
        # Else a broken log handler, which must not take the place of what it was to tell.


def _is_theirs(method: Any) -> bool:
    """Whether it is as the standard library has it: of no subclass, and wrapped by nobody."""
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    return code is not None and code.co_filename == _THEIR_FILE


def _handlers(logger: logging.Logger) -> Iterator[logging.Handler]:
    at: logging.Logger | None = logger
    while at is not None:
        yield from list(at.handlers)
        at = at.parent if at.propagate else None


def _call_handlers(logger: logging.Logger, handlers: list[logging.Handler], record: logging.LogRecord) -> None:
    """As `Logger.handle` and `callHandlers`, each handler in turn: nobody has the lock of one while at another."""
    found: Any = not logger.disabled and logger.filter(record)
    if not found:
        return
    record = found if isinstance(found, logging.LogRecord) else record  # another one, since 3.12
    for handler in handlers:
        if record.levelno >= handler.level:
            if _is_theirs(handler.handle) and _is_theirs(handler.acquire) and _is_theirs(handler.release):
                _emit(handler, record)
            else:
                _hand_over(handler, [handler], record)


def _emit(handler: logging.Handler, record: logging.LogRecord) -> None:
    """As `Handler.handle`: its filters, which may have locks of their own, are asked without its own."""
    found: Any = handler.filter(record)
    if not found:
        return
    record = found if isinstance(found, logging.LogRecord) else record
    if handler.lock is None:
        handler.emit(record)
    elif not _is_behind(handler):
        inside = False
        try:
            with holding(handler.lock, Deadline.after(PATIENCE)):
                inside = True
                handler.emit(record)
            return
        except TimedOut:
            if inside:  # it mails, and that took too long
                raise
    # Its own way to the lock, for `emit` counts on being called under it; the filters have had their say.
    _put_behind(handler, partial(_emit_under, handler), record)


def _emit_under(handler: logging.Handler, record: logging.LogRecord) -> None:
    assert handler.lock is not None
    with handler.lock:
        handler.emit(record)


def _hand_over(whose: logging.Logger | logging.Handler, handlers: list[logging.Handler], record: Any) -> None:
    """Call `handle` as it is, when none of these handlers is busy."""
    if _is_behind(whose) or not all(_is_free(handler) for handler in handlers):
        _put_behind(whose, whose.handle, record)
    else:
        whose.handle(record)


def _is_free(handler: logging.Handler) -> bool:
    lock = getattr(handler, "lock", None)  # some are no `Handler`, and have none
    if lock is None:
        return True
    try:
        with holding(lock, Deadline.after(PATIENCE)):
            return True
    except TimedOut:
        return False


# What waits for a handler ---------------------------------------------------------------------------------------------


def _is_behind(whose: object) -> bool:
    behind: _Behind | None = getattr(whose, _ATTRIBUTE, None)
    return behind is not None and behind.is_busy


def _put_behind(whose: Any, act: Callable[[Any], object], record: logging.LogRecord) -> None:
    """Have it done later, on another thread. The record is one that keeps no frames, and with them messages, alive."""
    kept = copy(record)
    kept.msg, kept.args = record.getMessage(), None
    if record.exc_info:
        kept.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
        kept.exc_info = None
    _behind(whose).put(partial(_in_context, copy_context(), act), kept)


def _in_context(context: Context, act: _Act, record: logging.LogRecord) -> None:
    context.run(act, record)


class _Behind:
    """What is still to be done for one handler, and the thread that does it.

    Attributes:
        acts: with the records that they are for, in order. Only who has `busy` takes any out.
        busy: a thread is about it; never waited for but at exit.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.acts: deque[tuple[_Act, logging.LogRecord]] = deque()
        self.busy = threading.Lock()
        self._dropped = 0

    @property
    def is_busy(self) -> bool:
        return self.pid == os.getpid() and (self.busy.locked() or bool(self.acts))

    def put(self, act: _Act, record: logging.LogRecord) -> None:
        """Have it done some time. In the middle of this a signal handler may log as well."""
        if len(self.acts) < MOST:
            self.acts.append((act, record))
        else:
            self._dropped += 1
        if not self.busy.locked():
            try:  # not by `start_thread`, which logs
                threading.Thread(target=self.work, name="threadmail-log", daemon=True).start()
            except (RuntimeError, MemoryError):
                pass  # no thread to be had: whoever logs next tries again

    def work(self) -> None:
        """Do what there is, if nobody else is about it."""
        # Again: who has put one in the last moment has perhaps seen that somebody is.
        while self.acts and self.busy.acquire(blocking=False):
            try:
                while self.acts:
                    self._next()
            finally:
                self.busy.release()

    def _next(self) -> None:
        act, record = self.acts.popleft()
        try:
            act(record)
            if self._dropped and not self.acts:
                dropped, self._dropped = self._dropped, 0
                words = f"{dropped} records were dropped, for this handler was busy"
                act(logging.makeLogRecord({**vars(record), "msg": words, "exc_text": None}))
        except BaseException:  # noqa: BLE001 - as in `say`; and one that exits has nobody to tell here
            pass


def _behind(whose: Any) -> _Behind:
    """That of a handler or logger in this process. One made by two threads at once is that of one of them."""
    found: _Behind | None = whose.__dict__.get(_ATTRIBUTE)
    if found is not None and found.pid != os.getpid():  # a forked child: its thread did not come along
        whose.__dict__.pop(_ATTRIBUTE, None)
    made: _Behind = whose.__dict__.setdefault(_ATTRIBUTE, _Behind())
    _all.add(made)
    return made


_all: weakref.WeakSet[_Behind] = weakref.WeakSet()


def _at_exit() -> None:
    """Handlers have a moment for what is still behind, before `logging` itself ends."""
    end = Deadline.after(LAST_WORDS)
    waiting: list[_Behind] = []
    while _all:  # one by one, for other threads may add some; who logs later adds his again
        try:
            waiting.append(_all.pop())
        except KeyError:
            break
    _all.update(waiting)
    for behind in waiting:
        if behind.is_busy:
            behind.put(_nothing, logging.makeLogRecord({}))  # where there was no thread to be had, there may be one now
            if behind.busy.acquire(timeout=end.remaining() or 0.0):
                behind.busy.release()


def _nothing(_: logging.LogRecord) -> None:
    """Said behind the last record."""


# `logging` ends by `atexit`, which is called after this, for it began earlier. Children of `multiprocessing` come only
# to what `threading` calls; private, and so left out where it is not there, or the interpreter is ending already.
atexit.register(_at_exit)
try:
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):
    pass
