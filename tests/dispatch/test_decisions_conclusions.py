"""What follows from an attempt or a dial for the schedule of a sender, each decision at its boundaries."""

from __future__ import annotations

import random
import threading
from collections import deque
from math import inf
from typing import Any, cast

import pytest

from threadmail import Envelope, MailError, Outcome, Phase, Receipt, RetryPolicy
from threadmail._connection.breaker import CircuitBreaker, Dial
from threadmail._dispatch.conclusions import learn, put_where_it_belongs, told_of_dial
from threadmail._dispatch.job import Job, JobState
from threadmail._dispatch.limits import SHORTEST_PAUSE, Signs
from threadmail._dispatch.schedule import Schedule
from threadmail._dispatch.verdict import Verdict
from threadmail._dispatch.worker import Worker
from threadmail._runtime.deadline import NEVER, Deadline
from threadmail.errors import (
    Aborted,
    ConnectFailed,
    ConnectionLost,
    GreetingRefused,
    HeloRefused,
    LoginRefused,
    TimedOut,
)

LETTER = Envelope("s@example.org", ["r@example.org"], b"Subject: x\r\n\r\nx\r\n")
REST = LETTER.for_recipients(["r@example.org"])
TAKEN_AT = 10.0
NOW = 20.0
POLICY = RetryPolicy(attempts=3, base=1.0, longest=8.0, total=100.0)
ONCE = RetryPolicy(attempts=1, total=100.0)
NOBODY = ConnectFailed("nobody listens there")
NOT_NOW = GreetingRefused(421, b"4.3.2 too many connections")
NEVER_SO = GreetingRefused(554, b"5.7.1 no")
NO_HELO = HeloRefused(550, b"5.7.1 no")


class Completion:
    def done(self) -> bool:
        return False

    def settle(self, job: Job, receipt: Receipt) -> None: ...

    def put_off(self) -> None: ...


class Fake:
    """A worker, as far as the schedule knows it."""

    def __init__(self, *, connected: bool = True) -> None:
        self.connected, self.dialling, self.idle_since = connected, False, 0.0
        self.run: deque[Job] = deque()
        self.current: Job | None = None
        self.left: list[Job] = []
        self.lock = threading.RLock()


class Case:
    """A schedule with one worker, and one job that it has taken."""

    def __init__(self, *, begun: bool = True, end: Deadline = NEVER, policy: RetryPolicy = POLICY) -> None:
        self.returned = 0
        self.policy = policy
        self.schedule: Schedule[Any] = Schedule(
            workers=4,
            queue_size=100,
            idle_timeout=None,
            breaker=CircuitBreaker(policy, random.Random(1)),
            take_token=lambda: 0.0,
            return_token=self._return_token,
            is_limited=lambda: False,
        )
        self.worker = self.another()
        self.job = Job(LETTER, end, keeper=None, completion=Completion())  # type: ignore[arg-type]
        self.schedule.submit(self.job)
        self.schedule.take_run(self.worker, TAKEN_AT)
        self.job.taken_first = TAKEN_AT
        if begun:
            self.worker.run.clear()
            self.worker.current = self.job
            self.job.state = JobState.ON_WIRE

    def _return_token(self) -> None:
        self.returned += 1

    def another(self, *, connected: bool = True) -> Fake:
        worker = Fake(connected=connected)
        self.schedule.workers[worker] = None
        return worker

    def put(self, verdict: Verdict) -> bool:
        return put_where_it_belongs(self.schedule, cast(Worker, self.worker), self.job, verdict, self.policy)

    def learn(self, verdict: Verdict, pauses_seen: int = 0) -> float:
        return learn(self.schedule, cast(Worker, self.worker), verdict, pauses_seen, NOW)

    def dialled(self, error: MailError | None) -> tuple[bool, bool]:
        self.schedule.breaker.ask(NOW)
        self.worker.dialling = True
        return told_of_dial(self.schedule, cast(Worker, self.worker), error, NOW)

    @property
    def place(self) -> tuple[JobState, bool, bool, bool, bool]:
        """The state; and whether it is in the queue, waits for later, is with a worker, or is to be told."""
        schedule, job = self.schedule, self.job
        return (
            job.state,
            job in schedule.ready,
            job in schedule.later,
            job in schedule.in_flight,
            job in schedule.untold,
        )


