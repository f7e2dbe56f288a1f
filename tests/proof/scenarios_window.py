"""Messages under way content and all (BDAT), and what may happen to any of them meanwhile.

The same as with those whose commands ride, and one thing more: content of several is with the server before the first
is answered, so that what is lost with a connection is in doubt, and nobody behind can be taken back any more.
"""

from __future__ import annotations

from typing import Any

from tests.detsched.smtpmodel import EVERY, Faults
from threadmail import Client

from .scenario import LOST, Scenario, orders
from .scenarios_lanes import Other, abort, cancel, close, of_lanes
from .scenarios_riding import (
    ALL_REFUSED,
    BETWEEN,
    DROPPED,
    ENDED,
    REFUSED,
    SPAM,
    batches,
    close_anyway,
    interrupted_asking,
    interrupted_beginning,
    of_batches,
    one_token,
)


def windowed(
    name: str, schedules: int | None, lanes: int, messages: int, *others: Other, window: int = 2, **settings: Any
) -> Scenario:
    """Lanes alone, on a server with CHUNKING."""
    return of_lanes(
        f"window, {name}", schedules, lanes, messages, "PIPELINING", "CHUNKING",
        others=others, window=window, **settings,
    )  # fmt: skip


def _first_content(reply: str) -> Faults:
    return Faults(refuse_content={"T0m0@here.test": reply})


#: EHLO, then RSET, MAIL, RCPT and BDAT of each message: the RCPT of the second one.
_SECOND = 8
_HANGS_UP = Faults(drop={0: _SECOND})
_CLOSING = Faults(closing={0: _SECOND})
_NO = "DataRefused 554"
_DOUBT = (*LOST, "Aborted")
_LATE = (*ENDED, *LOST)

SCENARIOS = [
    windowed("1 lane, 3 messages", 1, 1, 3),
    windowed("1 lane, 3 messages at once", 1, 1, 3, window=3),
    windowed("1 lane, 3 messages, 2 of them late", 30, 1, 3, late=2),
    windowed("2 lanes, 2 messages", 500, 2, 2, connected=True),
    windowed("the one behind cancelled", 64, 1, 3, cancel(1), failures=["cancelled"]),
    windowed("the one behind called off", 44, 1, 3, abort(1), failures=_DOUBT),
    windowed("the one ahead called off", 49, 1, 3, abort(0), failures=_DOUBT),
    windowed("closed, and the queue worked off", 7, 1, 2, close(drain=True)),
    windowed("closed", 495, 1, 2, close(), failures=["Closed"]),
    windowed("dropped at the final reply", 1, 1, 3, faults=DROPPED, failures=LOST),
    windowed(
        "each connection dropped at its first final reply", 1, 1, 3, faults=Faults(drop_final={EVERY: 1}), failures=LOST
    ),
    windowed(
        "dropped at the final reply, the one behind called off", 60, 1, 2, abort(1), faults=DROPPED, failures=_DOUBT
    ),
    windowed("hung up on after the final reply", 1, 1, 3, faults=BETWEEN, failures=LOST),
    windowed("hung up on in the middle of the replies to the one behind", 1, 1, 3, faults=_HANGS_UP, failures=LOST),
    windowed("421 to the one behind", 1, 1, 3, faults=_CLOSING),
    windowed("421 to the one behind, called off", 45, 1, 2, abort(1), faults=_CLOSING, failures=["Aborted"]),
    windowed("421 to the content", 1, 1, 3, faults=_first_content("421 4.3.2 closing"), failures=LOST),
    windowed("one recipient refused", 1, 1, 3, recipients=2, faults=REFUSED),
    windowed("all recipients refused", 1, 1, 3, faults=REFUSED, failures=[ALL_REFUSED]),
    windowed(
        "all recipients refused, the one behind called off",
        52,
        1,
        2,
        abort(1),
        faults=REFUSED,
        failures=[ALL_REFUSED, "Aborted"],
    ),
    windowed("content refused", 1, 1, 3, faults=SPAM, failures=[_NO]),
    windowed("content refused, the one behind called off", 52, 1, 2, abort(1), faults=SPAM, failures=[_NO, "Aborted"]),
    windowed("content put off", 1, 1, 3, faults=_first_content("451 4.3.0 later")),
    windowed("interrupted as one is prefetched", 1, 1, 3, body=interrupted_asking, failures=["MailError"]),
    windowed(
        "interrupted as one is prefetched, which is cancelled",
        62,
        1,
        2,
        cancel(1),
        body=interrupted_asking,
        failures=["MailError", "cancelled"],
    ),
    windowed(
        "interrupted as one begins, which is called off",
        50,
        1,
        2,
        abort(1),
        body=interrupted_beginning,
        failures=["MailError", "Aborted"],
    ),
    windowed("no token for the next one", 1, 1, 2, throttle=one_token),
    windowed("a deadline too short to be prefetched", 1, 1, 2, ends={1: 100.0}),
    *(
        of_batches(f"batches in a window, {t}x{m}", batches(t, m, window=2), orders(t, 1), formula=True)
        for t, m in [(2, 2), (2, 3)]
    ),
    of_batches("batches in a window, 2x4 in turns of 2", batches(2, 4, turn=2, window=2), 33),
    of_batches(
        "batches in a window, dropped at the final reply, 2x2",
        batches(2, 2, window=2, faults=DROPPED, failures=LOST),
        2,
    ),
    of_batches("batches in a window, 421 to the one behind, 2x2", batches(2, 2, window=2, faults=_CLOSING), 2),
    of_batches("batches in a window, content refused, 2x2", batches(2, 2, window=2, faults=SPAM, failures=[_NO]), 2),
    of_batches(
        "batches in a window, 1x2 beside close()",
        batches(1, 2, window=2, other=close_anyway, failures=(*ENDED, *LOST)),
        138,
    ),
    of_batches(
        "batches in a window, 1x2 beside abort()",
        batches(1, 2, window=2, other=Client.abort, failures=(*ENDED, *LOST)),
        116,
    ),
]

LONG = [
    windowed("both called off", None, 1, 2, abort(0), abort(1), failures=_DOUBT, long=True),
    windowed("1 message, closed in a hurry", None, 1, 1, close(timeout=1.0), failures=_LATE, timeouts=1, long=True),
    windowed("3 messages, closed", None, 1, 3, close(), failures=["Closed"], long=True),
    windowed("2 messages, closed in a hurry", None, 1, 2, close(timeout=1.0), failures=_LATE, timeouts=1, long=True),
    windowed(
        "dropped at the final reply, and closed",
        None,
        1,
        2,
        close(),
        faults=DROPPED,
        failures=(*LOST, "Closed"),
        long=True,
    ),
]
