"""Ends with a queue that cannot be worked off, without closing its senders: `GRACE HOW URL...`, a sender for each URL.

HOW: "end" of the main thread, "sys.exit" with status 3, "raise" an exception, "daemon": the end, while a daemon thread
is in send_all(), "with": by a signal inside a `with` block, SIGTERM being handled with sys.exit(3). Says "leaving" when
it does, and the outcome of each message when there is one.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from tests.support.mail import envelope
from threadmail import Envelope, Receipt, RetryPolicy, ThreadedSender
from threadmail._dispatch import at_exit as _exit


def one(name: str) -> Envelope:
    return envelope(name).for_recipients(f"to-{name}@example.net")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece, as print() does not: threads do
    sys.stdout.flush()


def tell(receipt: Receipt) -> None:
    say(receipt.outcome.value)


def wait_for_the_end() -> NoReturn:
    say("leaving")
    threading.Event().wait(60.0)
    raise AssertionError("no signal came")


def terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(3)


def main() -> None:
    grace, how, *urls = sys.argv[1:]
    _exit.GRACE = float(grace)
    settings: Any = {"workers": 2, "retry": RetryPolicy(attempts=1), "on_receipt": tell}
    senders = [ThreadedSender(url, **settings) for url in urls]
    batches = [[one(f"s{number}m{index}") for index in range(5)] for number in range(len(urls))]
    if how == "daemon":
        threading.Thread(target=senders[0].send_all, args=(batches[0],), name="mailer", daemon=True).start()
        assert sys.stdin.readline() == "leave\n"
    elif how == "with":
        signal.signal(signal.SIGTERM, terminate)
        with senders[0]:
            for letter in batches[0]:
                senders[0].submit(letter)
            assert sys.stdin.readline() == "leave\n"
            wait_for_the_end()
    else:
        for sender, batch in zip(senders, batches, strict=True):
            for letter in batch:
                sender.submit(letter)
        assert sys.stdin.readline() == "leave\n"
    say("leaving")
    if how == "sys.exit":
        sys.exit(3)
    if how == "raise":
        raise LookupError("the program's own")


if __name__ == "__main__":
    main()
