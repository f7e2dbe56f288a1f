"""What is under way in a window, each decision at its boundaries. The wire is a note of what was asked of it."""

from __future__ import annotations

import contextlib
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from threadmail import Envelope, Outcome, Phase
from threadmail._protocol.progress import IN_FLIGHT, Progress
from threadmail._protocol.transaction import Terms, Transaction
from threadmail._session.window import Window
from threadmail.errors import BadReply, ConnectionLost, DataRefused, SenderRefused
from threadmail.receipt import Reply

LETTER = Envelope("s@example.org", ["r@example.net"], b"Subject: x\r\n\r\nx\r\n")
TERMS = Terms(extensions={"pipelining": "", "chunking": ""}, window=4)
OK, NO, CLOSING = Reply(250, b"2.0.0 ok"), Reply(550, b"5.7.1 no"), Reply(421, b"4.3.2 closing")
LOST = ConnectionLost("it hung up")
COMMAND, FINAL, QUIT = 1.0, 2.0, 3.0


class Wire:
    """What was written, and what is answered in turn: a reply, or why none comes."""

    def __init__(self) -> None:
        self.timeouts = SimpleNamespace(quit=QUIT, final=FINAL, command=COMMAND)
        self.acknowledges_at_once = False
        self.content_left = 0
        self.is_open = True
        self.written: list[tuple[list[str], bytes]] = []
        self.quiet = 0
        self.answers: deque[Reply | Exception] = deque()
        self.waited: list[float] = []
        self.breaks: Exception | None = None

    def require_quiet(self) -> None:
        self.quiet += 1

    def write_chunk(self, lines: list[str], chunk: bytes) -> None:
        if self.breaks is not None:
            raise self.breaks
        self.written.append((lines, chunk))

    def read_reply(self, timeout: float) -> Reply:
        self.waited.append(timeout)
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.is_open = False


class Case:
    def __init__(self) -> None:
        self.wire = Wire()
        self.prefetched: deque[Progress] = deque()
        self.window = Window(cast(Any, self.wire), self.prefetched)

    def progress(self, recipients: int = 1) -> Progress:
        names = [f"r{number}@example.net" for number in range(recipients)]
        progress = Progress(Envelope("s@example.org", names, LETTER.content), TERMS)
        assert progress.chunk is not None
        return progress

    def written(self, recipients: int = 1) -> Progress:
        progress = self.progress(recipients)
        self.window.write(progress, None)
        return progress

    def taken(self, progress: Progress, *answers: Reply | Exception) -> Transaction:
        self.wire.answers.extend(answers)
        self.window.take(progress)
        return progress.transaction

    def breaks(self, *, left: int = 1, open_still: bool = True) -> None:
        self.wire.breaks, self.wire.content_left, self.wire.is_open = LOST, left, open_still


# Whether there is room ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "prefetched", "room"), [(1, 0, False), (2, 0, True), (2, 1, False), (3, 1, True)])
def test_one_less_than_the_size_may_be_behind(size: int, prefetched: int, room: bool) -> None:
    case = Case()
    for _ in range(prefetched):
        case.prefetched.append(case.written())
    assert case.window.has_room(size) == room


@pytest.mark.parametrize(("recipients", "room"), [(45, True), (46, True), (47, False)])
def test_no_more_is_asked_for_when_enough_is_outstanding(recipients: int, room: bool) -> None:
    """Each message has three commands more than recipients."""
    case = Case()
    case.written(48)
    case.written(recipients)
    case.window._outstanding -= 1
    assert case.window.has_room(10) == (51 + recipients + 3 - 1 < IN_FLIGHT) == room


def test_no_more_is_asked_for_behind_one_that_waits_or_on_a_broken_connection() -> None:
    case = Case()
    case.prefetched.append(case.progress())
    assert not case.window.has_room(10)
    case.prefetched.appendleft(case.written())
    assert not case.window.has_room(10)
    case.prefetched.pop()
    assert case.window.has_room(10)
    case.breaks()
    case.written()
    assert not case.window.has_room(10)


@pytest.mark.parametrize(("ahead", "recipients", "fits"), [(48, 46, True), (48, 47, False), (0, 48, True)])
def test_one_fits_as_long_as_its_replies_may_be_outstanding_as_well(ahead: int, recipients: int, fits: bool) -> None:
    case = Case()
    if ahead:
        case.written(ahead)
    assert case.window.fits(case.progress(recipients)) == fits


# What is written ------------------------------------------------------------------------------------------------------


def test_a_message_is_written_all_at_once_and_is_in_doubt_before_it_is() -> None:
    case = Case()
    seen: list[Phase] = []
    real = case.wire.write_chunk
    progress = case.progress()

    def write(lines: list[str], chunk: bytes) -> None:
        seen.append(progress.transaction.phase)
        real(lines, chunk)

    case.wire.write_chunk = write  # type: ignore[method-assign]
    case.window.write(progress, None)
    assert seen == [Phase.FINAL]
    lines = ["rset", "mail from:<s@example.org>", "rcpt to:<r0@example.net>", "bdat 17 last"]
    assert case.wire.written == [(lines, LETTER.content)]
    assert (len(progress.unanswered), len(progress.waiting)) == (3, 0)
    assert case.window._outstanding == 4


