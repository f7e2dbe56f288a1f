"""Who has the jobs of a sender, where a test or a benchmark stands in for the dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from threadmail import MailError, SendFuture
from threadmail._dispatch.job import Job


class Keeper:
    """Takes nothing back, and calls back at once."""

    must_not_wait = False

    def withdraw(self, job: Job, error: MailError, *, cancelled: bool = False) -> bool:
        return False

    def abort(self, job: Job) -> bool:
        return False

    def settle_overdue(self) -> None: ...

    def is_awaited_below(self) -> bool:
        return False

    def call_back(
        self, act: Callable[[SendFuture], object], those: Sequence[SendFuture], *, settling: bool = False
    ) -> None:
        for each in those:
            act(each)
