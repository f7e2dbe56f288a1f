"""What strikes from outside, in the middle of a call.

Owns how the exception of a signal handler is told from one that came of what we did. By its class it cannot be: the
textbook's time limit is a `TimeoutError`, and a handler may raise any other class as well. Leaves to whoever asks what
is done then: most let it out, for it says nothing about a server.
"""

from __future__ import annotations

import inspect
from types import FrameType


def is_of_a_handler(exc: BaseException) -> bool:
    """Whether a signal handler (or a trace function) raised this, below the frame that asks.

    A handler is given the frame that it interrupts. In a traceback that is the frame above the handler's own; who is
    called by that frame is not given it. Not seen is what has no frame: what another thread sets, or gevent throws.
    """
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        interrupted, trace = trace.tb_frame, trace.tb_next
        if _was_given(trace.tb_frame, interrupted):
            return True
    return False


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    given = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
    return any(
        each is interrupted or (type(each) is tuple and any(one is interrupted for one in each)) for each in given
    )
