"""The outcome is true: a session broken at any byte, in either direction, by whatever breaks it.

What the sender was told is compared with what the server has: SENT is accepted, NOT_SENT is surely not, IN_DOUBT only
where the end of data may have left and no whole reply came; none later than its deadline; nothing twice, whatever is
tried again. `pytest -rP tests/reliability/test_cuts.py` shows what each sweep came to; `python -m stress.cuts` breaks
every byte of every mode in every way.
"""

from __future__ import annotations

import pytest

from stress import cuts
from tests.reliability.cutting import LARGE, MODES, Mode, Place
from tests.reliability.cutting_tally import Tally
from tests.reliability.cutting_ways import BATCH, CLIENT, KEPT, POOL, RAW, RESENDER, SENDER, SMTP_WAY, Way
from threadmail import Outcome
from threadmail.testing import Cut, Hold, Plan

EXACT = [mode for mode in MODES if mode.exact]
SEED = 1


def even(tally: Tally) -> None:
    print(tally)
    assert not tally.wrong, "\n".join(tally.wrong[:20])


@pytest.mark.parametrize("fault", ["reset", "fin"])
@pytest.mark.parametrize("mode", EXACT, ids=lambda mode: mode.name)
def test_a_connection_cut_at_every_byte(mode: Mode, fault: str) -> None:
    """Reset or closed, on the way to the server or back: the outcome is what the bytes say, each time."""
    tally = Tally(f"{mode.name}, SMTP and Client, {fault} at every byte")
    for way in (SMTP_WAY, CLIENT) if mode is EXACT[0] else (CLIENT,):
        tally.sweep(mode, way, fault)
    even(tally)
    assert set(tally.outcomes) == {Outcome.SENT, Outcome.NOT_SENT, Outcome.IN_DOUBT}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_whoever_tries_again_sends_nothing_twice(mode: Mode) -> None:
    """Only what is surely not sent gets another connection, with the same Message-ID; what is in doubt stays so."""
    tally = Tally(f"{mode.name}, second message, ClientPool and ThreadedSender, cut at sampled bytes")
    for way in (KEPT, POOL, SENDER):
        for fault in ("reset", "fin"):
            tally.sweep(mode, way, fault, 8 if mode.exact else 3, SEED)
    even(tally)
    if mode.exact:
        assert tally.retried


@pytest.mark.parametrize("fault", ["reset", "fin", "hold"])
def test_a_batch_that_rides_on_a_connection_that_is_cut(fault: str) -> None:
    """Three messages on one lane: one of them at most is in doubt, all others arrive, and none pays for another.

    The commands of a message may leave together with the content before them: it goes over the next connection then,
    and that counts as no attempt.
    """
    [mode] = [mode for mode in MODES if mode.name == "PIPELINING"]
    tally = Tally(f"{mode.name}, a batch of three, {fault} at sampled bytes")
    tally.sweep(mode, BATCH, fault, 2 if fault == "hold" else 25, SEED)
    even(tally)
    assert set(tally.outcomes) == {Outcome.SENT, Outcome.IN_DOUBT}


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.name != "PIPELINING"], ids=lambda mode: mode.name)
def test_a_batch_on_a_connection_that_is_cut(mode: Mode) -> None:
    """One behind the other, as far as the connection goes."""
    tally = Tally(f"{mode.name}, a batch of three, cut at sampled bytes")
    for fault in ("reset", "fin"):
        tally.sweep(mode, BATCH, fault, 4 if mode.exact else 10, SEED)
    even(tally)


def test_what_is_in_doubt_is_sent_again_where_the_user_says_so() -> None:
    """`resend_in_doubt=True`: everything arrives, what was in doubt perhaps twice, always with one Message-ID."""
    tally = Tally("EHLO, resend_in_doubt, cut at sampled bytes")
    tally.sweep(EXACT[0], RESENDER, "reset", 10, SEED)
    even(tally)
    assert set(tally.outcomes) == {Outcome.SENT}


@pytest.mark.parametrize("way", [SMTP_WAY, CLIENT], ids=lambda way: way.name)
def test_a_cut_below_tls(way: Way) -> None:
    """In the middle of a handshake, of a record, of its authentication tag, or of the close_notify."""
    [mode] = [mode for mode in MODES if mode.name == "STARTTLS and AUTH"]
    tally = Tally(f"{mode.name}, {way.name}, broken at sampled bytes of the ciphertext")
    for fault in ("reset", "fin", "garble", "hold"):
        tally.sweep(mode, way, fault, 6, SEED)
    even(tally)


@pytest.mark.parametrize("way", [CLIENT, SENDER], ids=lambda way: way.name)
def test_a_connection_that_goes_silent(way: Way) -> None:
    """The time-out of a command or the deadline of the call ends it, and says what is known."""
    tally = Tally(f"EHLO, {way.name}, silent from sampled bytes on")
    for fault, sample in (("hold", 12), ("reset server", 2), ("fin server", 2)):
        tally.sweep(EXACT[0], way, fault, sample, SEED)
    even(tally)


@pytest.mark.parametrize("way", [SMTP_WAY, CLIENT], ids=lambda way: way.name)
def test_a_byte_that_is_damaged(way: Way) -> None:
    """What is no reply says nothing: the connection is closed, and after the end of data the message is in doubt."""
    tally = Tally(f"EHLO, {way.name}, sampled bytes damaged")
    tally.sweep(EXACT[0], way, "garble", 30, SEED)
    even(tally)
    assert set(tally.outcomes) == set(Outcome)


def test_a_server_that_goes_on_alone() -> None:
    """The client's end is cut and the server's stays open: to the client it is the same."""
    tally = Tally("EHLO, Client, only the client's end cut, at sampled bytes")
    for fault in ("reset client", "fin client"):
        tally.sweep(EXACT[0], CLIENT, fault, 10, SEED)
    even(tally)


def test_a_large_message() -> None:
    """As long as the kernel has not taken the end of data, a broken connection leaves no doubt."""
    tally = Tally(f"{LARGE.name}, Client, broken at sampled bytes")
    for fault in ("reset", "unread"):
        tally.sweep(LARGE, CLIENT, fault, 4, SEED)
    even(tally)
    assert tally.outcomes[Outcome.NOT_SENT]
    assert tally.outcomes[Outcome.IN_DOUBT]


# The judge itself ---------------------------------------------------------------------------------------------------


def test_the_raw_client_does_not_pass() -> None:
    """For control: smtplib raises the same error whether the server has the message or not."""
    tally = Tally("EHLO, smtplib, cut at sampled bytes")
    tally.sweep(EXACT[0], RAW, "fin", 10, SEED)
    print(tally)
    assert any("false: not sent, and it arrived 1 times" in line for line in tally.wrong)


BEFORE = Place("up", Cut(77))


def test_a_place_says_where_it_is() -> None:
    """As the command that repeats it takes it."""
    assert [str(p) for p in (BEFORE, Place("down", Hold(3)))] == ["up:77:reset:both", "down:3:hold"]
    assert BEFORE.plan() == Plan(to_server=[Cut(77)])


def test_the_long_run_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Each mode with each way and fault, and a sum at the end."""
    assert cuts.main(["--sample", "1", "--only", "HELO", "--fault", "fin"]) == 0
    printed = capsys.readouterr().out
    assert "HELO, ThreadedSender, fin: " in printed
    assert "in all (seed 1): " in printed
    assert "0 false outcomes" in printed