def test_the_first_of_a_row_comes_to_a_quiet_connection() -> None:
    case = Case()
    first = case.written()
    assert (case.wire.quiet, case.wire.acknowledges_at_once) == (1, True)
    case.written()
    assert case.wire.quiet == 1
    case.taken(first, *[OK] * 4)
    case.written()
    assert case.wire.quiet == 1, "the second is outstanding still"


def test_what_keeps_a_message_from_being_written_is_raised_in_its_turn_and_kept_otherwise() -> None:
    case = Case()

    def no(_: Transaction) -> None:
        raise ValueError("no")

    progress = case.progress()
    with pytest.raises(ValueError, match="no"):
        case.window.write(progress, no)
    assert (progress.refusal, progress.transaction.phase) == (None, Phase.MAIL)
    case.window.write(progress, no, in_turn=False)
    assert str(progress.refusal) == "no"
    assert (case.wire.written, case.window._outstanding, len(progress.waiting)) == ([], 0, 3)


@pytest.mark.parametrize("in_turn", [True, False])
def test_what_a_hook_raises_says_nothing_of_the_connection(in_turn: bool) -> None:
    case = Case()
    told = ConnectionLost("of another server")

    def no(_: Transaction) -> None:
        raise told

    progress = case.progress()
    with contextlib.suppress(ConnectionLost):
        try:
            case.window.write(progress, no, in_turn=in_turn)
        except ConnectionLost as error:
            progress.refusal = error
            raise
    assert isinstance(progress.refusal, ConnectionLost)
    assert progress.refusal._of_hook
    assert not told._of_hook, "the hook's own object is left alone"
    assert case.window.has_room(10)


def test_before_final_is_asked_when_all_else_is_ready() -> None:
    case = Case()
    asked: list[Transaction] = []
    progress = case.progress()
    case.window.write(progress, asked.append)
    assert asked == [progress.transaction]
    assert len(case.wire.written) == 1


@pytest.mark.parametrize(("left", "phase"), [(1, Phase.MAIL), (0, Phase.FINAL)])
def test_what_the_kernel_did_not_take_whole_the_server_cannot_have(left: int, phase: Phase) -> None:
    case = Case()
    case.breaks(left=left)
    progress = case.written()
    assert progress.transaction.phase is phase
    case.wire.breaks = None
    behind = case.written()
    assert case.wire.written == [], "nothing is written on a broken connection"
    assert len(behind.waiting) == 3


def test_a_connection_that_is_closed_on_our_side_breaks_at_once() -> None:
    case = Case()
    case.breaks(open_still=False)
    with pytest.raises(ConnectionLost):
        case.written()


def test_goodbye_is_said_behind_all_that_was_written() -> None:
    case = Case()
    case.window.say_goodbye()
    assert case.wire.written == [(["quit"], b"")]
    case.breaks()
    case.window.say_goodbye()
    case.wire.breaks = None
    case.window.say_goodbye()
    assert len(case.wire.written) == 1
    assert not case.window.has_room(10)


def test_a_goodbye_on_a_connection_that_is_closed_on_our_side_is_none() -> None:
    case = Case()
    case.breaks(open_still=False)
    with pytest.raises(ConnectionLost):
        case.window.say_goodbye()


# What is answered -----------------------------------------------------------------------------------------------------


def test_a_message_that_is_accepted_is_sent() -> None:
    case = Case()
    assert case.taken(case.written(), *[OK] * 4).receipt().outcome is Outcome.SENT
    assert case.wire.waited == [COMMAND, COMMAND, COMMAND, FINAL]
    assert case.window._outstanding == 0
    assert case.wire.is_open
    assert not case.window.saw_closing


def test_one_that_was_never_written_fails_as_the_connection_did() -> None:
    case = Case()
    case.breaks()
    case.written()
    behind = case.progress()
    with pytest.raises(ConnectionLost) as info:
        case.window.take(behind)
    assert info.value is not LOST
    assert str(info.value) == str(LOST)


def test_what_the_first_command_is_answered_is_the_refusal_and_the_rest_is_read() -> None:
    case = Case()
    transaction = case.taken(case.written(), OK, NO, NO, NO)
    assert isinstance(transaction.error, SenderRefused)
    assert transaction.phase is Phase.MAIL
    assert transaction.receipt().outcome is Outcome.NOT_SENT
    assert case.window._outstanding == 0
    assert case.wire.is_open


def test_recipients_are_refused_in_their_phase() -> None:
    case = Case()
    transaction = case.taken(case.written(2), OK, OK, NO, NO, NO)
    assert transaction.phase is Phase.RCPT


