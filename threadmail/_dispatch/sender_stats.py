"""What a sender is doing, and has done.

Owns `SenderStats`, and how it is read off the schedule and the workers. A client's own numbers are behind its own lock
or none, so the connections of running workers are counted when the sender's lock has been let go of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..errors import Outcome
from .schedule import Schedule
from .worker import Worker


@dataclass(frozen=True)
class SenderStats:
    """What a sender is doing, and has done.

    Attributes:
        queued: messages waiting for a worker.
        retrying: messages waiting for their next attempt.
        in_flight: messages that a worker has, begun or about to be.
        lanes: workers running; connected: those with a connection.
        outcomes: settled messages by outcome, of those that were queued. Of what was refused at the door (it is none,
            there was no place in time, the sender is closed) the report or the exception tells alone.
        retries: attempts after the first.
        opened: connections made.
        closed: connections ended, by reason (see `ClientStats`).
    """

    queued: int = 0
    retrying: int = 0
    in_flight: int = 0
    lanes: int = 0
    connected: int = 0
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    retries: int = 0
    opened: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)


def seen(schedule: Schedule[Worker]) -> SenderStats:
    """As of one moment, without the connections. Under the lock."""
    workers = list(schedule.workers)
    outcomes = Counter(schedule.outcomes)
    under_way = len(schedule.in_flight)
    for worker in workers:
        told = [job for job in list(worker.finished) if job.completion.done()]
        outcomes[Outcome.SENT] += len(told)
        under_way -= len(told)
    outcomes.update([job.receipt.outcome for job in list(schedule.untold) if job.receipt and job.completion.done()])
    return SenderStats(
        queued=len(schedule.ready),
        retrying=len(schedule.later),
        in_flight=under_way,
        lanes=len(workers),
        connected=sum(worker.connected for worker in workers),
        outcomes={outcome: number for outcome, number in outcomes.items() if number},
        retries=schedule.retries,
    )


def with_connections(stats: SenderStats, opened: int, closed: Counter[str], workers: Iterable[Worker]) -> SenderStats:
    """`stats` with the connections of workers that have ended (`opened`, `closed`) and of those that run."""
    closed = Counter(closed)
    for worker in workers:
        numbers = worker.client.stats()
        opened += numbers.opened
        closed.update(numbers.closed)
    return replace(stats, opened=opened, closed=dict(closed))
