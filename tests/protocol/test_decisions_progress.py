"""Which commands of a message may be written when, each decision at its boundaries."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from threadmail import Envelope, InvalidEnvelope, MessageTooLarge, Phase
from threadmail._message.content import SMALL
from threadmail._protocol.progress import IN_FLIGHT, Progress
from threadmail._protocol.transaction import Command, Terms, Transaction
from threadmail.receipt import Reply

GROUPED = {"pipelining": ""}


def progress(recipients: int, content: bytes = b"Subject: x\r\n\r\nx\r\n", **terms: Any) -> Progress:
    names = [f"r{number}@example.net" for number in range(recipients)]
    return Progress(Envelope("s@example.org", names, content), Terms(**terms))


def counts(prefetched: Progress, answers: int, steps: int) -> list[tuple[int, int]]:
    """How many commands may be written, and are outstanding then, each time that so many were answered."""
    found = []
    for _ in range(steps):
        group = prefetched.take()
        found.append((len(group), len(prefetched.unanswered)))
        for _ in range(min(answers, len(prefetched.unanswered))):
            prefetched.unanswered.popleft()
    return found


def kinds(commands: Any) -> list[Phase]:
    return [command.phase for command in commands]


# What there is to write -----------------------------------------------------------------------------------------------


def test_what_the_server_cannot_take_is_known_before_the_first_byte() -> None:
    refused = progress(1, extensions={**GROUPED, "size": "5"}, window=2)
    assert isinstance(refused.refusal, MessageTooLarge)
    assert not refused.waiting
    assert refused.chunk is None


@pytest.mark.parametrize("fault", [TypeError("what"), RecursionError("deep"), UnicodeError("\x1b")])
def test_what_is_at_fault_with_it_is_an_error_of_ours(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(_: Transaction) -> NoReturn:
        raise fault

    monkeypatch.setattr(Transaction, "commands", commands)
    refused = progress(1, extensions=GROUPED, window=2)
    assert type(refused.refusal) is InvalidEnvelope
    assert str(refused.refusal).startswith(f"the message cannot be written: {type(fault).__name__}: ")
    assert str(refused.refusal).isprintable()
    assert refused.refusal.__cause__ is fault
    assert (list(refused.waiting), refused.chunk) == ([], None)


@pytest.mark.parametrize("from_outside", [MemoryError(), TimeoutError("a time limit"), Exception("another one")])
def test_what_comes_from_outside_is_kept_as_it_is(from_outside: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the call that the message is for: it is neither hidden nor the end of the one ahead."""

    def commands(_: Transaction) -> NoReturn:
        raise from_outside

    monkeypatch.setattr(Transaction, "commands", commands)
    assert progress(1, extensions=GROUPED).refusal is from_outside


def test_an_interrupt_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(_: Transaction) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transaction, "commands", commands)
    with pytest.raises(KeyboardInterrupt):
        progress(1, extensions=GROUPED)


def test_outside_a_window_the_content_is_not_written_with_the_commands() -> None:
    one = progress(1, window=1, extensions=GROUPED)
    assert (one.chunk, one.before, one.refusal) == (None, (), None)
    assert kinds(one.waiting) == [Phase.MAIL, Phase.RCPT, Phase.DATA]


def test_in_a_window_the_content_leaves_with_the_commands_and_a_reset_ahead() -> None:
    one = progress(1, b"x", window=2, extensions=GROUPED)
    assert (one.chunk, one.before) == (b"x\r\n", ("rset",))
    assert one.waiting[-1] == Command(Phase.FINAL, "bdat 3 last")
    assert kinds(one.waiting) == [Phase.MAIL, Phase.RCPT, Phase.FINAL]


def test_a_content_that_ends_with_a_line_end_gets_no_other_one() -> None:
    assert progress(1, b"x\r\n", window=2, extensions=GROUPED).chunk == b"x\r\n"


@pytest.mark.parametrize(("more", "leaves"), [(0, True), (1, False)])
def test_only_a_small_content_leaves_with_the_commands(more: int, leaves: bool) -> None:
    content = b"x" * (SMALL - 2 + more) + b"\r\n"
    one = progress(1, content, window=2, extensions=GROUPED)
    assert (one.chunk is not None, one.before) == (leaves, ("rset",) if leaves else ())
    assert one.waiting[-1].phase is (Phase.FINAL if leaves else Phase.DATA)


