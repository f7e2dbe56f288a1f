"""What strikes from outside, in the middle of a call.

Owns how the exception of a signal handler is told from one that came of what we did. By its class it cannot be: the
textbook's time limit is a `TimeoutError`, and a handler may raise any other class as well. Leaves to whoever asks what
is done then: most let it out, for it says nothing about a server.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from types import FrameType

_OURS = frozenset([__name__.partition(".")[0], "socket", "ssl", "smtplib", "selectors"])


def is_of_a_handler(exc: BaseException) -> bool:
    """Whether a signal handler (or a trace function) raised this, below the frame that asks.

    A handler is given the frame that it interrupts. In a traceback that is the frame above the handler's own; who is
    called by that frame is not given it. Not seen is what has no frame: what another thread sets, or gevent throws.
    """
    came_through = frames(exc)
    return True in [_was_given(frame, interrupted) for interrupted, frame in pairwise(came_through)]


def frames(exc: BaseException) -> list[FrameType]:
    """The frames that an exception came through, from the one that asks to the one that raised it."""
    found = []
    trace = exc.__traceback__
    while trace is not None:
        found.append(trace.tb_frame)
        trace = trace.tb_next
    return found


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    """As signal handlers are, with the signal's number before it; or trace functions, with a word behind."""
    code = frame.f_code
    if code.co_argcount + bool(code.co_flags & inspect.CO_VARARGS) == 0 or _is_ours(frame):
        return False  # not looked into: what `f_locals` is asked of holds its locals, and with them sockets, for longer
    given: list[object] = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & inspect.CO_VARARGS:
        given += frame.f_locals.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ())
    return True in [
        each is interrupted and (isinstance(before, int) or isinstance(behind, str))
        for before, each, behind in zip([None, *given], given, [*given[1:], None], strict=False)
    ]


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS
