"""A connected socket, and how long it is waited for.

Owns the time limit of each call on a socket, and how the socket ends: closed, broken, or shut down by another thread.
Guarantees: no call outlasts the seconds it was given, nor the deadline of all that is under way; after `abort` none
blocks; a socket that is handed on has Python's time-outs again (`rest`). What is written and read, `Wire` knows.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from .._runtime.deadline import LONGEST, NEVER, Deadline, DeadlinePassed, now
from .._runtime.outside import frames, is_of_a_handler
from ..errors import Aborted, BadReply, ConnectionLost, MailError, NotConnected, ReplyTimedOut

#: Who waits for longer than this many seconds looks up once in so many.
TICK = 15.0

_SystemSocket = socket.socket  # not what may stand there later
_A = TypeVar("_A")
_R = TypeVar("_R")


class TimedSocket:
    """One connected socket.

    Args:
        sock: the socket; it is closed with this.

    Attributes:
        deadline: when the call under way must be over; set by whoever holds `sync_root`.
        kernel_ticks: a call on the socket that has no time-out of Python's ends after `TICK`, with BlockingIOError.
        ticks_here: ... also in the thread that is to make the next calls (`look_who_calls`).
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline: Deadline = NEVER
        self.is_open = True
        self.aborted = False
        self.kernel_ticks = self.ticks_here = False
        self._resting_timeout = sock.gettimeout()

    def tick_in_kernel(self) -> None:
        """Have the kernel count the ticks, where it can (Linux, a plain socket).

        Python asks with `poll` before each call on a socket that has a time-out: a system call more, each time. To be
        called by owners that show nobody the socket: `gettimeout()` says None then.
        """
        if self.kernel_ticks or sys.platform != "linux" or type(self.sock) is not _SystemSocket:
            return
        try:
            self._set_ticks(TICK)
            self.sock.settimeout(None)
            if not os.get_blocking(self.sock.fileno()):
                # What waits there is not the kernel but a loop that took Python's socket away (gevent): no tick comes.
                self._set_ticks(0.0)
                self.sock.settimeout(self._resting_timeout)
                return
        except OSError as exc:
            if is_from_outside(exc, self.sock):
                raise
            return  # another kernel than was thought, or no connection any more; nothing depends on it
        self.kernel_ticks = self.ticks_here = True

    def look_who_calls(self) -> None:
        """To be called before the calls of a thread: whether the kernel's ticks count for it.

        A signal goes to the main thread. There Python makes the call again that it interrupts (PEP 475), and the
        kernel begins to count anew: with a signal each second no tick would ever come, and no time-out. What has a
        time-out of Python's goes on with what is left.
        """
        self.ticks_here = self.kernel_ticks and threading.get_ident() != threading.main_thread().ident

    def _set_ticks(self, seconds: float) -> None:
        # A struct timeval. Where that is another one (64 bits of time on 32), the kernel refuses this.
        ticks = struct.pack("ll", int(seconds), int(seconds % 1.0 * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, ticks)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, ticks)

    def abort(self) -> None:
        """Drop the connection under whoever uses it: from any thread, without a lock, at once."""
        self.aborted = True
        try:
            # Not self.sock.shutdown: that of an SSLSocket first forgets its TLS state, and a thread between two
            # writes would go on in plaintext.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError as exc:
            if is_from_outside(exc, self.sock, socket.socket):  # gevent puts its own in that place
                raise
            # Else: closed already, or the peer was faster.

    def close(self) -> None:
        """Close without a farewell. May be called twice."""
        self.is_open = False
        self.sock.close()

    def rest(self) -> None:
        """Give the socket its own time-out back, for others to use. Whoever waits here looks after the one he needs."""
        try:
            if self.is_open and self.kernel_ticks:
                self._set_ticks(0.0)
                self.kernel_ticks = self.ticks_here = False
            if self.is_open and self.sock.gettimeout() != self._resting_timeout:
                self.sock.settimeout(self._resting_timeout)
        except OSError as exc:
            if is_from_outside(exc, self.sock):
                raise
            # Else: somebody closed it.

    def _patiently(self, call: Callable[[_A], _R], argument: _A, seconds: float | None, what: str) -> _R:
        """Call `send` or `recv`, for at most `seconds`; less where the call under way must be over before.

        Setting a time-out on a socket is a system call, which lets go of the GIL; so one that stands there is left
        where it is no longer than what is left. It may end a call too early: then nothing was sent or received, and the
        call is made again. Where the time is up, `deadline_passed` and `DeadlinePassed` say whose patience it was.
        """
        by_deadline = False
        while True:
            if not self.is_open:
                raise NotConnected("there is no connection")
            if self.deadline is not NEVER:
                left = min(self.deadline.at - now(), LONGEST)
                if seconds is None or left < seconds:
                    seconds, by_deadline = left, True
            if seconds is not None and seconds <= 0.0:
                raise _timed_out(f"{what} in time", by_deadline)
            tick = self.sock.gettimeout()
            by_kernel = self.ticks_here and (seconds is None or seconds >= TICK)
            if by_kernel:
                if tick is not None:
                    self.sock.settimeout(None)
                tick = TICK
            elif tick != seconds and (tick is None or seconds is None or not TICK <= tick <= seconds):
                tick = seconds if seconds is None or seconds < TICK else TICK
                self.sock.settimeout(tick)
            try:
                return call(argument)
            except (TimeoutError, BlockingIOError) as exc:
                if is_from_outside(exc, self.sock):
                    raise
                if not by_kernel if isinstance(exc, BlockingIOError) else exc.errno is not None:
                    raise  # not a tick: the system's own time-out has a number
                if tick is None or tick == seconds:
                    raise (DeadlinePassed if by_deadline else TimeoutError)("timed out") from None
                if seconds is not None:
                    seconds -= tick

    def _give_up(self, exc: OSError, what: str) -> NoReturn:
        """Close, and say what happened. Errors of our own are OSErrors too; those from outside go out as they are."""
        self.close()
        if is_from_outside(exc, self.sock):
            raise exc
        if self.aborted:
            raise Aborted("the connection was dropped by abort()") from exc
        if isinstance(exc, (ConnectionLost, BadReply)):
            raise exc
        if isinstance(exc, TimeoutError):
            by_deadline = isinstance(exc, DeadlinePassed)
            raise _timed_out(f"{what}: the server did not respond in time", by_deadline) from exc
        raise ConnectionLost(f"{what}: {exc.strerror or exc}") from exc