READY = (JobState.READY, True, False, False, False)
LATER = (JobState.LATER, False, True, False, False)
DONE = (JobState.DONE, False, False, False, True)


def receipt(outcome: Outcome = Outcome.NOT_SENT, phase: Phase = Phase.MAIL, attempts: int = 1) -> Receipt:
    accepted = LETTER.recipients if outcome is Outcome.SENT else ()
    return Receipt(outcome, phase, LETTER.sender, LETTER.recipients, None, accepted, attempts=attempts)


NO_SESSION = Verdict(receipt(phase=Phase.CONNECT, attempts=0), made=False, no_session=True)


# Where the job belongs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [True, False])
def test_the_last_attempt_ends_it(begun: bool) -> None:
    """Also of one that its worker had at the head of its run only."""
    case = Case(begun=begun)
    verdict = Verdict(receipt())
    assert case.put(verdict)
    assert case.place == DONE
    assert case.job.receipt is verdict.receipt
    assert case.returned == 0


def test_one_that_somebody_else_has_by_now_is_left_to_him() -> None:
    case = Case(begun=False)
    case.worker.run.clear()
    assert not case.put(Verdict(receipt()))
    assert case.job.receipt is None
    assert case.job.state is JobState.TAKEN


def test_one_behind_the_head_of_the_run_was_not_begun() -> None:
    case = Case(begun=False)
    other = Job(LETTER, NEVER, keeper=None, completion=Completion())  # type: ignore[arg-type]
    case.worker.run.appendleft(other)
    assert not case.put(Verdict(receipt()))
    assert case.job.receipt is None


def test_one_that_was_taken_out_meanwhile_stays_as_it_is() -> None:
    case = Case(begun=False)
    case.job.state = JobState.DONE
    assert not case.put(Verdict(receipt()))
    assert case.job.receipt is None


@pytest.mark.parametrize("begun", [True, False])
def test_without_a_session_it_is_the_first_in_the_queue_again(begun: bool) -> None:
    case = Case(begun=begun)
    assert not case.put(NO_SESSION)
    assert case.place == READY
    assert case.job.receipt is None
    assert case.worker.current is None
    assert case.returned == 1
    assert case.schedule.ends.at(case.job) == TAKEN_AT + POLICY.total
    assert list(case.worker.run) == []


def test_without_a_session_its_whole_run_goes_back_in_order() -> None:
    """What is at the head of a run and in the queue would be two workers'."""
    case = Case(begun=False)
    behind = Job(LETTER, NEVER, keeper=None, completion=Completion())  # type: ignore[arg-type]
    case.schedule.submit(behind)
    case.schedule.take_run(cast(Worker, case.worker), TAKEN_AT)
    assert not case.put(NO_SESSION)
    assert (list(case.schedule.ready), list(case.worker.run)) == ([case.job, behind], [])


def test_one_that_is_tried_once_waits_for_a_session_until_its_own_deadline() -> None:
    case = Case(policy=ONCE)
    assert not case.put(NO_SESSION)
    assert case.place == READY
    assert case.schedule.ends.at(case.job) == inf


def test_one_that_is_tried_twice_waits_no_longer_than_the_policy() -> None:
    case = Case(policy=RetryPolicy(attempts=2, total=50.0))
    assert not case.put(NO_SESSION)
    assert case.schedule.ends.at(case.job) == TAKEN_AT + 50.0


def test_one_that_was_called_off_ends_without_a_session_as_well() -> None:
    case = Case()
    case.job.called_off = True
    assert case.put(NO_SESSION)
    assert case.place == DONE
    assert case.job.receipt is NO_SESSION.receipt
    assert case.returned == 1, "it was no attempt"


def test_what_earlier_attempts_have_come_to_is_kept_where_there_is_no_session() -> None:
    """The verdict knows nothing of them; that of any other attempt has them in it already."""
    case = Case()
    case.job.called_off = True
    case.job.receipt = Receipt(Outcome.IN_DOUBT, Phase.FINAL, LETTER.sender, LETTER.recipients, attempts=2)
    assert case.put(NO_SESSION)
    assert case.job.receipt.outcome is Outcome.IN_DOUBT
    assert case.job.receipt.attempts == 2
    case = Case()
    case.job.receipt = receipt()
    merged = receipt(attempts=2)
    assert case.put(Verdict(merged))
    assert case.job.receipt is merged