@pytest.mark.parametrize(("recipients", "leaves"), [(48, True), (49, False)])
def test_many_recipients_are_asked_first(recipients: int, leaves: bool) -> None:
    """Fifty commands; else two messages under way would have more outstanding than both sides can keep."""
    assert (progress(recipients, window=2, extensions=GROUPED).chunk is not None) == leaves
    assert IN_FLIGHT == 100


# What may be written now ----------------------------------------------------------------------------------------------


def test_without_pipelining_it_is_one_at_a_time() -> None:
    one = progress(2, extensions={"size": ""})
    assert counts(one, 0, 2) == [(1, 1), (0, 1)]
    one = progress(2, extensions={"size": ""})
    assert counts(one, 1, 5) == [(1, 1)] * 4 + [(0, 0)]


@pytest.mark.parametrize("recipients", [1, 98])
def test_nearly_always_it_is_all_of_them(recipients: int) -> None:
    one = progress(recipients, extensions=GROUPED)
    whole = list(one.waiting)
    assert list(one.take()) == whole
    assert list(one.unanswered) == whole
    assert not one.waiting


@pytest.mark.parametrize("recipients", [1, 98])
def test_where_all_are_written_at_once_they_are_not_copied(recipients: int) -> None:
    """Two of these or more are made for each message."""
    one = progress(recipients, extensions=GROUPED)
    waiting = one.waiting
    assert one.take() is waiting
    assert one.unanswered is waiting


@pytest.mark.parametrize("recipients", [99, 300])
def test_of_many_as_many_as_may_be_outstanding(recipients: int) -> None:
    one = progress(recipients, extensions=GROUPED)
    assert counts(one, 0, 2) == [(100, 100), (0, 100)]


def test_more_are_written_when_half_of_them_have_been_answered() -> None:
    one = progress(300, extensions=GROUPED)
    one.take()
    for _ in range(49):
        one.unanswered.popleft()
    assert one.take() == []
    one.unanswered.popleft()
    assert len(one.take()) == 50
    assert len(one.unanswered) == 100


def test_the_rest_is_written_at_once_where_there_is_room_for_it() -> None:
    one = progress(148, extensions=GROUPED)
    assert counts(one, 50, 3) == [(100, 100), (50, 100), (0, 50)]
    one = progress(149, extensions=GROUPED)
    assert counts(one, 50, 4) == [(100, 100), (50, 100), (1, 51), (0, 1)]


def test_the_commands_come_in_order_whatever_is_outstanding() -> None:
    one = progress(300, extensions=GROUPED)
    whole, written = list(one.waiting), list[Command]()
    while True:
        written.extend(one.take())
        if not one.unanswered:
            break
        assert list(one.unanswered) == written[-len(one.unanswered) :]
        one.unanswered.popleft()
    assert written == whole


# All or nothing -------------------------------------------------------------------------------------------------------


def test_who_wants_all_or_nothing_asks_for_the_content_when_all_have_answered() -> None:
    one = progress(3, extensions=GROUPED, all_or_nothing=True)
    assert kinds(one.take()) == [Phase.MAIL, Phase.RCPT, Phase.RCPT, Phase.RCPT]
    for _ in range(4):
        assert one.take() == []
        one.unanswered.popleft()
    assert kinds(one.take()) == [Phase.DATA]
    assert kinds(one.unanswered) == [Phase.DATA]
    assert one.take() == []


def test_all_or_nothing_of_many_keeps_to_what_may_be_outstanding() -> None:
    one = progress(149, extensions=GROUPED, all_or_nothing=True)
    assert counts(one, 50, 5) == [(100, 100), (50, 100), (0, 50), (1, 1), (0, 0)]


def test_all_or_nothing_asks_the_last_one_alone_as_well() -> None:
    one = progress(100, extensions=GROUPED, all_or_nothing=True)
    assert counts(one, 50, 4) == [(100, 100), (1, 51), (0, 1), (1, 1)]


def test_all_or_nothing_without_pipelining_is_one_at_a_time() -> None:
    one = progress(2, extensions={"size": ""}, all_or_nothing=True)
    assert counts(one, 0, 2) == [(1, 1), (0, 1)]
    one = progress(2, extensions={"size": ""}, all_or_nothing=True)
    assert counts(one, 1, 5) == [(1, 1)] * 4 + [(0, 0)]


def test_what_was_answered_is_of_the_transaction() -> None:
    """The progress decides nothing by it."""
    one = progress(1, extensions=GROUPED)
    one.take()
    one.transaction.take(one.unanswered.popleft(), Reply(550, b"5.7.1 no"))
    assert len(one.unanswered) == 2
