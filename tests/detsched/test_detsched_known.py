"""Known systems: textbook clients and pools with known numbers of schedules, and faulty ones that must be found out.

With one lock around everything, a schedule is the order in which the lock is taken: N threads with M messages each have
(N*M)! / (M!)**N of them, whatever happens inside. The explorer must arrive at that number, with every field of client
and `smtplib.SMTP` a switch point, or it has lost some schedules or counted some twice.
"""

from __future__ import annotations

import math
import smtplib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.detsched import DPOR, PCT, Program, RandomWalk, Result, Run, explore, watched
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice


def connect() -> smtplib.SMTP:
    return smtplib.SMTP("model", 25, local_hostname="me")


class Guarded:
    def __init__(self) -> None:
        self.sync_root = threading.RLock()
        self.client: smtplib.SMTP | None = None

    def connected(self) -> smtplib.SMTP:
        if self.client is None:
            self.client = connect()
        return self.client

    def sendmail(self, *args: Any) -> Any:
        with self.sync_root:
            return self.connected().sendmail(*args)


class LockPerCall(Guarded):
    def sendmail(self, *args: Any) -> Any:
        with threading.RLock():
            return self.connected().sendmail(*args)


class ConnectUnlocked(Guarded):
    def sendmail(self, *args: Any) -> Any:
        client = self.connected()
        with self.sync_root:
            return client.sendmail(*args)


class NotReentrant(Guarded):
    def __init__(self) -> None:
        super().__init__()
        self.outer = threading.Lock()

    def sendmail(self, *args: Any) -> Any:
        with self.outer, self.outer:
            return super().sendmail(*args)


class LetsGoEarly(Guarded):
    """Lets go of the lock before it has read the last reply."""

    def sendmail(self, sender: str, recipients: list[str], content: bytes) -> Any:
        with self.sync_root:
            client = self.connected()
            client.ehlo_or_helo_if_needed()
            client.mail(sender)
            client.rcpt(recipients[0])
            client.docmd("data")
            client.send(content + b"\r\n.\r\n")
        if client.getreply()[0] != 250:
            raise smtplib.SMTPException
        return {}


class Pool:
    def __init__(self, size: int) -> None:
        self.size, self.made = size, 0
        self.condition = threading.Condition()
        self.free: list[smtplib.SMTP] = []

    def take(self) -> smtplib.SMTP:
        with self.condition:
            while not self.free and self.made >= self.size:
                self.condition.wait()
            if self.free:
                return self.free.pop()
            self.made += 1
        return connect()

    def give(self, client: smtplib.SMTP) -> None:
        with self.condition:
            self.free.append(client)
            self.condition.notify()

    def sendmail(self, *args: Any) -> Any:
        client = self.take()
        try:
            return client.sendmail(*args)
        finally:
            self.give(client)


class IfNotWhile(Pool):
    def take(self) -> smtplib.SMTP:
        with self.condition:
            if not self.free and self.made >= self.size:
                self.condition.wait()
            if self.free:
                return self.free.pop()
            self.made += 1
        return connect()


class CountsOutside(Pool):
    def take(self) -> smtplib.SMTP:
        with self.condition:
            while not self.free and self.made >= self.size:
                self.condition.wait()
            if self.free:
                return self.free.pop()
        client = connect()
        self.made += 1
        return client


class NoNotify(Pool):
    def give(self, client: smtplib.SMTP) -> None:
        with self.condition:
            self.free.append(client)


class GivesTwice(Pool):
    def give(self, client: smtplib.SMTP) -> None:
        super().give(client)
        super().give(client)


def sending(cls: Any, threads: int, messages: int, *args: int, bound: int | None = None) -> Program:
    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=bound))
        office.senders(threads=threads, messages=messages, sendmail=cls(*args).sendmail)

    return program