def is_from_outside(exc: BaseException, *called: object) -> bool:
    """Whether a signal handler raised this, or another thread, in the middle of what we did on a socket.

    A handler's `raise TimeoutError` is the textbook's time limit, and looks like the socket's own. Taken for that, a
    write that was over is made again: the message has its content twice. The handler's frame says what it is. What
    another thread sets, or gevent throws, has none: that is told by what a socket raises, which is of a class of the
    standard library, of its own, or of whoever has wrapped it, and has a number or says that it timed out. Whose frames
    it came through says nothing: anybody may have put a function of his own in the place of any of the socket's.

    Args:
        called: the socket, and what else was called that may be somebody's own.
    """
    if is_of_a_handler(exc):
        return True
    return not (isinstance(exc, (MailError, DeadlinePassed)) or _looks_its_own(exc, _roots(exc, called)))


def came_through(exc: BaseException, *called: object) -> bool:
    """Whether it came up in a frame of what is somebody's own among `called`."""
    return not _roots_of(called).isdisjoint(_modules(exc))


def _looks_its_own(exc: BaseException, its_own: set[str]) -> bool:
    kind = _root(type(exc).__module__)
    if kind in its_own or (kind in _STANDARD and _says_time_out(exc)):
        return True
    if kind not in _STANDARD or _was_thrown(exc):
        return False
    known = isinstance(exc, (ConnectionError, ssl.SSLError)) or str(exc) in _WITHOUT_NUMBER
    return known or getattr(exc, "errno", None) is not None


def _was_thrown(exc: BaseException) -> bool:
    """Whether somebody threw it into a greenlet that waited, as `gevent.Timeout` does.

    What a socket of gevent's throws there itself is of a class of gevent's, or says that it timed out.
    """
    return frames(exc)[-1].f_code.co_name.endswith("switch")


def _roots(exc: BaseException, called: tuple[object, ...]) -> set[str]:
    """The packages whose classes of errors may be a socket's."""
    return (_roots_of(called) | _modules(exc)) - _STANDARD - {"threadmail"}


def _modules(exc: BaseException) -> set[str]:
    """The packages whose frames it came through. No generator: what comes up as one is closed is lost."""
    return {_root(frame.f_globals.get("__name__")) for frame in frames(exc)}


def _roots_of(called: tuple[object, ...]) -> set[str]:
    """The packages, besides ours and the standard library's, that these come from, with all that they inherit from."""
    origins = [part for each in called for part in (each, *(each if isinstance(each, type) else type(each)).__mro__)]
    return {_root(getattr(each, "__module__", "")) for each in origins} - _STANDARD - {"threadmail"}


def _says_time_out(exc: BaseException) -> bool:
    """As the standard library's sockets do, and gevent's: "timed out", "The read operation timed out"."""
    return isinstance(exc, TimeoutError) and len(exc.args) == 1 and str(exc).endswith("timed out")


def _root(module: object) -> str:
    return str(module).partition(".")[0]


#: What the standard library's sockets say without a number, besides that they timed out.
_WITHOUT_NUMBER = ("AF_UNIX path too long", "getaddrinfo returns an empty list")
_STANDARD = frozenset(["builtins", "socket", "_socket", "ssl", "_ssl", "selectors"])


def _timed_out(message: str, by_deadline: bool) -> ReplyTimedOut:
    error = ReplyTimedOut(message)
    error.deadline_passed = by_deadline
    return error