def test_a_content_that_is_refused_was_answered() -> None:
    case = Case()
    transaction = case.taken(case.written(), OK, OK, OK, NO)
    assert isinstance(transaction.error, DataRefused)
    assert transaction.phase is Phase.DONE


def test_what_was_refused_and_is_accepted_then_is_in_doubt() -> None:
    case = Case()
    transaction = case.taken(case.written(), OK, OK, NO, OK)
    assert transaction.phase is Phase.FINAL
    assert transaction.receipt().outcome is Outcome.IN_DOUBT
    assert not case.wire.is_open


@pytest.mark.parametrize("answers", [[NO, LOST], [NO, OK, LOST], [NO, Reply(199, b"what"), OK]])
def test_what_was_refused_stays_so_however_the_rest_goes(answers: list[Any]) -> None:
    case = Case()
    transaction = case.taken(case.written(), OK, *answers)
    assert isinstance(transaction.error, SenderRefused)
    assert not case.wire.is_open


def test_one_that_was_not_refused_ends_with_its_connection() -> None:
    case = Case()
    progress = case.written()
    with pytest.raises(ConnectionLost):
        case.taken(progress, OK, OK, LOST)
    assert progress.transaction.error is None


def test_a_connection_that_is_closed_meanwhile_is_read_no_more() -> None:
    case = Case()
    progress = case.written()
    case.wire.answers.extend([OK, NO])
    real = case.wire.read_reply

    def read(timeout: float) -> Reply:
        reply = real(timeout)
        case.wire.is_open = bool(case.wire.answers)
        return reply

    case.wire.read_reply = read  # type: ignore[method-assign]
    case.window.take(progress)
    assert len(progress.unanswered) == 2


@pytest.mark.parametrize("reply", [NO, Reply(251, b"ok"), Reply(249, b"ok")])
def test_a_reset_is_answered_with_250(reply: Reply) -> None:
    case = Case()
    with pytest.raises(BadReply, match="RSET was answered"):
        case.taken(case.written(), reply)


# 421 ------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_closing_need_not_reset_what_has_not_begun() -> None:
    case = Case()
    assert case.taken(case.written(), CLOSING, OK, OK, OK).receipt().outcome is Outcome.SENT
    case = Case()
    with pytest.raises(BadReply):
        case.taken(case.written(), NO)


def test_one_that_says_it_is_closing_and_goes_on_is_read_on_but_written_to_no_more() -> None:
    case = Case()
    progress, behind = case.written(), case.written()
    transaction = case.taken(progress, OK, OK, OK, CLOSING)
    assert isinstance(transaction.error, DataRefused)
    assert case.window.saw_closing
    assert not case.window.has_room(10)
    assert case.wire.is_open, "the second is outstanding"
    with pytest.raises(BadReply, match="RSET"):
        case.taken(behind, NO)
    assert case.wire.waited[-1] == QUIT, "who is closing is not waited for as long as another one"


def test_one_behind_an_accepted_one_need_not_be_reset_by_a_server_that_is_closing() -> None:
    case = Case()
    ahead, behind = case.written(), case.written()
    case.taken(ahead, *[OK] * 4)
    assert case.taken(behind, CLOSING, OK, OK, OK).receipt().outcome is Outcome.SENT
    assert case.window.saw_closing


@pytest.mark.parametrize("answers", [[OK, NO, NO, NO], [OK, OK, OK, NO]])
def test_one_behind_a_refused_one_has_to_be_reset(answers: list[Reply]) -> None:
    case = Case()
    ahead, behind = case.written(), case.written()
    case.taken(ahead, *answers)
    with pytest.raises(BadReply, match="RSET"):
        case.taken(behind, CLOSING)


@pytest.mark.parametrize("number", [420, 422])
def test_only_421_says_that_it_is_closing(number: int) -> None:
    case = Case()
    case.taken(case.written(), OK, OK, OK, Reply(number, b"4.3.2 no"))
    assert not case.window.saw_closing
    assert case.window.has_room(10)


def test_each_reply_behind_a_421_is_waited_for_as_for_a_goodbye_but_one() -> None:
    """Some say so to put off one recipient, and go on."""
    case = Case()
    case.taken(case.written(2), OK, OK, CLOSING, OK, OK)
    assert case.wire.waited == [COMMAND, COMMAND, COMMAND, QUIT, FINAL]


def test_a_broken_connection_is_closed_when_nothing_more_can_be_read() -> None:
    case = Case()
    first, second = case.written(), case.written()
    case.breaks()
    case.written()
    case.wire.breaks = None
    case.window._outstanding -= 4  # of the one that could not be written
    case.taken(first, *[OK] * 4)
    assert case.wire.is_open
    case.taken(second, *[OK] * 4)
    assert not case.wire.is_open


def test_what_broke_the_connection_first_is_what_is_told() -> None:
    case = Case()
    progress = case.written()
    case.window._broken = LOST
    case.taken(progress, OK, OK, OK, CLOSING)
    behind = case.progress()
    with pytest.raises(ConnectionLost, match="it hung up"):
        case.window.take(behind)
