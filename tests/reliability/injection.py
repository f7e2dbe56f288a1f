"""An exception from outside, raised at a chosen point: what `PyThreadState_SetAsyncExc` and signals do by chance.

CPython looks for such exceptions at certain instructions only: where a function or generator is entered or resumed,
when a call has returned, and when a loop jumps back. `Injector` counts these points as a thread passes them, in the
package and in `contextlib` (which drives our context managers), and raises at the one it was told. So every point of a
program can be tried, one after the other.
"""

from __future__ import annotations

import contextlib
import dis
import os
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any

import threadmail

PACKAGE = os.path.dirname(threadmail.__file__) + os.sep
TESTING = os.path.join(PACKAGE, "testing")
CONTEXTLIB = contextlib.__file__

#: After these the interpreter looks for an exception from outside (RESUME is there since 3.11).
LOOKING = ("RESUME", "CALL", "CALL_FUNCTION", "CALL_FUNCTION_KW", "CALL_FUNCTION_EX", "CALL_KW", "CALL_METHOD")
JUMPING = ("JUMP_BACKWARD", "JUMP_ABSOLUTE")


class Injected(BaseException):
    """Raised from outside; no Exception, as KeyboardInterrupt is none."""


class Injector:
    """A trace function for `sys.settrace` or `threading.settrace`.

    Args:
        at: raise when so many points have been passed; None never raises.

    Attributes:
        passed: points so far.
        where: "module.py:line function" of the point at which it raised; None as long as it has not.
    """

    def __init__(self, at: int | None = None) -> None:
        self._at = at
        self.passed = 0
        self.where: str | None = None
        self.places: list[tuple[CodeType, int]] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name != CONTEXTLIB and (not name.startswith(PACKAGE) or name.startswith(TESTING)):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._local

    def _local(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and frame.f_lasti in points(frame.f_code):
            self.passed += 1
            self.places.append((frame.f_code, frame.f_lasti))
            if self.passed == self._at:
                code = frame.f_code
                self.where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
                raise Injected(self.where)
        return self._local


@cache
def points(code: CodeType) -> frozenset[int]:
    """The offsets of instructions before which an exception from outside can be raised."""
    found = set()
    instructions = list(dis.get_instructions(code))
    for this, following in pairwise(instructions):
        # Where the call was the last of a `with` or `try` body, its exception belongs there and not to what follows.
        if this.opname in LOOKING and _handler(code, this.offset) == _handler(code, following.offset):
            found.add(following.offset)
        elif this.opname in JUMPING and this.argval < this.offset:
            found.add(this.argval)
    return frozenset(found)


def _handler(code: CodeType, offset: int) -> int | None:
    table = _handlers(code)
    return next((target for start, end, target in table if start <= offset < end), None)


@cache
def _handlers(code: CodeType) -> list[tuple[int, int, int]]:
    parse = getattr(dis, "_parse_exception_table", None)  # before 3.11 there is no such table
    return [(entry.start, entry.end, entry.target) for entry in parse(code)] if parse is not None else []
