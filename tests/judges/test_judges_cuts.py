"""The judge of the every-byte runs on forged trials: for each thing that it claims to see one that shows just that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.reliability.cutting import Layout, Place
from tests.reliability.cutting_bench import CALM, Trial
from tests.reliability.cutting_tally import complaints, of_sweep
from tests.reliability.cutting_ways import BATCH, CLIENT, RESENDER, SENDER, Fate, Other, Way
from threadmail import Envelope, Outcome, Phase, Receipt
from threadmail.errors import ConnectionLost
from threadmail.receipt import Reply
from threadmail.testing import Cut, Hold

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
    return Trial(place, MESSAGE, fate, CALM, 1, True, frozenset(spoken), (arrived,), intact=intact)


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
    others: tuple[tuple[Other, tuple[int, ...], frozenset[str]], ...] = tuple(
        (Other(MESSAGE, outcome, n), (arrived,), frozenset()) for outcome, arrived, n in (first, last)
    )
    found = replace(trial(place, Outcome.SENT, 1), others=others)
    said = list(complaints(found, LAYOUT, BATCH, exact=True, others=[EARLIER, LATER]))
    assert any(wrong in line for line in said) if wrong else said == []


# Each recipient, each reply -------------------------------------------------------------------------------------------

PAIR = Envelope("a@a.test", ["b@b.test", "c@c.test"], f"Message-ID: {ID}\r\n\r\n")
B, C = PAIR.recipients
LOST = ConnectionLost("gone", phase=Phase.FINAL)


def receipt(outcome: Outcome, *accepted: str, reply: str = "", refused: str = "") -> Receipt:
    error = LOST if outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT) else None
    final = Reply(250, reply.encode()) if reply else None
    replies = {refused: Reply(550, b"no")} if refused else {}
    return Receipt(outcome, Phase.DONE, PAIR.sender, PAIR.recipients, None, accepted, replies, final, error)


def two(told: Receipt, copies: tuple[int, int], *ids: str, way: Way = CLIENT) -> list[str]:
    place = AMID if told.outcome is Outcome.IN_DOUBT else BEFORE if told.outcome is Outcome.NOT_SENT else AFTER
    fate = Fate(told.outcome, 0.1, receipt=told)
    found = Trial(place, PAIR, fate, CALM, 1, True, frozenset([ID]), copies, frozenset(ids))
    return list(complaints(found, LAYOUT, way, exact=False))


@pytest.mark.parametrize(
    ("told", "copies", "wrong"),
    [
        (receipt(Outcome.SENT, B, C, reply="as Q1"), (1, 1), []),
        (receipt(Outcome.PARTIAL, B, reply="as Q1", refused=C), (1, 0), []),
        (receipt(Outcome.IN_DOUBT), (1, 1), []),
        (receipt(Outcome.SENT, B, C, reply="as Q1"), (1, 0), [f"false: sent, and it arrived 0 times for {C}"]),
        (receipt(Outcome.SENT, B, C, reply="as Q1"), (1, 2), [f"false: sent, and it arrived 2 times for {C}"]),
        (receipt(Outcome.NOT_SENT), (0, 1), [f"false: not sent, and it arrived 1 times for {C}"]),
        (receipt(Outcome.IN_DOUBT), (2, 1), [f"false: in doubt, and it arrived 2 times for {B}"]),
        (
            receipt(Outcome.PARTIAL, B, reply="as Q1", refused=C),
            (1, 1),
            [f"false: partial, and it arrived 1 times for {C}"],
        ),
        (receipt(Outcome.SENT, B, C), (1, 1), ["sent without the server's reply"]),
        (receipt(Outcome.SENT, B, C, reply="as Q2"), (1, 1), ["receipt with another message's reply"]),
        (
            receipt(Outcome.PARTIAL, B, reply="as Q2", refused=C),
            (1, 0),
            ["receipt with another message's reply"],
        ),
    ],
)
def test_the_judge_counts_by_recipient_and_knows_the_replies(
    told: Receipt, copies: tuple[int, int], wrong: list[str]
) -> None:
    assert two(told, copies, "Q1") == wrong


def test_what_is_said_of_the_others_is_held_against_their_replies_too() -> None:
    mate = Other(PAIR, Outcome.SENT, 1, receipt(Outcome.SENT, B, C, reply="as Q2"))
    found = replace(trial(AFTER, Outcome.SENT, 1), others=((mate, (1, 0), frozenset(["Q1"])),))
    assert list(complaints(found, LAYOUT, BATCH, exact=False)) == [
        f"false: sent, and it arrived 0 times for {C}",
        "receipt with another message's reply",
    ]


def test_the_judge_tells_where_error_and_receipt_contradict_each_other() -> None:
    fate = replace(trial(AFTER, Outcome.SENT, 1).fate, wrong=("contradiction",))
    found = replace(trial(AFTER, Outcome.SENT, 1), fate=fate)
    assert list(complaints(found, LAYOUT, CLIENT, exact=True)) == ["contradiction"]


@pytest.mark.parametrize(
    ("sent", "doubts", "exact", "wrong"),
    [
        (50, 50, False, ""),
        (0, 100, True, ""),  # each is judged by its place there
        (0, 0, True, "empty"),
        (0, 0, False, "empty"),
        (10, 90, False, "in doubt: the end of data is not in so many places"),
    ],
)
def test_a_sweep_that_is_empty_or_all_in_doubt_is_seen(sent: int, doubts: int, exact: bool, wrong: str) -> None:
    found = list(of_sweep(sent + doubts, Counter({Outcome.SENT: sent, Outcome.IN_DOUBT: doubts}), exact=exact))
    assert any(wrong in line for line in found) if wrong else found == []


def test_in_a_window_more_places_are_behind_an_end_of_data() -> None:
    """Content leaves together with its commands; but not everywhere."""
    outcomes = Counter({Outcome.IN_DOUBT: 700, Outcome.SENT: 300})
    assert list(of_sweep(1000, outcomes, exact=False)) != []
    assert list(of_sweep(1000, outcomes, exact=False, window=3)) == []
    outcomes = Counter({Outcome.IN_DOUBT: 900, Outcome.SENT: 100})
    assert list(of_sweep(1000, outcomes, exact=False, window=3)) != []