def test_an_attempt_that_was_none_gives_its_token_back() -> None:
    case = Case()
    assert case.put(Verdict(receipt(attempts=0), made=False))
    assert (case.returned, case.place) == (1, DONE)


def test_one_whose_attempt_never_got_to_its_mail_waits_for_another_in_one_place_only() -> None:
    """At the head of the run as well it would be claimed by the one, when another one sends it by then."""
    case = Case(begun=False)
    assert not case.put(Verdict(receipt(), REST, 30.0))
    assert case.place == LATER
    assert list(case.worker.run) == []


@pytest.mark.parametrize("end", [NEVER, Deadline(60.0)])
def test_another_attempt_is_made_before_the_deadline_and_the_end_of_patience(end: Deadline) -> None:
    case = Case(end=end)
    assert not case.put(Verdict(receipt(), REST, 30.0))
    assert case.place == LATER
    assert case.job.envelope is REST
    assert case.job.receipt is not None
    assert case.schedule.later.at(case.job) == 30.0
    assert case.schedule.ends.at(case.job) == min(end.at, TAKEN_AT + POLICY.total)
    assert case.returned == 0


def test_no_other_attempt_is_made_for_one_that_was_called_off() -> None:
    case = Case()
    case.job.called_off = True
    assert case.put(Verdict(receipt(), REST, 30.0))
    assert case.place == DONE


@pytest.mark.parametrize(("signs", "spared"), [(Signs(greylisted=True), 3), (Signs(), 2)])
def test_what_was_put_off_for_the_servers_sake_is_counted(signs: Signs, spared: int) -> None:
    case = Case()
    case.job.spared = 2
    case.put(Verdict(receipt(), REST, 30.0, signs))
    assert case.job.spared == spared


# What limit and breaker learn -----------------------------------------------------------------------------------------

ANSWERED = Verdict(receipt(), answered=True)
LOST = Verdict(receipt(), lost=ConnectionLost("it hung up"))


def failing(case: Case) -> Case:
    case.schedule.breaker.ask(0.0)
    case.schedule.breaker.failed(NOBODY, 0.0)
    return case


def test_where_there_was_no_session_the_dial_has_told_already() -> None:
    case = failing(Case())
    case.schedule.limit.count_good(1)
    assert case.learn(NO_SESSION._replace(sent=True, answered=True, signs=Signs(too_fast=True))) == 0.0
    assert case.schedule.breaker.failures == 1
    assert case.schedule.limit._good_in_a_row == 1


def test_a_message_that_went_well_is_counted_once() -> None:
    case = failing(Case())
    assert case.learn(Verdict(receipt(Outcome.SENT, Phase.DONE), sent=True, answered=True)) == 0.0
    assert case.schedule.limit._good_in_a_row == 1
    assert case.schedule.breaker.is_closed


def test_the_signs_of_one_that_went_well_are_not_looked_at() -> None:
    case = Case()
    assert case.learn(Verdict(receipt(Outcome.SENT, Phase.DONE), signs=Signs(too_fast=True), sent=True)) == 0.0
    assert case.schedule.limit.pauses == 0


def test_a_sign_of_overload_pauses_all() -> None:
    case = Case()
    case.another()
    case.another()
    assert case.learn(Verdict(receipt(), signs=Signs(too_fast=True), answered=True)) == SHORTEST_PAUSE
    assert case.schedule.limit.workers == 2, "one less than there are"
    assert case.learn(Verdict(receipt(), signs=Signs(too_fast=True), answered=True), pauses_seen=0) == 0.0
    assert case.learn(Verdict(receipt(), signs=Signs(too_fast=True), answered=True), pauses_seen=1) > 0.0


def test_an_answer_closes_the_breaker() -> None:
    case = failing(Case())
    assert case.learn(ANSWERED) == 0.0
    assert case.schedule.breaker.is_closed


