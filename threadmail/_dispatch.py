"""What a ThreadedSender's lanes are to do.

Owns the decisions, each one step under the crew's lock: who gets which job, who may dial, what a failed attempt means
for its message, for the connection limit and for the pace. Guarantees: a message is tried again only if the policy says
that this cannot send it twice; who takes a job has it until it is judged. What callers ask is in `_desk`, which lanes
there are is `_crew`'s business; what happens outside the lock is in `_lane`; batches, callbacks and exit are in
`sender`.
"""

from __future__ import annotations

from math import inf

from ._deadline import Deadline, now
from ._desk import Desk
from ._jobs import Job, JobState
from ._lane import Do, Lane, LaneLife, Withdrawn, lost_aboard
from ._pace import has_enough
from .errors import CONNECTING, Aborted, MailError, Outcome, Phase
from .receipt import Receipt
from .retry import Dial
from .transaction import Transaction

#: No lane sleeps longer than this without a look around, in seconds.
LONGEST_WAIT = 60.0


class Dispatcher(Desk):
    """The queue of one sender, in one process, and those who work it off: see `Desk` for the arguments.

    Each method is a step of a lane.
    """

    def next(self, lane: Lane) -> Job | Do:
        """Count what the lane has done, and wait for something to do."""
        connected = lane.client.is_connected
        resumable = lane.client.aboard
        with self._lock:
            if lane.life is not LaneLife.RUNNING:
                return Do.END
            self._lanes[lane] = None
            self._count(lane, connected)
            return self._resumed(lane, resumable) or self._next(lane)

    def _resumed(self, lane: Lane, resumable: Transaction | None) -> Job | None:
        """The job that was begun behind the last one, if it is still aboard or must be told that it is in doubt."""
        lost: list[Job] = []
        found: Job | None = None
        while lane.aboard and found is None:
            job = lane.aboard.popleft()
            begun = job.transaction
            if job.called_off:
                lane.client.abort()
                found = job
            elif begun is not None and (begun is resumable or begun.phase is Phase.FINAL):
                found = job
            else:
                lost.append(job)
        if found is not None and (found.transaction is None or found.transaction is not resumable):
            lost_aboard(found)
        # The connection was lost under the message ahead: nothing of these was sent, and it was no attempt.
        for job in reversed(lost):
            job.walks = True
            self._throttle.give_back()
            self._queue.put_first(job)
            self._off_the_lane(job, None)
        return found

    def _next(self, lane: Lane) -> Job | Do:
        idle_until: Deadline | None = None
        while self._is_wanted():
            time = now()
            if time >= self._queue.ends_at:
                return Do.EXPIRE
            pause = self._queue.pause(time)
            if pause != 0.0:
                idle_until = idle_until or Deadline.after(self.config.idle_timeout)
                if idle_until.passed and (pause is None or self._idle_lanes):
                    break  # of several lanes that wait for a retry one stays
                if idle_until.passed and lane.connected:
                    return Do.REST
                limit = idle_until if lane.connected or pause is None else Deadline()
                pause = limit.within(pause).remaining()
            elif not lane.connected:
                if self._gate.ask(time) is Dial.NOW:
                    self._dialling[lane] = None
                    lane.needed_until = self._queue.last_end()
                    return Do.DIAL
                pause = self._gate.pause(time)
                if pause is not None and self._gate.error is not None and not self._gate.error.transient:
                    return Do.FAIL
            else:
                pause = self._throttle.take()
                if pause == 0.0:
                    job = self._queue.first(time)
                    assert job is not None
                    return self._take(job, lane, time)
            self._idle_lanes += 1
            try:
                # Without a pause of its own the wait ends when somebody dialled, or called; the bound is for the worst.
                longest = LONGEST_WAIT if pause is None else min(pause, LONGEST_WAIT)
                self._work.wait(max(0.0, min(longest, self._queue.ends_at - now())))
            finally:
                self._idle_lanes -= 1
        self._leaving[lane] = None
        return Do.END

    def _take(self, job: Job, lane: Lane, time: float) -> Job:
        job.pauses_seen = self._pace.pauses
        job.client = lane.client
        self._in_flight[job] = lane
        self._queue.take(job, time)
        self._room.notify()
        return job

    def follow(self, lane: Lane, ahead: Job) -> Job | None:
        """A job whose commands may leave with the content of the one that the lane is about.

        None while another lane has nothing to do, where the deadline of the job might pass while the one ahead is
        waited for, and where it has lost its connection that way before.
        """
        begun = lane.client.aboard
        with self._lock:
            if lane.aboard and lane.aboard[0].transaction is not begun:
                return None  # this is another connection than the one they were aboard: they are to be seen to first
            time = now()
            job = self._queue.first(time)
            if job is None or job.walks or self._idle_lanes or not self._is_wanted():
                return None
            if job.end.at != inf:
                final = ahead.end.within(self.config.timeouts.final)
                if job.end.at < max((other.end.at for other in lane.aboard), default=final.at):
                    return None
            if self._throttle.take() != 0.0:
                return None
            try:
                self._take(job, lane, time)
            except BaseException:
                # From outside. The lane goes on, and nobody would see to this one: so now, for the next one who has the
                # lock may take it back.
                job.state = JobState.QUEUED
                self._throttle.give_back()
                self._queue.restore(job)
                self._queue.count()
                self._off_the_lane(job, None)
                raise
            job.state = JobState.ON_WIRE
            lane.aboard.append(job)
            return job

    def _is_wanted(self) -> bool:
        """Whether a lane is to go on."""
        # Less those that end already: else each lane that looks before the first of them is gone would end as well.
        return self._working and self._lane_count - len(self._leaving) <= self._pace.lane_limit

    def on_wire(self, job: Job, transaction: Transaction) -> None:
        """The job's MAIL is about to be written: the last moment to take it back."""
        with self._lock:
            if job.state is JobState.WITHDRAWN:
                raise Withdrawn
            job.state = JobState.ON_WIRE
            job.transaction = transaction

    def judge(self, job: Job, receipt: Receipt | None) -> MailError | Receipt | None:
        """Decide what an attempt means.

        Returns:
            The final receipt if the job is settled; the error if there was no session to try it in, which says nothing
            about the message; None if it is back in the queue, or was withdrawn.
        """
        with self._lock:
            if receipt is None or job.state is JobState.WITHDRAWN:
                self._throttle.give_back()
                return self._off_the_lane(job, None)
            if receipt.outcome is Outcome.NOT_SENT and receipt.phase in CONNECTING and not job.called_off:
                self._throttle.give_back()
                self._queue.put_first(job)
                return self._off_the_lane(job, receipt.error)
            job.spared += self._pace.learn(receipt, self._lane_count, job.pauses_seen)
            merged = receipt if job.receipt is None else job.receipt.followed_by(receipt)
            pause = self._pause_before_next(job, merged)
            if pause is None:
                return self._finish(job, merged)
            job.receipt = merged
            job.transaction = None
            job.envelope = job.envelope.for_recipients(self._policy.recipients(merged))
            job.due = now() + pause
            self._queue.put(job)
            self._retries += 1
            self._work.notify()
            return self._off_the_lane(job, None)

    def _pause_before_next(self, job: Job, receipt: Receipt) -> float | None:
        if job.called_off or receipt.outcome is Outcome.SENT:
            return None
        pause = self._policy.next_attempt(receipt, now() - job.taken_first, self._rng, spared=job.spared)
        return None if pause is None or now() + pause >= job.end.at else pause

    def _off_the_lane(self, job: Job, error: MailError | None) -> MailError | None:
        job.client = job.transaction = None
        self._in_flight.pop(job, None)
        self._calm.notify()
        return error

    def dialled(self, lane: Lane, error: MailError | None, *, answered: bool = True) -> list[Job]:
        """A lane has connected, or not.

        Args:
            answered: whether the error says something about the server.
        Returns:
            Jobs that end with it, to be announced.
        """
        with self._lock:
            self._dialling.pop(lane, None)
            self._work.notify_all()
            if error is None:
                self._count(lane, True)  # not at its next step: whoever's dial fails meanwhile must know of it
                self._gate.succeeded()
            elif not answered or isinstance(error, Aborted):
                self._gate.gave_up()
            elif error.transient and self._connected > lane.connected:
                self._gate.gave_up()  # a server that has enough connections is not dead
                self._pace.fewer(self._lane_count)
            else:
                self._gate.failed(error, now())
                if not error.transient or self._gate.given_up(alive=has_enough(error)):
                    return self._end_all(error, lane)
            return []

    def fail_queue(self, lane: Lane) -> list[Job]:
        """The server does not let us in: everything that waits for it ends with the reason why."""
        with self._lock:
            return self._end_all(self._gate.error, lane) if self._gate.error is not None else []
