"""What a caller of a pool has, and what the use of it says, each decision at its boundaries."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from threadmail import MailError, Phase, Receipt
from threadmail._connection.evidence import mail_was_answered, was_taken_back
from threadmail._pool import leases as _leases
from threadmail._pool.held import Held
from threadmail._pool.leases import (
    AT_ONCE,
    LINE,
    LINE_OF_HOLDERS,
    _had_here,
    have_here,
    held,
    in_line,
    is_good,
    is_refusal,
    no_longer_here,
)
from threadmail._runtime.deadline import NEVER, Deadline
from threadmail.envelope import Envelope
from threadmail.errors import (
    CONNECTING,
    Aborted,
    BadReply,
    Closed,
    ConnectFailed,
    ConnectionLost,
    DataRefused,
    InvalidEnvelope,
    MessageTooLarge,
    Reentered,
    SenderRefused,
    TimedOut,
    kept_copy,
    of_hook,
)

KEYS: Any = object()
OTHERS: Any = object()


def in_a_new_context(act: Callable[[], object]) -> None:
    contextvars.Context().run(act)


# What the caller has --------------------------------------------------------------------------------------------------


def test_who_has_nothing_has_nothing() -> None:
    def act() -> None:
        assert held(KEYS) == ()

    in_a_new_context(act)


def test_what_he_has_is_of_one_pool_and_in_the_order_of_having() -> None:
    def act() -> None:
        first, second, other = Held[Any](KEYS), Held[Any](KEYS), Held[Any](OTHERS)
        for has in (first, other, second):
            have_here(has)
        assert held(KEYS) == (first, second)
        assert held(OTHERS) == (other,)

    in_a_new_context(act)


def test_what_is_over_he_has_no_longer() -> None:
    def act() -> None:
        first, second = Held[Any](KEYS), Held[Any](KEYS)
        have_here(first)
        have_here(second)
        second.over = True
        assert held(KEYS) == (first,)

    in_a_new_context(act)


def test_what_was_begun_in_another_thread_is_not_his() -> None:
    """Frameworks enter a lease in a thread of theirs, and go on in another one with a copy of its context."""

    def act() -> None:
        have_here(Held[Any](KEYS))
        copied = contextvars.copy_context()
        found: list[object] = []
        thread = threading.Thread(target=copied.run, args=(lambda: found.append(held(KEYS)),), name="another")
        thread.start()
        thread.join(10.0)
        assert found == [()]
        assert len(held(KEYS)) == 1

    in_a_new_context(act)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nothing_is_kept_of_what_is_over(number: int) -> None:
    """A thread that leases for years would keep the notes of all its leases."""

    def act() -> None:
        all_of_them = [Held[Any](KEYS) for _ in range(number)]
        for has in all_of_them:
            have_here(has)
        for left, has in reversed(list(enumerate(all_of_them))):
            no_longer_here(has)
            assert has.over
            assert [each for _, each in _had_here.get()] == all_of_them[:left]

    in_a_new_context(act)


def test_nor_of_what_another_thread_has_ended() -> None:
    """A lease that is handed over: its end is in a context of its own, and the notes here grew with each."""

    def act() -> None:
        lasting = Held[Any](KEYS)
        have_here(lasting)
        for _ in range(3):
            handed_over = Held[Any](KEYS)
            have_here(handed_over)
            contextvars.Context().run(no_longer_here, handed_over)
        last = Held[Any](KEYS)
        have_here(last)
        assert [each for _, each in _had_here.get()] == [lasting, last]

    in_a_new_context(act)


def test_what_ends_elsewhere_leaves_what_is_here() -> None:
    """A lease that was begun in another context, and one that nobody has noted."""

    def act() -> None:
        elsewhere, here = Held[Any](KEYS), Held[Any](KEYS)
        no_longer_here(elsewhere)
        assert elsewhere.over
        have_here(here)
        no_longer_here(elsewhere)
        assert held(KEYS) == (here,)
        have_here(Held[Any](KEYS))
        no_longer_here(elsewhere)
        assert len(held(KEYS)) == 2

    in_a_new_context(act)


def test_how_long_he_stands_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as he says; else less where he has something already, for which others may wait."""
    monkeypatch.setattr(_leases, "Deadline", OneOf)
    given, nothing, something = object(), (), (Held[Any](KEYS),)
    asked: Any = in_line
    for holds in (nothing, something):
        assert asked(given, holds) is given
    assert asked(NEVER, nothing) == OneOf(LINE)
    assert asked(NEVER, something) == OneOf(LINE_OF_HOLDERS)
    assert (LINE, LINE_OF_HOLDERS) == (60.0, 2.0)


class OneOf(NamedTuple):
    """A deadline after so many seconds."""

    seconds: float

    @classmethod
    def after(cls, seconds: float) -> OneOf:
        return cls(seconds)


# What an error says ---------------------------------------------------------------------------------------------------


def at(phase: Phase | None, error: MailError, *, late: bool = False) -> MailError:
    error.phase = phase
    error.deadline_passed = late
    return error


@pytest.mark.parametrize("phase", sorted(CONNECTING, key=str))
def test_what_ends_a_dial_is_a_refusal_unless_the_caller_ended_it(phase: Phase) -> None:
    assert is_refusal(at(phase, ConnectFailed("nobody")))
    assert not is_refusal(at(phase, TimedOut("too late"), late=True))
    assert not is_refusal(at(phase, Aborted("called off")))
    assert not is_refusal(at(phase, Reentered("in the middle of a login")))