def search(cls: type, program: Program, strategy: Any = None, **options: Any) -> Result:
    # Said, not found: a name that is stored to anywhere in a loaded package is not taken for constant; `tests` is one.
    with watched(cls, smtplib.SMTP, constant=("sync_root",)):
        return explore(program, strategy or DPOR(), scenario=cls.__name__, granularity="fields", **options)


@pytest.mark.parametrize(("threads", "messages"), [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_one_lock_around_all_gives_the_number_of_the_formula(threads: int, messages: int) -> None:
    strategy = DPOR()
    result = search(Guarded, sending(Guarded, threads, messages, bound=1), strategy)
    assert (result.complete, result.failing, result.pruned) == (True, 0, 0)
    assert result.runs == math.factorial(threads * messages) // math.factorial(messages) ** threads
    # Nothing else is ever contended: every field and every socket operation is in the hands of the lock's owner.
    assert set(strategy.races) == {("lock1", "acquire", "acquire")}
    assert result.data_races == frozenset()


@pytest.mark.parametrize(
    ("size", "threads", "messages", "runs"),
    [(1, 2, 1, 4), (1, 3, 1, 42), (1, 2, 2, 40), (2, 2, 1, 6), (2, 3, 1, 90), (2, 2, 2, 70)],
)
def test_a_pool_is_exhausted(size: int, threads: int, messages: int, runs: int) -> None:
    result = search(Pool, sending(Pool, threads, messages, size))
    assert (result.complete, result.runs, result.failing) == (True, runs, 0)


@pytest.mark.parametrize(
    ("cls", "program", "violation"),
    [
        (LockPerCall, sending(LockPerCall, 2, 1), "foreign command inside a transaction"),
        (ConnectUnlocked, sending(ConnectUnlocked, 2, 1, bound=1), "more connections than allowed: 2"),
        (NotReentrant, sending(NotReentrant, 1, 1), "deadlock"),
        (LetsGoEarly, sending(LetsGoEarly, 2, 1), "reply read by the wrong thread"),
        (IfNotWhile, sending(IfNotWhile, 3, 1, 1, bound=1), "more connections than allowed: 2"),
        (CountsOutside, sending(CountsOutside, 2, 1, 1, bound=1), "more connections than allowed: 2"),
        (NoNotify, sending(NoNotify, 2, 1, 1), "deadlock"),
        (GivesTwice, sending(GivesTwice, 3, 1, 1), "foreign command inside a transaction"),
    ],
)
def test_a_fault_in_the_locking_is_found(cls: type, program: Program, violation: str) -> None:
    result = search(cls, program, limit=200)
    assert violation in result.kinds
    assert result.seconds < 10


def test_an_access_without_the_lock_is_named_even_where_nothing_comes_of_it() -> None:
    class Telling(Guarded):
        def sendmail(self, *args: Any) -> Any:
            assert self.client is None or self.client.ehlo_msg == "ehlo"
            return super().sendmail(*args)

    result = search(Telling, sending(Telling, 2, 1))
    assert result.failing == 0
    assert result.data_races == frozenset({"Telling.client"})


@pytest.mark.parametrize("make", [lambda: RandomWalk(200, 1), lambda: PCT(200, 1, depth=3, length=150)])
def test_chance_finds_a_frequent_fault(make: Any) -> None:
    assert search(LetsGoEarly, sending(LetsGoEarly, 2, 1), make(), stop_at_failure=True).failing == 1


def test_an_executor_with_a_client_for_each_thread() -> None:
    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(bound=2, lockset=False))
        local = threading.local()
        jobs = office.jobs(0, 2)

        def send(*args: Any) -> Any:
            if not hasattr(local, "client"):
                local.client = connect()
            return local.client.sendmail(*args)

        def main() -> None:
            with ThreadPoolExecutor(2) as executor:
                for job in jobs:
                    executor.submit(office.ledger.send, job, send)

        run.thread(main)

    result = explore(program, DPOR(), scenario="executor 2x1")
    assert (result.complete, result.failing, len(result.outcomes)) == (True, 0, 1)
    assert result.runs > 10
