"""Name lookups that end in time.

Owns the threads that ask the resolver. `getaddrinfo` can be neither interrupted nor told how long it may take: where
the name server is dead it blocks for half a minute. So it is asked on a thread of its own, and who waits for the answer
waits until a deadline, or until it is called off. Guarantees: for each question at most one thread asks, and whoever
has the same question waits for the same answer, so that lookups given up do not pile up; an address in figures and the
name of this machine need no thread. Leaves connecting to `smtp`.
"""

from __future__ import annotations

import copy
import errno
import functools
import queue
import re
import socket
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from .._message.address import a_label
from .._runtime.deadline import Deadline
from .._runtime.outside import is_of_a_handler
from .._runtime.process import here
from .._runtime.threads import join_thread, start_thread
from ..config import is_loopback
from .socket import is_from_outside

#: Seconds for this machine's own name: without it there is another one to give in EHLO.
OWN_NAME = 5.0

_T = TypeVar("_T")


class CalledOff(Exception):
    """Whoever waits for the answer was told to stop waiting."""


class ResolverFailed(Exception):
    """The resolver, on its thread, raised its argument; so that this is told from what strikes who waits for it."""


class _Lookup:
    """One question while it is being asked. Has no lock: each side writes first and looks then, so none is missed."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self.waiting: list[Waiter] = []
        self.answer: list[Any] = []  # one: what the question came to, or the exception
        self.thread: threading.Thread | None = None
        self.unstarted: list[bool] = [True]  # who takes it out has it asked; one that was struck before leaves it

    def run(self, key: Hashable) -> None:
        try:
            answer = self._ask()
        except Exception as exc:
            if is_of_a_handler(exc):  # where there was no thread for it, and so for this one alone
                self.interrupted(key)
                raise
            answer = exc.with_traceback(None)
        except BaseException:  # from outside, and for this thread alone
            self.interrupted(key)
            raise
        self._settle(key, answer)

    def interrupted(self, key: Hashable) -> None:
        """Nobody asks any more. Others who wait for this answer must not do so for ever."""
        self._settle(key, InterruptedError(errno.EINTR, "the lookup of the name was interrupted"))

    def _settle(self, key: Hashable, answer: Any) -> None:
        self.answer.append(answer)
        _under_way.pop(key, None)  # before anybody is told: who asks after that asks anew
        for waiter in list(self.waiting):
            waiter.wake()


_under_way: dict[Hashable, _Lookup] = {}  # by process and question; setdefault is atomic, so that one of many starts it


class Waiter:
    """One thread's wait for one answer. `call_off` takes no lock, so that a signal handler may call it as well."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def wake(self) -> None:
        self._news.put(True)

    def call_off(self) -> None:
        """End the wait now."""
        self._news.put(False)

    def ask(self, question: Hashable, ask: Callable[[], _T], limit: Deadline) -> _T:
        """What `ask()` comes to, asked on another thread, or by somebody else who has the same question.

        Raises:
            TimeoutError: nothing came before the limit. The lookup goes on, and answers who asks next.
            CalledOff: as it says.
        """
        key = (here(), question)  # threads do not come along with a fork
        mine = _Lookup(ask)
        lookup = _under_way.setdefault(key, mine)
        lookup.waiting.append(self)
        if lookup.unstarted:
            _start(lookup, key)
        try:
            told = bool(lookup.answer) or self._news.get(timeout=limit.remaining())
        except queue.Empty:
            raise TimeoutError("the resolver timed out") from None
        finally:
            lookup.waiting.remove(self)
        if not told:
            raise CalledOff
        join_thread(lookup.thread, 1.0)  # it has nothing left to do
        answer = lookup.answer[0]
        if isinstance(answer, BaseException):
            raise copy.copy(answer)  # several threads may get it, and each adds its own traceback
        return cast(_T, answer)


def _start(lookup: _Lookup, key: Hashable) -> None:
    taken: list[bool] = []
    try:
        try:
            taken.extend(map(lookup.unstarted.pop, (-1,)))  # and noted, in one step
        except IndexError:
            return  # another one has it asked
        # A daemon: one that was given up may hang for longer than the interpreter wants to wait.
        lookup.thread = start_thread(lookup.run, name="threadmail-lookup", args=(key,))
        if lookup.thread is None:
            lookup.run(key)
    except BaseException:
        if taken:
            lookup.interrupted(key)
        raise


def addresses(host: str, port: int, waiter: Callable[[], Waiter], limit: Deadline) -> list[tuple[str, int]]:
    """Where `host` may be reached, in the resolver's order, in the form `socket.create_connection` takes.

    Args:
        waiter: makes what waits, if there is something to wait for.
    Raises:
        TimeoutError, CalledOff: as `Waiter.ask`.
        OSError, ValueError, OverflowError: there is no such host, or cannot be one; or port.
        ResolverFailed: with what says so, where another thread asked.
    """
    if isinstance(port, int) and not 0 <= port <= 65535:  # code written for smtplib may give the name of a service
        raise OverflowError("port must be 0-65535")  # the resolver would take it modulo 65536
    if not a_label(host).isascii():
        raise ValueError("it would be looked up as another name: write it in ASCII (xn--...)")
    try:
        found = _resolve(host, port, socket.AI_NUMERICHOST)  # no resolver is asked for an address
    except socket.gaierror:
        # This machine's own name stands in a file.
        if is_loopback(host):
            found = _resolve(host, port, 0)
        else:
            found = waiter().ask((host, port), functools.partial(_answer, host, port), limit)
    return [(address, port) for address in found]


def _answer(host: str, port: int) -> list[str]:
    try:
        return _resolve(host, port, 0)
    except Exception as exc:
        if is_of_a_handler(exc):  # there was no thread for it
            raise
        raise ResolverFailed(exc) from None


def _resolve(host: str, port: int, flags: int) -> list[str]:
    found: list[str] = []
    for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags):
        address = str(place[0])
        if len(place) == 4 and place[3] and "%" not in address:
            address = f"{address}%{place[3]}"  # a link-local address means nothing without its interface
        found.append(address)
    return list(dict.fromkeys(found))


def default_local_hostname(end: Deadline, waiter: Callable[[], Waiter] = Waiter) -> str:
    """This machine's name for EHLO, as smtplib finds it, but once for each process: it takes seconds on bad DNS.

    Where the resolver does not say it in time, it is the address literal that smtplib falls back to.

    Args:
        waiter: makes what waits, if there is something to wait for.
    Raises:
        CalledOff: as `Waiter.ask`.
    """
    if _own_name.cache_info().currsize:
        return _own_name()
    try:
        return waiter().ask("the name of this machine", _own_name, end.within(OWN_NAME))
    except OSError as exc:
        if is_from_outside(exc):
            raise
        return "[127.0.0.1]"  # too late, or interrupted


@functools.lru_cache(maxsize=1)
def _own_name() -> str:
    try:
        name = socket.getfqdn()
    except (OSError, ValueError) as exc:  # a label of it is too long for any resolver
        if is_of_a_handler(exc):  # there was no thread for it
            raise
        name = ""
    if "." in name and _can_be_said(name):
        return name
    try:
        return f"[{socket.gethostbyname(socket.gethostname())}]"
    except (OSError, ValueError) as exc:
        if is_of_a_handler(exc):
            raise
        return "[127.0.0.1]"


def _can_be_said(name: str) -> bool:
    """Whether EHLO can hold the name; else it takes an address literal (RFC 5321 section 4.1.4)."""
    return re.fullmatch(r"[!-~]{1,255}", name) is not None and all(len(label) <= 63 for label in name.split("."))
