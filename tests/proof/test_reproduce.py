"""The race, reproduced: what two threads do to one shared `smtplib.SMTP`.

Under the scheduler the claim is exact: of all 586 schedules in which two threads send one message each through a
connected client, 582 fail. The four that pass are the two serial orders, each also with the second thread's MAIL
written just before the first thread reads its last reply. The minimal interleavings are kept as golden replays with
their dialogue, and Hypothesis, searching by chance, shrinks to the same ones. Real threads against a real server fail
just as well.

The schedules are written as "thread x operations"; operations are the send and the read of each command, so that
"0x6" is thread 0 up to and with the 354 that answers its DATA.
"""

from __future__ import annotations

import asyncio
import smtplib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from tests.detsched import DPOR, DepthFirst, Preempt, Result, Run, Verdict, explore, replay, run_once, write_schedule
from tests.detsched.drawing import schedules
from tests.detsched.oracle import Job
from tests.detsched.scenario import PostOffice

NESTED = "server answered 503 5.5.1 nested MAIL"
LOSS = "silent loss: reported sent, not delivered intact"
LEAK = "leak: body delivered to another message's recipients"
STOLEN = "reply read by the wrong thread"
FOREIGN = "foreign command inside a transaction"


def raw(run: Run) -> None:
    """Two threads, one message each, through one connected `smtplib.SMTP`."""
    office = PostOffice(run)
    client = smtplib.SMTP("model", 25, local_hostname="me")
    client.ehlo()
    office.senders(threads=2, messages=1, sendmail=client.sendmail)


@pytest.fixture(scope="module")
def all_schedules() -> Result:
    return explore(raw, DepthFirst(), scenario="raw smtplib.SMTP 2x1")


def test_nearly_every_schedule_fails(all_schedules: Result) -> None:
    assert (all_schedules.complete, all_schedules.runs, all_schedules.failing) == (True, 586, 582)
    if getattr(sys, "_is_gil_enabled", lambda: True)():  # free of it each step takes about twice as long
        assert all_schedules.seconds < 2


def test_every_kind_of_damage_is_among_them(all_schedules: Result) -> None:
    kinds = {kind: number for kind, number in all_schedules.kinds.items() if not kind.startswith("failed")}
    assert kinds == {
        FOREIGN: 574,
        NESTED: 546,
        STOLEN: 466,
        "server answered 503 5.5.1 need RCPT": 248,
        "deadlock": 192,
        "body mixed with other bytes": 152,
        "server answered 503 5.5.1 need MAIL": 126,
        LOSS: 120,
        LEAK: 36,
        "body under another sender": 36,
    }


def test_the_schedules_that_pass_are_the_serial_ones() -> None:
    passing = []
    strategy = DepthFirst()
    more = True
    while more:
        strategy.begin()
        scheduler, verdict = run_once(raw, strategy)
        if verdict is not None and not verdict.violations:
            passing.append(write_schedule(scheduler.schedule))
        more = strategy.finished(scheduler)
    assert sorted(passing) == ["0x7 1 0 1x7", "0x8 1x8", "1x7 0 1 0x7", "1x8 0x8"]


def test_the_reduced_search_ends_in_the_same_states(all_schedules: Result) -> None:
    reduced = explore(raw, DPOR())
    assert (reduced.complete, reduced.runs, reduced.failing) == (True, 168, 166)
    assert reduced.outcomes == all_schedules.outcomes
    assert len(reduced.outcomes) == 59


@pytest.mark.parametrize(("preemptions", "runs", "failing"), [(0, 2, 0), (1, 16, 14), (2, 62, 58), (3, 160, 156)])
def test_one_preemption_is_enough(preemptions: int, runs: int, failing: int) -> None:
    result = explore(raw, DepthFirst(preemptions))
    assert (result.complete, result.runs, result.failing) == (True, runs, failing)


# The minimal interleavings ------------------------------------------------------------------------------------------


def dialogue(verdict: Verdict) -> list[str]:
    """The dialogue after the greeting and EHLO, a line each; smtplib writes FROM and TO in lower case from 3.13 on."""
    lines = [line.strip() for line in verdict.transcript.splitlines() if "T0 " in line or "T1 " in line]
    return [line.replace(" FROM:", " from:").replace(" TO:", " to:") for line in lines]


def test_golden_nested_mail() -> None:
    """Thread 1 writes its MAIL before thread 0 has read its reply: it steals the 250, and the server refuses."""
    verdict, _ = replay(raw, "0 1x6 0x5")
    assert {NESTED, STOLEN, FOREIGN} <= set(verdict.violations)
    assert dialogue(verdict)[:4] == [
        "T0 > mail from:<T0m0@here.test>",
        "T0 < 250 2.1.0 sender ok",
        "T1 > mail from:<T1m0@here.test>",
        "T1 < 503 5.5.1 nested MAIL",
    ]


