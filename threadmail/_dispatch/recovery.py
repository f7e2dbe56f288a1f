"""What a worker leaves lying: a connection that was lost under what was prefetched, or a worker that was interrupted.

Owns the decision what becomes of such jobs: put back where surely nothing was sent, told as it stands where not. The
dispatcher's lock is held by whoever calls, on the worker's thread or after its end; nothing is told here.
"""

from __future__ import annotations

from .._protocol.transaction import Transaction
from .._runtime.deadline import now
from ..errors import ConnectFailed, Phase
from .job import Job
from .schedule import DONE, LATER, READY, Schedule
from .worker import Worker, as_it_stands, lost_prefetched


def lost_behind(schedule: Schedule[Worker], worker: Worker, resumable: Transaction | None) -> Job | None:
    """Of the jobs that were begun behind the last one: the first that goes on, or must be told how it stands.

    Args:
        resumable: the transaction that its connection still has under way.
    """
    found: Job | None = None
    lost: list[Job] = []
    while worker.prefetched and found is None:
        job = worker.prefetched[0]
        begun = job.transaction
        if job.called_off:
            worker.client.abort()
            found = job
        elif begun is not None and (begun is resumable or begun.phase is Phase.FINAL):
            found = job
        else:
            # The connection was lost under the one ahead: nothing of this was sent, and it was no attempt.
            lost += (job,)
        worker.current = found
        del worker.prefetched[0]
    if found is not None and (found.transaction is None or found.transaction is not resumable):
        lost_prefetched(found)
    if lost:
        schedule.give_back_run(worker)  # else it would stand ahead of those who came before
    for job in reversed(lost):
        job.alone = True
        schedule.give_back(job)
    return found


def left_by(schedule: Schedule[Worker], worker: Worker) -> list[Job]:
    """Put back or finish what a worker that has ended has left lying. Returns what is to be told, perhaps again.

    That is noted with the worker before anything is forgotten: whoever is interrupted here, or behind it, finds it
    there when he comes again.
    """
    if worker.wasted:
        # For the server that is as if it had taken the session back: a worker that ends so each time would else be
        # followed by another one at once, which dials, and so on, hundreds of times a second.
        worker.wasted = False  # first: it is counted once
        schedule.breaker.lost(ConnectFailed("a worker ended early, before it had sent anything"), now())
    told = worker.left
    left = [job for job, owner in list(schedule.in_flight.items()) if owner is worker]
    for job in left:
        if job.state is DONE:
            told += (job,)
        elif _ends_as_it_stands(schedule, worker, job):
            schedule.finish(job, as_it_stands(job), worker)
    worker.current = None
    worker.prefetched.clear()
    for job in left:
        if schedule.in_flight.get(job) is worker:
            del schedule.in_flight[job]
    if not any(each.dialling for each in list(schedule.workers)):
        schedule.breaker.nobody_dials()  # who did was interrupted before he could say so
    return told


def _ends_as_it_stands(schedule: Schedule[Worker], worker: Worker, job: Job) -> bool:
    if job.state in (READY, LATER, DONE):
        if job.state is READY:
            schedule.ready.setdefault(job, None)
        return False
    begun = job.transaction
    if not job.called_off and (
        begun is None or (job in worker.prefetched and begun.phase not in (Phase.FINAL, Phase.DONE))
    ):
        job.alone = begun is not None
        schedule.give_back(job)
        return False
    return True
