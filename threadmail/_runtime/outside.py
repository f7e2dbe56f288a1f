"""What strikes from outside, in the middle of a call.

Owns how the exception of a signal handler is told from one that came of what we did. By its class it cannot be: the
textbook's time limit is a `TimeoutError`, and a handler may raise any other class as well. Leaves to whoever asks what
is done then: most let it out, for it says nothing about a server.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from types import FrameType


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
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    for name in code.co_varnames[:count]:
        given = frame.f_locals.get(name)
        for each in given if type(given) is tuple else (given,):
            if each is interrupted:
                return True
    return False
