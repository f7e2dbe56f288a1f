"""What follows from an attempt or a dial, for the schedule.

Owns how a verdict changes the state of a job, the concurrency limit and the circuit breaker. Decides by what it is
given, takes no lock and tells nobody: the dispatcher calls it under its lock, on the worker's thread.
"""

from __future__ import annotations

from ..errors import Aborted, GreetingRefused, MailError
from ..retry import RetryPolicy
from .job import Job
from .limits import has_enough
from .schedule import ON_WIRE, TAKEN, Schedule
from .verdict import Verdict
from .worker import Worker


def put_where_it_belongs(
    schedule: Schedule[Worker], worker: Worker, job: Job, verdict: Verdict, policy: RetryPolicy
) -> bool:
    """Have a job where it belongs after an attempt. Returns whether it is to be told."""
    if worker.current is not job:
        if not worker.run or worker.run[0] is not job or job.state is not TAKEN:
            return False  # it was taken from us before its MAIL: what was found out is about the server only
        # Nothing of it was written, and nobody has claimed it. It is begun with here, in plain statements: wherever it
        # goes from here, it must not be at the head of a run as well, to be sent by two.
        worker.current = job
        job.state = ON_WIRE
        del worker.run[0]
    until = job.taken_first + policy.total
    if verdict.no_session and not job.called_off:
        schedule.give_back_run(worker)  # else it would stand ahead of this one, which came before
        schedule.give_back(job)
        worker.current = None
        if policy.attempts > 1:
            schedule.expires(job, until)  # `total` runs from the first time it was taken, whatever came of that
        return False
    if not verdict.made:
        schedule.return_token()
    so_far = job.receipt if verdict.no_session else None
    receipt = verdict.receipt if so_far is None else so_far.followed_by(verdict.receipt)
    if verdict.again is None or job.called_off:
        schedule.finish(job, receipt, worker)
        return True
    job.receipt = receipt
    job.spared += verdict.signs.spares
    job.envelope = verdict.again
    schedule.again(job, verdict.at, min(job.end.at, until))
    return False


def learn(schedule: Schedule[Worker], worker: Worker, verdict: Verdict, pauses_seen: int, now: float) -> float:
    """Let limit and breaker know. Returns seconds for which all are to pause; 0.0: there is no reason to."""
    if verdict.no_session:
        return 0.0  # the dial has told
    pause = 0.0
    if verdict.sent:
        schedule.limit.count_good(1)
    else:
        pause = schedule.limit.learn(verdict.signs, len(schedule.workers), pauses_seen)
    if verdict.answered:
        schedule.breaker.answered()
    elif verdict.lost is not None and not _others_connected(schedule, worker):
        schedule.breaker.lost(verdict.lost, now)
    return pause


def told_of_dial(schedule: Schedule[Worker], worker: Worker, error: MailError | None, now: float) -> tuple[bool, bool]:
    """A worker has connected, or not. Returns whether that is news of the server, and whether what waits is given up.

    The next to dial finds the breaker as it has to be, and whoever waits for that is to be woken.
    """
    breaker = schedule.breaker
    worker.dialling = False
    if error is None:
        worker.connected = True  # not at its next step: whoever's dial fails meanwhile must know of it
        breaker.connected()
    elif error.deadline_passed or isinstance(error, Aborted):
        breaker.gave_up()
    elif (error.transient or isinstance(error, GreetingRefused)) and _others_connected(schedule, worker):
        # A server that has enough connections is not dead; nor does it mean all of us by its 554, who lets one in.
        breaker.gave_up()
        schedule.limit.let_in_no_more(len(schedule.workers), now, error)
    else:
        news = breaker.error is None
        breaker.failed(error, now)
        return news, breaker.is_final() or breaker.given_up(alive=has_enough(error))
    return False, False


def _others_connected(schedule: Schedule[Worker], worker: Worker) -> bool:
    return any(each.connected for each in list(schedule.workers) if each is not worker)
