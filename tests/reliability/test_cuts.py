"""The outcome is true: a session broken at any byte, in either direction, by whatever breaks it.

What the sender was told is compared with what the server has: SENT is accepted, NOT_SENT is surely not, IN_DOUBT only
where the end of data may have left and no whole reply came; none later than its deadline; nothing twice, whatever is
tried again. `pytest -rP tests/reliability/test_cuts.py` shows what each sweep came to; `python -m stress.cuts` breaks
every byte of every mode in every way.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from stress import cuts
from tests.reliability.cutting import LARGE, MODES, Layout, Mode, Place
from tests.reliability.cutting_bench import CALM, Trial
from tests.reliability.cutting_tally import Tally, complaints
from tests.reliability.cutting_ways import BATCH, CLIENT, KEPT, POOL, RAW, RESENDER, SENDER, SMTP_WAY, Fate, Other, Way
from threadmail import Envelope, Outcome
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


LAYOUT = Layout(up=126, down=162, content=77, end=120, go_ahead=133, final=147, ready=78)
BEFORE, AMID, AFTER = Place("up", Cut(77)), Place("up", Cut(100)), Place("down", Cut(147))
ID = "<m1@a.test>"
MESSAGE = Envelope("a@a.test", "b@b.test", f"Message-ID: {ID}\r\n\r\n")


def trial(
    place: Place,
    outcome: Outcome,
    arrived: int = 0,
    *,
    seconds: float = 0.1,
    intact: bool = True,
    spoken: tuple[str, ...] = (ID,),
    handed_over: bool | None = None,
) -> Trial:
    fate = Fate(outcome, seconds, handed_over=handed_over)
    return Trial(place, MESSAGE, fate, CALM, 1, True, frozenset(spoken), arrived, intact)


@pytest.mark.parametrize(
    ("found", "way", "wrong"),
    [
        (trial(BEFORE, Outcome.NOT_SENT), CLIENT, ""),
        (trial(AMID, Outcome.IN_DOUBT, 1), CLIENT, ""),
        (trial(AFTER, Outcome.SENT, 1), CLIENT, ""),
        (trial(BEFORE, Outcome.SENT, 1), SENDER, ""),
        (trial(AMID, Outcome.SENT, 2), RESENDER, ""),
        (trial(Place("up", Hold(77)), Outcome.IN_DOUBT), CLIENT, ""),
        (trial(Place("up", Hold(120)), Outcome.SENT, 1), CLIENT, ""),
        (trial(AFTER, Outcome.SENT, 0), CLIENT, "arrived 0 times"),
        (trial(AFTER, Outcome.SENT, 2), SENDER, "arrived 2 times"),
        (trial(BEFORE, Outcome.NOT_SENT, 1), CLIENT, "arrived 1 times"),
        (trial(AMID, Outcome.IN_DOUBT, 2), SENDER, "arrived 2 times"),
        (trial(AMID, Outcome.SENT, 3), RESENDER, "arrived 3 times"),
        (trial(AFTER, Outcome.SENT, 1, intact=False), CLIENT, "damaged"),
        (trial(BEFORE, Outcome.NOT_SENT, seconds=8.0), CLIENT, "late"),
        (trial(BEFORE, Outcome.IN_DOUBT), CLIENT, "the end of data cannot have left"),
        (trial(BEFORE, Outcome.NOT_SENT), SENDER, "not sent instead of sent"),
        (trial(AMID, Outcome.NOT_SENT), CLIENT, "not sent instead of in doubt"),
        (trial(AFTER, Outcome.IN_DOUBT, 1), CLIENT, "in doubt instead of sent"),
        (trial(AMID, Outcome.IN_DOUBT, handed_over=False), CLIENT, "was not handed over"),
        (trial(BEFORE, Outcome.SENT, 1, spoken=(ID, "<m2@a.test>")), SENDER, "another Message-ID"),
    ],
)
def test_the_judge_sees_what_is_wrong(found: Trial, way: Way, wrong: str) -> None:
    """Each way in which a receipt can be false, late or too timid; and nothing where it is true."""
    said = list(complaints(found, LAYOUT, way, exact=True))
    assert any(wrong in line for line in said) if wrong else said == []


EARLIER = replace(LAYOUT, content=40, end=60, go_ahead=60, final=70)
LATER = replace(LAYOUT, content=122, end=125, go_ahead=155, final=160)


@pytest.mark.parametrize(
    ("place", "first", "last", "wrong"),
    [
        (AFTER, (Outcome.SENT, 1, 1), (Outcome.SENT, 1, 1), ""),
        (BEFORE, (Outcome.SENT, 1, 2), (Outcome.SENT, 1, 1), ""),
        (AFTER, (Outcome.SENT, 1, 1), (Outcome.NOT_SENT, 1, 1), "false: not sent, and it arrived 1 times"),
        (AFTER, (Outcome.SENT, 1, 1), (Outcome.NOT_SENT, 0, 1), "not sent instead of sent"),
        (AFTER, (Outcome.SENT, 1, 1), (Outcome.NOT_SENT, 0, 1), "not tried again"),
        (AFTER, (Outcome.SENT, 1, 1), (Outcome.IN_DOUBT, 0, 1), "the end of data cannot have left"),
        (AFTER, (Outcome.SENT, 1, 1), (Outcome.SENT, 1, 2), "2 attempts"),
        (AFTER, (Outcome.IN_DOUBT, 0, 1), (Outcome.IN_DOUBT, 0, 1), "more than 1 in doubt"),
    ],
)
def test_the_judge_looks_at_the_others_as_well(
    place: Place, first: tuple[Outcome, int, int], last: tuple[Outcome, int, int], wrong: str
) -> None:
    """The messages that went with the one that is watched: what was told of them, how often each came, its attempts."""
    others = tuple((Other(MESSAGE, outcome, attempts), arrived) for outcome, arrived, attempts in (first, last))
    found = replace(trial(place, Outcome.SENT, 1), others=others)
    said = list(complaints(found, LAYOUT, BATCH, exact=True, others=[EARLIER, LATER]))
    assert any(wrong in line for line in said) if wrong else said == []


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