def test_an_attempt_without_an_answer_says_nothing() -> None:
    case = failing(Case())
    assert case.learn(Verdict(receipt())) == 0.0
    assert (case.schedule.breaker.failures, case.schedule.breaker.is_closed) == (1, False)


@pytest.mark.parametrize(("others", "failures"), [(None, 1), (False, 1), (True, 0)])
def test_a_session_taken_back_is_a_failure_unless_others_serve(others: bool | None, failures: int) -> None:
    """The worker itself is none of the others."""
    case = Case()
    case.schedule.breaker.ask(0.0)
    case.schedule.breaker.connected()
    if others is not None:
        case.another(connected=others)
    assert case.learn(LOST) == 0.0
    assert case.schedule.breaker.failures == failures
    assert (case.schedule.breaker.error is LOST.lost) == bool(failures)


# What a dial tells ----------------------------------------------------------------------------------------------------


def test_who_has_connected_is_so_at_once() -> None:
    case = Case()
    case.worker.connected = False
    assert case.dialled(None) == (False, False)
    assert (case.worker.connected, case.worker.dialling) == (True, False)
    assert case.schedule.breaker.is_closed


def late() -> TimedOut:
    error = TimedOut("too late")
    error.deadline_passed = True
    return error


@pytest.mark.parametrize("error", [Aborted("called off"), late()])
def test_what_ended_on_our_side_says_nothing_of_the_server(error: MailError) -> None:
    case = Case()
    case.worker.connected = False
    assert case.dialled(error) == (False, False)
    breaker = case.schedule.breaker
    assert (breaker.failures, breaker.probing, breaker.error) == (0, False, None)
    assert breaker.ask(NOW) is Dial.NOW
    assert (case.worker.connected, case.worker.dialling) == (False, False)
    assert case.schedule.limit.workers == 4


def test_one_that_is_not_let_in_while_others_serve_is_one_too_many() -> None:
    case = Case()
    case.worker.connected = False
    case.another()
    case.another(connected=False)
    assert case.dialled(NOT_NOW) == (False, False)
    breaker = case.schedule.breaker
    assert (breaker.failures, breaker.probing, breaker.error) == (0, False, None)
    assert case.schedule.limit.workers == 2, "one less than there are"


def test_a_554_to_one_more_while_others_serve_is_no_end_either() -> None:
    """A server that lets one in does not mean all of us; where it lets nobody in, that is the end."""
    case = Case()
    case.worker.connected = False
    case.another()
    assert case.dialled(NEVER_SO) == (False, False)
    assert (case.schedule.breaker.error, case.schedule.limit.workers) == (None, 1)
    alone = Case()
    alone.worker.connected = False
    assert alone.dialled(NEVER_SO) == (True, True)


@pytest.mark.parametrize(("error", "others"), [(NOT_NOW, False), (NO_HELO, True), (NOBODY, False)])
def test_any_other_failure_is_the_servers_and_the_first_one_is_news(error: MailError, others: bool) -> None:
    case = Case()
    case.worker.connected = False
    case.another(connected=others)
    news, _ = case.dialled(error)
    assert news
    assert case.schedule.breaker.error is error
    assert case.schedule.limit.workers == 4
    case.schedule.breaker.opens_at = 0.0
    assert not case.dialled(error)[0], "the second is none"


@pytest.mark.parametrize(
    ("error", "policy", "given_up"),
    [
        (NOBODY, POLICY, False),
        (NOBODY, ONCE, True),
        (NOT_NOW, POLICY, False),
        (NEVER_SO, POLICY, True),
        (LoginRefused(535, b"5.7.8 no"), POLICY, True),
    ],
)
def test_what_waits_is_given_up_where_the_policy_has_no_patience_left(
    error: MailError, policy: RetryPolicy, given_up: bool
) -> None:
    assert Case(policy=policy).dialled(error) == (True, given_up)


def test_a_server_that_has_enough_is_waited_for_as_long_as_the_policy_says() -> None:
    """And one that does not answer gets so many dials."""
    for error, given_up in ((NOT_NOW, False), (NOBODY, True)):
        case = Case(policy=RetryPolicy(attempts=2, total=1e9))
        for _ in range(2):
            case.schedule.breaker.opens_at = 0.0
            told = case.dialled(error)
        assert told == (False, given_up)
