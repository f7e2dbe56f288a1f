"""Log records that hold nobody up.

Owns `say`, by which the whole package logs. A log handler has a lock, and may do anything under it: one that mails by
this very client or sender waits for a thread that may be about to log, and that one must not wait for it in turn.
Guarantees: a record goes to each of its handlers on the thread that logs, as ever, where that handler's lock can be had
in a moment; else another thread, for which nobody waits, hands it over when it can, in order; and no handler that
raises comes between a message and its outcome. Leaves to the handler what it does with its time: one that is called is
waited for.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext

from ..errors import TimedOut
from .deadline import Deadline
from .guard import holding
from .outside import is_of_a_handler

#: Seconds that a record waits for one handler: longer than a handler that writes needs, and less than anybody notices.
PATIENCE = 0.1

#: Records that wait for one handler that is busy; what comes on top of them is counted, and that is said.
MOST = 1000

#: Seconds at interpreter exit for all that is still to be handed over.
LAST_WORDS = 1.0

#: Where the records that wait for a handler are found: on the handler itself, to end with it.
_ATTRIBUTE = "_threadmail_behind"


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
        frame = sys._getframe(stacklevel)  # `findCaller` counts otherwise on 3.10
        raised = sys.exc_info() if exc_info else None
        record = logger.makeRecord(
            logger.name, level, frame.f_code.co_filename, frame.f_lineno, text, details, raised, frame.f_code.co_name
        )
        found = not logger.disabled and logger.filter(record)
        if found:
            _hand_over(logger, found if isinstance(found, logging.LogRecord) else record)  # another one, since 3.12
    except Exception as exc:
        if is_of_a_handler(exc):
            raise
        # Else a broken log handler, which must not take the place of what it was to tell.


def _hand_over(logger: logging.Logger, record: logging.LogRecord) -> None:
    """As `Logger.callHandlers`, each handler in turn: nobody has the lock of one while he is at another."""
    handlers = list(_handlers(logger))
    if not handlers or type(logger).callHandlers is not logging.Logger.callHandlers:
        logger.callHandlers(record)  # the last resort of `logging`; or a logger that knows better
        return
    for handler in handlers:
        if record.levelno >= handler.level:
            _give(handler, record)


def _handlers(logger: logging.Logger) -> Iterator[logging.Handler]:
    at: logging.Logger | None = logger
    while at is not None:
        yield from list(at.handlers)
        at = at.parent if at.propagate else None


def _give(handler: logging.Handler, record: logging.LogRecord) -> None:
    behind: _Behind | None = getattr(handler, _ATTRIBUTE, None)
    if behind is None or not behind.is_busy:
        lock, inside = handler.lock, False
        try:
            with nullcontext() if lock is None else holding(lock, Deadline.after(PATIENCE)):
                inside = True
                handler.handle(record)
            return
        except TimedOut:
            if inside:  # it mails, and that took too long
                raise
    _behind(handler).put(record)


class _Behind:
    """What one handler is still to be given, and the thread that gives it.

    Attributes:
        records: in order. Only who has `busy` takes any out.
        busy: a thread is about it; never waited for but at exit.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = weakref.ref(handler)  # which has this one
        self.pid = os.getpid()
        self.records: deque[logging.LogRecord] = deque()
        self.busy = threading.Lock()
        self._dropped = 0

    @property
    def is_busy(self) -> bool:
        return self.pid == os.getpid() and (self.busy.locked() or bool(self.records))

    def put(self, record: logging.LogRecord) -> None:
        """Have it handed over some time. In the middle of this a signal handler may log as well."""
        if len(self.records) < MOST:
            self.records.append(record)
        else:
            self._dropped += 1
        self.start()

    def start(self) -> None:
        """Have a thread see to it, if none does. Not by `start_thread`, which logs."""
        taken: list[bool] = []
        started = False
        try:
            taken.extend(map(self.busy.acquire, (False,)))  # in one step, as in `HeldInTime`
            if taken[0]:
                threading.Thread(target=self.work, name="threadmail-log", daemon=True).start()
                started = True
        except (RuntimeError, MemoryError):
            pass  # no thread to be had: whoever logs next tries again
        finally:
            if taken and taken[0] and not started:
                self.busy.release()

    def work(self) -> None:
        """Hand over what there is."""
        while True:
            try:
                while self.records:
                    self._give(self.records[0])
                    del self.records[0]
                if self._dropped:
                    self._give(_dropped(self._dropped))
                    self._dropped = 0
            finally:
                self.busy.release()
            # Who has put one meanwhile has perhaps seen that somebody is about it.
            if not self.records or not self.busy.acquire(blocking=False):
                return

    def _give(self, record: logging.LogRecord) -> None:
        handler = self._handler()
        try:
            if handler is not None:
                handler.handle(record)
        except Exception:  # noqa: BLE001 - as in `say`
            pass


def _dropped(number: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__.partition(".")[0],
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "%s records were dropped, for this handler was busy",
            "args": (number,),
        }
    )


def _behind(handler: logging.Handler) -> _Behind:
    """That of a handler in this process. One made by two threads at once is that of one of them."""
    found: _Behind | None = handler.__dict__.get(_ATTRIBUTE)
    if found is not None and found.pid != os.getpid():  # a forked child: its thread did not come along
        del handler.__dict__[_ATTRIBUTE]
    made: _Behind = handler.__dict__.setdefault(_ATTRIBUTE, _Behind(handler))
    _all.add(made)
    return made


_all: weakref.WeakSet[_Behind] = weakref.WeakSet()


def _at_exit() -> None:
    """Handlers have a moment for what is still behind: before `logging` itself ends, which began earlier."""
    end = Deadline.after(LAST_WORDS)
    for behind in list(_all):
        if behind.is_busy and behind.busy.acquire(timeout=end.remaining() or 0.0):
            behind.busy.release()


atexit.register(_at_exit)
