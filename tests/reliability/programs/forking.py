"""Forks with a Client, a ClientPool and a ThreadedSender that have been used: `URL CAFILE HOW HELD`.

HOW is "hooks" (os.fork), "no hooks" (ours never registered) or "libc" (fork(2) itself, behind Python's back, as servers
written in C do). HELD is what other threads of the parent are about at the fork: "nothing", "transactions" (in which
the server lets them wait) or "locks" (each lock we have). Parent and child both send on all three, before and after.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HOW = sys.argv[3]

if HOW == "no hooks":
    os.register_at_fork = lambda **hooks: None

from tests.support.mail import envelope  # noqa: E402
from threadmail import Client, ClientPool, ServerConfig, ThreadedSender, Throttle  # noqa: E402

PATIENCE = 20.0


def fork() -> int:
    if HOW != "libc":
        return os.fork()
    settle()
    return int(ctypes.PyDLL(None).fork())  # PyDLL keeps the GIL, as a server does that embeds Python


def settle() -> None:
    """Wait until every other thread sleeps in a system call, and none waits for the GIL.

    Such a waiter is counted in the GIL's condition variable, the child has it too, and glibc waits there for ever for
    it to leave: no code of ours can help a child that was forked then. That the server has a thread's last byte does
    not tell that the thread has come to wait for the reply. What does: while this one sleeps, the GIL is free, and who
    waited for it has run, or is about to; so who slept before and after, and has not run between, waits for another.
    """
    end = time.monotonic() + PATIENCE
    before, now = None, others()
    while now != before or not all("State:\tS (sleeping)" in status for status in now.values()):
        assert time.monotonic() < end, f"the other threads do not come to rest: {now}"
        time.sleep(0.005)
        before, now = now, others()


def others() -> dict[str, list[str]]:
    """How the kernel sees each other thread: what it is about, and how often it has come and gone."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        if thread.name != str(threading.get_native_id()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                lines = (thread / "status").read_text().splitlines()
                found[thread.name] = [line for line in lines if re.match("State:|.*_switches:", line)]
    return found


def sockets() -> set[str]:
    """The sockets of this process, by inode: the same in parent and child."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith("socket:")}


class Objects:
    """One of each, and a way to send on it."""

    def __init__(self, config: ServerConfig) -> None:
        self.client = Client(config)
        self.pool = ClientPool(config, max_size=1)
        self.throttle = Throttle(1000.0, burst=1000)
        self.sender = ThreadedSender(config, workers=1, throttle=self.throttle)
        self.send: dict[str, Callable[..., object]] = {
            "client": self.client.send,
            "pool": self.pool.send,
            "sender": self.sender.send,
        }

    def send_all(self, when: str) -> None:
        for name, send in self.send.items():
            send(envelope(f"{when}-{name}"), deadline=PATIENCE)

    def opened(self) -> list[int]:
        return [each.stats().opened for each in (self.client, self.pool, self.sender)]

    def close(self) -> None:
        self.client.close()
        self.pool.close()
        self.sender.close()

    @contextlib.contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Let other threads be in the midst of something while the block runs."""
        threads: list[threading.Thread] = []
        done = threading.Event()
        if what == "transactions":
            for name, send in self.send.items():
                work = lambda name=name, send=send: send(envelope(f"during-{name}"), deadline=PATIENCE)  # noqa: E731
                threads.append(threading.Thread(target=work, name=name))
                threads[-1].start()
        elif what == "locks":
            locks = [self.client.sync_root, self.pool._steps.lock, self.sender._dispatcher._lock]
            for lock in [*locks, self.throttle._lock]:
                ready = threading.Event()
                threads.append(threading.Thread(target=hold, args=(lock, ready, done), name="holder"))
                threads[-1].start()
                assert ready.wait(PATIENCE)
        tell("ready")
        assert sys.stdin.readline() == "fork\n"
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive(), f"{thread.name} hangs"


def hold(lock: threading.Lock, ready: threading.Event, done: threading.Event) -> None:
    with lock:
        ready.set()
        assert done.wait(PATIENCE)


def tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def in_child(objects: Objects, inherited: set[str]) -> None:
    objects.send_all("child")
    tell({"opened in child": objects.opened(), "still inherited": len(inherited & sockets())})
    objects.close()


def main() -> None:
    url, cafile, _, held = sys.argv[1:]
    # A thread that waits for the GIL would make the child wait for it too, behind Python's back.
    sys.setswitchinterval(60.0)
    objects = Objects(ServerConfig.from_url(url, cafile=cafile or None))
    objects.send_all("before")
    with objects.held(held):
        inherited = sockets()
        child = fork()
        if child == 0:
            status = 1
            try:
                in_child(objects, inherited)
                status = 0
            except BaseException:  # noqa: BLE001 - told on standard error; a child must never go on as the parent
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        tell({"child": os.waitstatus_to_exitcode(status)})
    objects.send_all("after")
    tell({"opened": objects.opened()})
    objects.close()


if __name__ == "__main__":
    main()
