"""What happens when the interpreter ends.

Owns the one hook that closes senders nobody closed. Guarantees: their queues are worked off for a bounded time, which
is one and the same for all of them, however many there are; and what could not be sent is said, not swallowed. They
part with what they have one after another, but their workers all work meanwhile, so who comes last has had as much time
as the first; and only then threads are waited for, so that one farewell is that of all.

`concurrent.futures` joins its threads, and so runs its whole queue without a deadline, before any `atexit` callback.
Only callbacks of `threading._register_atexit` come before it, newest first; it is private, and there since 3.9. They
come when the main thread has ended: where other threads of the program have not, `outliving` has this wait for them.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from .._runtime.deadline import Deadline
from .._runtime.logs import say
from ..errors import Outcome
from ..receipt import Receipt
from . import outliving

#: Seconds for all senders together.
GRACE = 10.0

log = logging.getLogger("threadmail.sender")


class CutShort(Protocol):
    @property
    def receipt(self) -> Receipt: ...


class Closable(Protocol):
    def _part(self, *, drain: bool, timeout: float | None) -> None: ...
    def close(self, *, drain: bool, timeout: float | None) -> Sequence[CutShort]: ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()
_not_closed: weakref.WeakSet[Closable] = weakref.WeakSet()  # those that are being closed as well
_registered: list[Callable[[], None]] = []
_time_is_up: list[bool] = []  # if it holds anything: no sender is used for the first time now, or there would be no end


def close_at_exit(sender: Closable) -> None:
    """Have `sender` closed at interpreter exit, if it still exists then and was not closed before (`forget`).

    At once, if the interpreter ends already and the time that senders have for their ends is over.
    """
    if _time_is_up:
        sender._part(drain=False, timeout=0.0)
        return
    _open.add(sender)
    _not_closed.add(sender)
    if not _registered:
        _registered.append(_at_end)
        try:
            threading._register_atexit(_at_end)  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):  # gone, or the interpreter is ending already
            outliving.begin()


def forget(sender: Closable) -> None:
    """Leave `sender` alone at exit: it has been closed. May be called for one that is not known."""
    _open.discard(sender)
    _not_closed.discard(sender)


def in_words(cut_short: Sequence[CutShort]) -> str:
    """How many messages were not sent; what nobody knows of, and what some have, is not among them."""
    outcomes = Counter(each.receipt.outcome for each in cut_short)
    words = [f"{outcomes[Outcome.NOT_SENT]} messages were not sent"]
    if outcomes[Outcome.IN_DOUBT]:
        words.append(f"{outcomes[Outcome.IN_DOUBT]} in doubt")
    if outcomes[Outcome.PARTIAL]:
        words.append(f"{outcomes[Outcome.PARTIAL]} sent to some of their recipients")
    return ", ".join(words)


def _at_end() -> None:
    """The main thread has ended."""
    if not outliving.wait_for_them(_close_all):
        _close_all()


def _last() -> None:
    """No thread is waited for any more. Senders that callbacks of `atexit` have used are closed; and that was it."""
    if outliving.is_waiting():
        _cut_short()
    else:
        _close_all()
    _time_is_up.append(True)


def _cut_short() -> None:
    """Ctrl-C has ended the waiting for the last threads."""
    while (sender := _any_of(_not_closed)) is not None:
        try:
            _tell("the waiting was interrupted", sender.close(drain=False, timeout=0.0))
        except Exception:  # noqa: BLE001 - the others are told of as well
            say(log, logging.ERROR, "a sender could not be closed at the end of the interpreter", exc_info=True)


def _close_all() -> None:
    end = Deadline.after(GRACE)
    interrupt: BaseException | None = None
    _time_is_up.clear()
    while _open:  # a callback may use a sender that nobody had used: nobody else would close that
        parted: list[Closable] = []
        while (sender := _any_of(_open)) is not None:
            if end.passed:
                _time_is_up.append(True)
            parted += (sender,)
            try:
                sender._part(drain=interrupt is None, timeout=0.0 if interrupt else end.remaining())
            except Exception:  # noqa: BLE001 - its `close` meets it as well, and that is said
                pass
            except BaseException as exc:  # noqa: BLE001 - Ctrl-C: the others end at once
                interrupt = exc
        for sender in parted:
            try:
                unsent = sender.close(drain=interrupt is None, timeout=0.0 if interrupt else end.remaining())
            except Exception:  # noqa: BLE001 - it is said
                say(log, logging.ERROR, "a sender could not be closed at the end of the interpreter", exc_info=True)
                continue
            except BaseException as exc:  # noqa: BLE001 - Ctrl-C: the others end at once
                interrupt = exc
                unsent = sender.close(drain=False, timeout=0.0)  # nothing, but where it came before the closing began
            _tell("the interpreter ends" if interrupt is None else "the closing was interrupted", unsent)
    if interrupt is not None:
        raise interrupt


def _tell(ends: str, unsent: Sequence[CutShort]) -> None:
    if unsent:
        say(log, logging.ERROR, "%s, and %s", ends, in_words(unsent))


def _any_of(senders: weakref.WeakSet[Closable]) -> Closable | None:
    """Take one out. In one step, for another thread may add one meanwhile."""
    try:
        return senders.pop()
    except KeyError:
        return None


# At the import, so that it comes after all callbacks that are registered later. In one of them it would come no more:
# a sender of a program whose first mail comes there is closed at once, for nobody would see it off.
atexit.register(_last)
if outliving.has_begun() and threading.current_thread() is threading.main_thread():
    _time_is_up.append(True)
