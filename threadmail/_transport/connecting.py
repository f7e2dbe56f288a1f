"""What surrounds a connect.

Owns the TLS context of those who bring none, how long its parts may take, and the reasons why there is no connection,
in words and as the error that callers can tell apart. Opens nothing itself.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from .._runtime.deadline import NEVER, Deadline, DeadlinePassed
from ..errors import ConnectFailed, ConnectionRefused, ConnectTimedOut, HostNotFound
from .socket import is_from_outside

_T = TypeVar("_T")


def tls_context(context: ssl.SSLContext | None, certfile: str | None, keyfile: str | None) -> ssl.SSLContext:
    """`context`, or one that verifies the server's certificate and name, with TLS 1.2 or later."""
    if context is None:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certfile is not None:
            context.load_cert_chain(certfile, keyfile)
    elif certfile is not None or keyfile is not None:
        raise ValueError("context and keyfile or certfile are mutually exclusive")
    return context


def why_not_connected(exc: OSError | ValueError | OverflowError, where: str) -> ConnectFailed:
    """The error of ours for what the system or the resolver raised."""
    if isinstance(exc, ConnectFailed):
        return exc
    if isinstance(exc, OverflowError):
        return ConnectFailed(f"cannot connect to {where}: {exc}", transient=False)
    if not isinstance(exc, OSError):  # an empty or too long label, a NUL: no resolver was asked
        return HostNotFound(f"{where} is no host name: {exc}", transient=False)
    if isinstance(exc, socket.gaierror):
        unknown = exc.errno == socket.EAI_NONAME
        return HostNotFound(
            f"the host name of {where} cannot be resolved: {exc.strerror}", errno=exc.errno, transient=not unknown
        )
    if isinstance(exc, ConnectionRefusedError):
        return ConnectionRefused(f"{where} refused the connection: nothing listens there", errno=exc.errno)
    if isinstance(exc, TimeoutError):
        error = ConnectTimedOut(f"{where} did not answer in time", errno=exc.errno)
        error.deadline_passed = isinstance(exc, DeadlinePassed)
        return error
    return ConnectFailed(f"cannot connect to {where}: {exc.strerror or exc}", errno=exc.errno)


def in_time(work: Callable[[Deadline], _T], end: Deadline, seconds: float | None) -> _T:
    """What `work(limit)` comes to, which must be over after `seconds`, or at `end` where that is sooner.

    Raises:
        DeadlinePassed: time was up, and it was that of `end`.
    """
    limit = end.within(seconds)
    try:
        return work(limit)
    except TimeoutError as exc:
        if is_from_outside_the_dial(exc):
            raise
        if limit is end and end is not NEVER and exc.errno is None:  # the system's own has one
            raise DeadlinePassed(*exc.args) from None
        raise


def is_from_outside_the_dial(exc: BaseException) -> bool:
    """`is_from_outside`, of a dial: in the place of what it calls a program may have put functions of its own."""
    return is_from_outside(exc, socket.socket, socket.create_connection, socket.getaddrinfo)


def seconds_left(limit: Deadline) -> float | None:
    """What is left, as a socket takes it: there 0 means "do not block"."""
    left = limit.remaining()
    return 0.001 if left == 0.0 else left
