"""The usual shape of a mail scenario, so that one fits on a few lines.

def guarded(run):
    office = PostOffice(run, ModelServer(bound=1, lockset=True))
    client = SMTP("model", 25, local_hostname="me")
    office.senders(threads=2, messages=2, sendmail=client.sendmail)

with watched(SMTP, smtplib.SMTP):
    result = explore(guarded, DPOR(), scenario="guarded 2x2", granularity="fields")
assert (result.complete, result.failing, result.runs, result.data_races) == (True, 0, 6, frozenset())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .explore import Run, Verdict
from .modelserver import ModelServer
from .oracle import Job, Ledger, verdict


class PostOffice:
    """A server, a ledger and the threads of one run. Everything a scenario adds goes through `run`."""

    def __init__(self, run: Run, server: ModelServer | None = None, *, failures: Iterable[str] = ()) -> None:
        self.run = run
        self.server = server if server is not None else ModelServer()
        self.ledger = Ledger()
        self.failures = tuple(failures)
        run.context.enter_context(self.server)
        run.judge(self.verdict)

    def verdict(self) -> Verdict:
        """What the oracle says of the run."""
        given_up = self.run.scheduler.ending is not None
        return verdict(self.server, self.ledger, failures=self.failures, given_up=given_up)

    def jobs(self, thread: int, messages: int, recipients: int = 1) -> list[Job]:
        return [self.ledger.add(f"T{thread}m{number}", recipients) for number in range(messages)]

    def senders(
        self,
        *,
        threads: int,
        messages: int,
        sendmail: Callable[[str, list[str], bytes], Any],
        recipients: int = 1,
    ) -> None:
        """`threads` threads that each send `messages` messages by a function like `smtplib.SMTP.sendmail`."""
        for thread in range(threads):
            jobs = self.jobs(thread, messages, recipients)
            self.run.thread(partial(self._send_all, jobs, sendmail), f"T{thread}")

    def receipts(self, *, threads: int, messages: int, send: Callable[[Job], Any], recipients: int = 1) -> None:
        """The same with a function that takes a `Job` and returns a receipt, which is checked against the server."""
        for thread in range(threads):
            jobs = self.jobs(thread, messages, recipients)
            self.run.thread(partial(self._send_for_receipts, jobs, send), f"T{thread}")

    def _send_all(self, jobs: list[Job], sendmail: Callable[[str, list[str], bytes], Any]) -> None:
        for job in jobs:
            self.ledger.send(job, sendmail)

    def _send_for_receipts(self, jobs: list[Job], send: Callable[[Job], Any]) -> None:
        for job in jobs:
            self.ledger.send_for_receipt(job, send)