def test_golden_silent_loss() -> None:
    """One preemption after the 354: thread 1's MAIL becomes the first line of thread 0's body, which is told "sent"."""
    verdict, _ = replay(raw, "0x6 1 0x2")
    assert {LOSS, "body mixed with other bytes"} <= set(verdict.violations)
    assert not [kind for kind in verdict.violations if kind.startswith(("failed", "server answered"))]
    assert dialogue(verdict) == [
        "T0 > mail from:<T0m0@here.test>",
        "T0 < 250 2.1.0 sender ok",
        "T0 > rcpt to:<r0.T0m0@there.test>",
        "T0 < 250 2.1.5 recipient ok",
        "T0 > data",
        "T0 < 354 go ahead",
        "T1 > mail from:<T1m0@here.test>",
        "T0 > Subject: T0m0",
        "T0 >",
        "T0 > Body of T0m0",
        "T0 > .",
        "T0 < 250 2.0.0 stored as conn0-1",
    ]


def test_golden_leak() -> None:
    """Two preemptions: thread 1's recipient joins thread 0's message, which is delivered to a stranger."""
    verdict, _ = replay(raw, "0 1x4 0x7 1x2")
    assert LEAK in verdict.violations
    assert [line for line in dialogue(verdict) if "rcpt" in line or "Body" in line or "stored" in line] == [
        "T1 > rcpt to:<r0.T1m0@there.test>",
        "T0 > rcpt to:<r0.T0m0@there.test>",
        "T0 > Body of T0m0",
        "T0 < 250 2.0.0 stored as conn0-1",
    ]


def test_golden_hang() -> None:
    """Thread 1 takes thread 0's 354, gives up, and leaves both sides waiting for each other for ever."""
    verdict, scheduler = replay(raw, "0x5 1x3")
    assert "deadlock" in verdict.violations
    assert [(op.tid, op.kind) for op in scheduler.stuck] == [(0, "readline"), (1, "readline")]


def test_a_replay_is_the_same_every_time() -> None:
    traces = set()
    for _ in range(100):
        verdict, scheduler = replay(raw, "0 1x4 0x7 1x2")
        traces.add((verdict.transcript, verdict.violations, tuple(map(repr, scheduler.trace))))
    assert len(traces) == 1


# Hypothesis ---------------------------------------------------------------------------------------------------------


def violations(schedule: Preempt) -> tuple[str, ...]:
    _, verdict = run_once(raw, schedule)
    assert verdict is not None
    return verdict.violations


@pytest.mark.parametrize(
    ("kind", "minimal"),
    [
        pytest.param(NESTED, [{1: 0}, {2: 0}, {3: 0}, {4: 0}], id="nested MAIL"),
        pytest.param(LOSS, [{6: 0}], id="silent loss"),
        pytest.param("deadlock", [{5: 0}, {6: 0}, {7: 0}], id="hang"),
        pytest.param(LEAK, [{1: 0, 5: 0}, {3: 0, 7: 0}], id="leak"),
    ],
)
def test_hypothesis_shrinks_to_the_minimal_interleaving(kind: str, minimal: list[dict[int, int]]) -> None:
    quiet = settings(
        max_examples=2000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    found = find(schedules(steps=16, threads=2), lambda schedule: kind in violations(schedule), settings=quiet)
    assert found.points in minimal


# Real threads against a real server ---------------------------------------------------------------------------------


class Mailbox:
    """An aiosmtpd handler that keeps what it was given."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, tuple[str, ...], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.stored.append((envelope.mail_from, tuple(envelope.rcpt_tos), bytes(envelope.content).rstrip(b"\r\n")))
        return "250 2.0.0 stored"


@contextmanager
def real_server() -> Iterator[tuple[Mailbox, int]]:
    smtp = pytest.importorskip("aiosmtpd.smtp")
    mailbox = Mailbox()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="real-server")
    thread.start()

    async def start() -> asyncio.Server:
        return await loop.create_server(lambda: smtp.SMTP(mailbox, hostname="real", loop=loop), "127.0.0.1", 0)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        sessions = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        try:
            yield mailbox, server.sockets[0].getsockname()[1]
        finally:
            asyncio.run_coroutine_threadsafe(stop(server), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def real_trial(port: int, mailbox: Mailbox) -> bool:
    """Two real threads, two messages each, one shared client. Was everything sent, and stored intact?"""
    del mailbox.stored[:]
    jobs = [Job.make(f"T{thread}m{number}") for thread in range(2) for number in range(2)]
    failures: list[Exception] = []
    together = threading.Barrier(2)
    # The timeout is what a hang costs; the server answers within a millisecond.
    with smtplib.SMTP("127.0.0.1", port, local_hostname="me", timeout=0.25) as client:
        client.ehlo()

        def work(mine: list[Job]) -> None:
            together.wait(10)
            try:
                for job in mine:
                    client.sendmail(job.sender, list(job.recipients), job.content)
            except Exception as error:  # noqa: BLE001 - any failure is the finding
                failures.append(error)

        threads = [threading.Thread(target=work, args=(jobs[n * 2 : n * 2 + 2],), name=f"T{n}") for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        client.close()
    stored = sorted(mailbox.stored)
    return not failures and stored == sorted((job.sender, job.recipients, job.content) for job in jobs)


def test_real_threads_break_it_too() -> None:
    """Some 99 of 100 trials break; here one of at most ten must."""
    with real_server() as (mailbox, port):
        assert not all(real_trial(port, mailbox) for _ in range(10))
