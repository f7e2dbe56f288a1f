"""The stage table as a page: what every misdeed of a server costs at every stage of a session.

    python -m stress.stages

Writes `docs/stages.md` from `tests/reliability/stages.py`. Runs nothing: `pytest tests/reliability/test_stages.py`
does, and keeps the page in step with the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.reliability.stages import (
    ACTS,
    EMPTY,
    ERRORS,
    HELD_UP,
    MEANINGS,
    MODES,
    ODD_ERRORS,
    REASONS,
    STAGES,
    TABLE,
    VERDICTS,
    word,
)
from threadmail import Outcome

from ._page import Block, Heading, Items, Table, Text, markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "stages.md"


def page() -> str:
    """The page, as Markdown."""
    return markdown(list(_blocks()))


def _blocks() -> Iterator[Block]:
    cells = sum(len(mode.cells()) for mode in MODES)
    yield Heading(1, "What every misdeed of a server costs")
    yield Text(
        f"{len(STAGES)} stages of a session, {len(ACTS)} things a server may do there, {cells} cells: what becomes of "
        "the message, of the connection, and of the next message. `pytest tests/reliability/test_stages.py` plays each "
        "of them over real sockets, against a `Client` and against a `ThreadedSender`."
    )
    yield Text(
        "The rule behind it: what surely did not reach anybody may be tried again if the server did not refuse it for "
        "good; a dialogue in which anything stood out of its place is closed and not used again; and only where the "
        "end of the content has left, and no whole reply came back, nobody can know. No call ends later than its "
        "deadline, whatever the server holds back."
    )
    yield Heading(2, "What a cell says")
    yield _verdicts()
    yield Text(
        "`is_connected` proves nothing: the server may have hung up since. *Tried again* is what a `ThreadedSender` "
        "does: the same message with the same Message-ID, to the recipients who have nothing. A connection that could "
        "not be opened counts as no attempt. What is in doubt goes out again with `resend_in_doubt=True` only."
    )
    yield Heading(2, "The table")
    yield Table(["", *ACTS], [[stage, *(word(TABLE[stage, act]) for act in ACTS)] for stage in STAGES])
    yield Text("A `-` stands where there can be no such thing:")
    yield Items([f"*{stage}*: {why}." for stage, why in EMPTY.items()])
    held_up = ", ".join(HELD_UP)
    yield Text(
        f"Where the deadline of the whole call, and not the time-out of one step, ends a `stall` or `drip` at {held_up}"
        ", no time is left for another connection: there it is `lost`."
    )
    yield from _modes()
    yield Heading(2, "What the server does")
    yield Table(["", ""], [[f"`{act}`", about] for act, about in ACTS.items()])
    yield Text(
        "In *content*, where no reply is due, a reply comes while the client writes and the server reads on; `stall` "
        "is a server that reads no more, `drip` one that reads a byte at a time."
    )
    yield Heading(2, "Where it does it, and which error tells of it")
    yield Table(
        ["Stage", "", "Phase", "A refusal raises"],
        [
            [stage, row.about, row.phase.name, f"`{row.refusal}`" if row.refusal else ""]
            for stage, row in STAGES.items()
        ],
    )
    by_error: dict[str, list[str]] = {}
    for act, error in ERRORS.items():
        by_error.setdefault(error, []).append(act)
    odd: dict[str, list[str]] = {}
    for (stage, act), error in ODD_ERRORS.items():
        odd.setdefault(f"`{error}` at {stage}", []).append(act)
    yield Text("Everything else raises the same at every stage, but for the exceptions named last:")
    yield Items(
        [f"{', '.join(acts)}: `{error}`" for error, acts in by_error.items()]
        + [f"{', '.join(acts)}: {error}" for error, acts in odd.items()]
    )
    yield Heading(2, "Why")
    yield Items([f"**{stage}, {', '.join(acts.split())}.** {why}" for stage, acts, why in REASONS])
    yield Heading(2, "What no client can see")
    yield Text(
        "A reply that nobody asked for is found if it lies there when the next command is to be written. One that "
        "comes later, in the place of the right one, looks like the right one: the next look then finds the surplus. "
        "In a window, where no 354 tells them apart, that look comes when all of its messages have been answered. A "
        "server that says 250 to a content that it does not keep cannot be told from one that does."
    )


def _verdicts() -> Table:
    def tried_again(outcome: Outcome, again: bool) -> str:
        if outcome in (Outcome.SENT, Outcome.IN_DOUBT):
            return ""
        return "yes" if again else "no"

    rows = []
    for name, verdict in VERDICTS.items():
        again = tried_again(verdict.outcome, verdict.again)
        alive = "yes" if verdict.connected else "no"
        rows.append([f"`{name}`", verdict.outcome.name, again, alive, verdict.next.value, MEANINGS[name]])
    return Table(["", "Outcome", "Tried again", "`is_connected`", "The next message", "In words"], rows)


def _modes() -> Iterator[Block]:
    *names, last = (f"*{mode.name}*" for mode in MODES)
    yield Text(
        f"The table holds for every way of sending: {', '.join(names)} and {last}. Where three messages are there at "
        "once for one lane, as in the last two, it tells of the one under way; the others are sent, and none of them "
        "needs a second attempt. Cell by cell, what differs is:"
    )
    for mode in MODES:
        differs: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for act in ACTS:
            words = {stage: word(verdict) for (stage, a), verdict in mode.differs.items() if a == act}
            for verdict in dict.fromkeys(words.values()):
                stages = tuple(stage for stage in words if words[stage] == verdict)
                differs.setdefault((verdict, stages), []).append(act)
        said = [f"{', '.join(acts)}: `{verdict}` at {', '.join(at)}" for (verdict, at), acts in differs.items()]
        found = [f"{stage}, unasked: found in phase {phase.name}" for stage, phase in mode.found.items()]
        doubts = ["what stands behind it may be in doubt as well"] if mode.doubts else []
        yield Text(f"*{mode.name}*, {len(mode.cells())} cells: {'; '.join(said + found + doubts) or 'nothing'}.")


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
