"""Has threads that mail when the main thread has ended, and closes nothing: `GRACE HOW URL`.

HOW: "used", the sender has been used before; "unused", it has not; "made", it is made then; "imported", the package is;
"polled", a thread mails for as long as the main one is alive, and once more; "executor", by jobs that a program's own
executor still has; "queue", the last thread leaves its messages in the queue; "batch", `send_all` goes on meanwhile;
"atexit", a callback of `atexit` mails; "late", one that was registered before the import of the package.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NUMBER = 5


def letter(name: str) -> bytes:
    return f"From: from-{name}@example.org\r\nTo: to@example.net\r\nSubject: x\r\n\r\nx\r\n".encode()


def say(words: object) -> None:
    sys.stdout.write(f"{words}\n")  # in one piece, as print() does not: threads do
    sys.stdout.flush()


def when_main_is_over() -> None:
    threading.main_thread().join()


def new_sender(grace: str, url: str) -> Any:
    from threadmail import ThreadedSender
    from threadmail._dispatch import at_exit

    at_exit.GRACE = float(grace)
    return ThreadedSender(url, workers=2)


def late() -> None:
    try:
        new_sender("20", sys.argv[3]).submit(letter("late"))
    except RuntimeError as error:
        say(repr(error))


def main() -> None:
    grace, how, url = sys.argv[1:]
    if how == "late":
        atexit.register(late)
        return
    sender: Any = None if how in ("made", "imported") else new_sender(grace, url)
    if how == "made":
        import threadmail

        assert threadmail.ThreadedSender.__name__
    elif how in ("used", "polled", "executor"):
        say(sender.send(letter("main")).outcome.value)

    def mail(thread: int) -> None:
        when_main_is_over()
        mine = sender or new_sender(grace, url)
        for number in range(NUMBER):
            say(mine.send(letter(f"{thread}-{number}")).outcome.value)

    def poll() -> None:
        while threading.main_thread().is_alive():
            sender.send(letter("poll"))
        say(sender.send(letter("last")).outcome.value)

    def leave() -> None:
        if how != "atexit":
            when_main_is_over()
        for number in range(NUMBER):
            sender.submit(letter(f"left-{number}"))

    def letters() -> Iterator[bytes]:
        yield letter("0")
        when_main_is_over()
        for number in range(1, NUMBER):
            yield letter(str(number))

    if how == "polled":
        threading.Thread(target=poll).start()
    elif how == "queue":
        threading.Thread(target=leave).start()
    elif how == "batch":
        threading.Thread(target=lambda: say(sender.send_all(letters()))).start()
    elif how == "atexit":
        atexit.register(leave)
    elif how == "executor":
        pool = ThreadPoolExecutor(1)
        for _ in range(NUMBER):
            pool.submit(lambda: say(sender.send(letter("job")).outcome.value))
    else:
        for number in range(3):
            threading.Thread(target=mail, args=(number,)).start()


if __name__ == "__main__":
    main()