@pytest.mark.parametrize("phase", [None, Phase.MAIL, Phase.FINAL])
def test_what_comes_after_a_dial_is_none(phase: Phase | None) -> None:
    assert not is_refusal(at(phase, ConnectionLost("it hung up")))


def test_what_is_kept_is_a_copy_that_nothing_hangs_on() -> None:
    error = ConnectFailed("nobody")
    Receipt.not_sent(Envelope("s@example.org", ["r@example.org"], b"x"), error)
    kept = kept_copy(error)
    assert (type(kept), str(kept), kept.receipt) == (ConnectFailed, str(error), None)
    assert kept is not error
    assert error.receipt is not None


class Used:
    """A client that is kept."""

    def __init__(self) -> None:
        self.sync_root: Any = threading.RLock()
        self.good = True
        self.asked: list[Deadline] = []

    def _still_good(self, end: Deadline) -> bool:
        self.asked.append(end)
        return self.good


ANSWERED, TAKEN_BACK, NOTHING = (True, False), (False, True), (False, False)
CLOSING = SenderRefused(421, b"4.3.2 closing", "s@example.org")


def said(error: MailError) -> tuple[bool, bool]:
    """Whether it says that a MAIL was answered, and that the session was taken back."""
    return mail_was_answered(error), was_taken_back(error)


@pytest.mark.parametrize(
    ("phase", "error", "says"),
    [
        (Phase.MAIL, ConnectionLost("it hung up"), TAKEN_BACK),
        (Phase.MAIL, BadReply("what is that"), TAKEN_BACK),
        (Phase.MAIL, CLOSING, TAKEN_BACK),
        (Phase.MAIL, SenderRefused(420, b"4.3.2 no", "s@example.org"), ANSWERED),
        (Phase.MAIL, SenderRefused(422, b"4.3.2 no", "s@example.org"), ANSWERED),
        (Phase.MAIL, SenderRefused(550, b"5.7.1 no", "s@example.org"), ANSWERED),
        (Phase.MAIL, InvalidEnvelope("too large"), NOTHING),
        (Phase.MAIL, MessageTooLarge(552, b"5.3.4 too large", "s@example.org"), NOTHING),
        (Phase.RCPT, ConnectionLost("it hung up"), ANSWERED),
        (Phase.FINAL, DataRefused(421, b"4.3.2 closing"), ANSWERED),
        (None, InvalidEnvelope("no"), NOTHING),
        (Phase.CONNECT, ConnectFailed("nobody"), NOTHING),
        (Phase.AUTH, ConnectionLost("it hung up"), NOTHING),
    ],
)
def test_what_the_end_of_a_message_says_of_the_server(
    phase: Phase | None, error: MailError, says: tuple[bool, bool]
) -> None:
    assert said(at(phase, error)) == says


def test_only_the_server_takes_a_session_back() -> None:
    assert said(at(Phase.MAIL, ConnectionLost("too late"), late=True)) == NOTHING
    assert said(at(Phase.MAIL, Aborted("called off"))) == NOTHING


@pytest.mark.parametrize(
    "error", [SenderRefused(550, b"5.7.1 no", "s@example.org"), CLOSING, ConnectionLost("it hung up")]
)
def test_what_a_hook_raises_says_nothing_before_the_mail_was_answered(error: MailError) -> None:
    raised = of_hook(error)
    assert said(at(Phase.MAIL, raised)) == NOTHING
    assert said(at(Phase.CONTENT, raised)) == ANSWERED


# Whether a kept client is good ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [True, False])
def test_a_kept_client_is_asked_itself(good: bool) -> None:
    client: Any = Used()
    client.good = good
    assert is_good(client, NEVER) is good
    assert client.asked == [NEVER]


def test_one_that_another_thread_holds_is_not_waited_for() -> None:
    client: Any = Used()

    class Held:
        def acquire(self, blocking: bool, timeout: float) -> bool:
            assert timeout <= 0.0, "nobody waits"
            return False

        def __exit__(self, *_: object) -> None: ...

    client.sync_root = Held()
    assert is_good(client, NEVER) is False
    assert client.asked == []
    assert AT_ONCE.at == 0.0, "no clock shows less"


@pytest.mark.parametrize(("late", "passed"), [(True, False), (False, True), (False, False)])
def test_one_that_could_not_tell_in_time_is_not_good(late: bool, passed: bool) -> None:
    client: Any = Used()

    def silent(_: Deadline) -> bool:
        raise at(None, TimedOut("too late"), late=late)

    client._still_good = silent
    assert is_good(client, AT_ONCE if passed else NEVER) is False


def test_a_caller_whose_own_time_is_over_says_nothing_of_it() -> None:
    client: Any = Used()

    def too_late(_: Deadline) -> bool:
        raise at(None, TimedOut("too late"), late=True)

    client._still_good = too_late
    with pytest.raises(TimedOut):
        is_good(client, AT_ONCE)


@pytest.mark.parametrize("error", [Closed("somebody closed it"), Reentered("in the middle of a call")])
def test_one_that_its_former_user_has_closed_or_uses_still_is_not_good(error: MailError) -> None:
    client: Any = Used()

    def refuses(_: Deadline) -> bool:
        raise error

    client._still_good = refuses
    assert is_good(client, NEVER) is False
