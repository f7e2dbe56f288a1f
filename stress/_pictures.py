"""Swim lanes: a lane for each thread, one for the server between them, time downwards.

Owns the look of a run. A lane is thick while its thread runs. Commands go to the server in full lines, replies come
back in broken ones, each in the colour of the thread that caused it; the server's bar has the colour of the thread
whose message it takes, and stripes while it takes every line for message text. What goes wrong is said beside it, in
the half that the other thread leaves free; below stand what the server stored and what the threads were told.
What happened is _story.py's to find out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from ._story import Copy, Event, Fault, Kind, Story, Told
from ._svg import Canvas, width, wrap

WIDE = 840.0
LANES = (66.0, 774.0)
SERVER = 420.0
_HALF_BAR = 17.0  # of the server
_ROOM = SERVER - _HALF_BAR - LANES[0] - 44  # for words beside an arrow
_LINE = 17.0
_TOP = 124.0

#: While a thread has the lock: the rows from where it takes it to where it gives it back.
LOCK = "sync_root"
LEGEND = (
    "Full arrows: what a thread writes. Broken arrows: a reply, in the colour of the thread whose command it answers.",
    "The server's bar has the colour of the thread whose message it takes; striped, it takes every line for text.",
)


@dataclass(frozen=True)
class Picture:
    """One picture: its file's name, what it shows in words, and which of its faults is the one to see."""

    name: str
    title: str
    under: str
    fault: Fault | None


def draw(picture: Picture, story: Story) -> str:
    """The picture as an SVG document."""
    return _Drawing(picture, story).svg()


class _Drawing:
    def __init__(self, picture: Picture, story: Story) -> None:
        self.picture, self.story = picture, story
        self.canvas = Canvas(WIDE)

    def svg(self) -> str:
        events = self.story.events
        tops, arrows, bottom = self._rows()
        self._head()
        self._lanes(tops, arrows, bottom)
        self._locks(arrows, bottom)
        for event, top, at in zip(events, tops, arrows, strict=True):
            if event.switched:
                self._switch(event, top)
            self._row(event, at)
        high = self._end(bottom + 22)
        return self.canvas.write(high, self.picture.title, "; ".join(map(str, events)))

    # Where everything is --------------------------------------------------------------------------------------

    def _rows(self) -> tuple[list[float], list[float], float]:
        """For each event the top of its row and the height of its arrow, and the end of the last row."""
        y, tops, arrows = _TOP, list[float](), list[float]()
        for event in self.story.events:
            tops.append(y)
            y += 24 if event.switched else 0
            words = len(self._words(event)) * _LINE + 14 if event.words else 0
            above = len(_shown(event)) * _LINE + 6 if event.kind in (Kind.SAYS, Kind.HEARS) else 13
            above += 10 if len(event.lines) > 1 else 0
            above = max(above, words / 2 + 3)
            y = round(y + above)
            arrows.append(y)
            y += round(max(12, words / 2 + 3))
        return tops, arrows, y + 6

    def _words(self, event: Event) -> list[str]:
        return wrap(event.words, _ROOM - 38, 13, bold=True)

    # Lanes ------------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        canvas = self.canvas
        canvas.text(24, 34, self.picture.title, "ink", room=WIDE - 48, size=18, bold=True)
        canvas.text(24, 57, self.picture.under, "soft", room=WIDE - 48, size=13)
        for thread in (0, 1):
            canvas.rect(LANES[thread] - 46, 76, 92, 26, f"bar{thread}", round=13)
            label = f"Thread T{thread}"
            canvas.text(LANES[thread], 94, label, f"on{thread}", room=86, anchor="middle", bold=True)
        canvas.rect(SERVER - 52, 76, 104, 26, "box", round=13)
        canvas.text(SERVER, 94, "SMTP server", "ink", room=100, anchor="middle", bold=True)

    def _lanes(self, tops: list[float], arrows: list[float], bottom: float) -> None:
        canvas, events = self.canvas, self.story.events
        for x in LANES:
            canvas.line([(x, 102), (x, bottom)], "line", dash="2 4")
        canvas.rect(SERVER - 3, 102, 6, bottom - 102, "idle", round=3)
        running = [at for at, event in enumerate(events) if event.kind not in (Kind.WAITS, Kind.HELD_OFF)]
        start = running[0]
        for at in [*running[1:], -1]:
            if at == -1 or events[at].switched:
                last = max(n for n in running if at == -1 or n < at)
                x, top = LANES[events[start].thread], arrows[start] - 13
                canvas.rect(x - 5, top, 10, arrows[last] + 11 - top, f"bar{events[start].thread}", round=5)
                start = at
        self._transactions(arrows)

    def _transactions(self, arrows: list[float]) -> None:
        """The server's bar: whose message it takes, striped while every line is text."""
        rows = list(zip(self.story.events, arrows, strict=True))
        for (owner, content), group in groupby(rows[:-1], lambda row: (row[0].transaction, row[0].content)):
            ours = list(group)
            if owner == -1:
                continue
            top, end = ours[0][1], rows[rows.index(ours[-1]) + 1][1]
            self.canvas.rect(SERVER - _HALF_BAR, top, 2 * _HALF_BAR, end - top, f"bar{owner}")
            for y in range(int(top) + 5, int(end) - 4, 7) if content else ():
                self.canvas.rect(SERVER - _HALF_BAR + 4, y, 2 * _HALF_BAR - 8, 2, f"on{owner}", faint=True)

    def _locks(self, arrows: list[float], bottom: float) -> None:
        """Brackets outside the lanes: who has the lock, and who waits for it."""
        events = self.story.events
        took = {event.thread: y for event, y in zip(events, arrows, strict=True) if event.kind is Kind.TAKES}
        gave = {event.thread: y for event, y in zip(events, arrows, strict=True) if event.kind is Kind.GIVES}
        off = {event.thread: y for event, y in zip(events, arrows, strict=True) if event.kind is Kind.HELD_OFF}
        for thread, top in took.items():
            self._bracket(thread, top, gave.get(thread, bottom), f"T{thread} holds {LOCK}", f"edge{thread}", "")
        for thread, top in off.items():
            self._bracket(thread, top, took[thread] - 8, f"waits for {LOCK}", "line", "4 4")

    def _bracket(self, thread: int, top: float, end: float, words: str, edge: str, dash: str) -> None:
        out = -1 if thread == 0 else 1
        x = LANES[thread]
        outer = x + 26 * out
        self.canvas.line([(x + 9 * out, top), (outer, top), (outer, end), (x + 9 * out, end)], edge, thick=2, dash=dash)
        baseline = outer - 7 if thread == 0 else outer + 16
        look = f"word{thread}" if not dash else "soft"
        self.canvas.text(baseline, (top + end) / 2, words, look, room=end - top, size=12, anchor="middle", turn=True)

    # Rows -------------------------------------------------------------------------------------------------------

    def _switch(self, event: Event, top: float) -> None:
        """A dotted line where another thread gets the turn, with the reason on its side."""
        canvas, y = self.canvas, top + 9
        canvas.line([(LANES[0], y), (LANES[1], y)], "line", dash="1 4")
        words = "thread switch" if event.preempted else self._why(event)
        long = width(words, 12, bold=event.preempted) + 20
        x = LANES[event.thread] + (30 if event.thread == 0 else -30 - long)
        canvas.rect(x, y - 10, long, 20, "card", round=10)
        canvas.text(x + long / 2, y + 4, words, "ink" if event.preempted else "soft", room=long - 16,
                    size=12, anchor="middle", bold=event.preempted)  # fmt: skip

    def _why(self, event: Event) -> str:
        """Why the other thread has left off."""
        if event.kind is Kind.TAKES:
            return f"{LOCK} is free"
        events = self.story.events
        after = events[next(at for at, other in enumerate(events) if other is event) :]
        other = f"T{1 - event.thread}"
        more = any(later.thread != event.thread for later in after)
        return f"{other} has to wait for an answer" if more else f"{other} has ended"

    def _row(self, event: Event, y: float) -> None:
        inward = 1 if event.thread == 0 else -1
        lane, edge = LANES[event.thread], SERVER - (_HALF_BAR + 3) * inward
        bad = event.fault is not None
        look, bar = ("badedge", "bad") if bad else (f"edge{event.owner}", f"bar{event.owner}")
        if event.kind is Kind.SAYS:
            self.canvas.arrow(lane + 9 * inward, edge, y, look, bar, thick=2.6 if bad else 1.8, dash="")
        elif event.kind is Kind.HEARS:
            self.canvas.arrow(edge, lane + 9 * inward, y, look, bar, thick=2.6 if bad else 1.8, dash="6 4")
        elif event.kind is Kind.WAITS:
            self.canvas.cross(lane, y, "badedge", 6)
        self._lines(_shown(event), (lane + edge) / 2, y, f"word{event.owner}")
        if event.words:
            self._callout(event, y)

    def _lines(self, lines: tuple[str, ...], x: float, y: float, look: str) -> None:
        """What is said, above its arrow; the text of a message in a box, as it stands."""
        if len(lines) < 2:
            for line in lines:
                self.canvas.text(x, y - 7, line, look, room=_ROOM, anchor="middle", mono=True)
            return
        long = max(width(line, 13, mono=True) for line in lines) + 24
        high = len(lines) * _LINE + 8
        self.canvas.rect(x - long / 2, y - 7 - high, long, high, "box", round=5)
        for number, line in enumerate(lines):
            at = y + 10 - high + number * _LINE
            self.canvas.text(x - long / 2 + 12, at, line, look, room=long - 20, mono=True)

    def _callout(self, event: Event, y: float) -> None:
        """Words in the half that the row leaves free; a thread that waits has its own half for them."""
        lines = self._words(event)
        own = event.kind in (Kind.WAITS, Kind.HELD_OFF)
        left = (event.thread == 0) == own
        long = max(width(line, 13, bold=True) for line in lines) + 38
        high = len(lines) * _LINE + 8
        x = SERVER - _HALF_BAR - 14 - long if left else SERVER + _HALF_BAR + 14
        if own:
            x = LANES[0] + 22 if left else LANES[1] - 22 - long
        main = event.fault is not None and event.fault is self.picture.fault
        if event.fault is None:
            box, word, mark = "goodbox", "goodword", "goodedge"
        else:
            box, word, mark = ("bad", "white", "whiteedge") if main else ("badbox", "badword", "badedge")
        self.canvas.rect(x, y - high / 2, long, high, box, round=6)
        if event.fault is None:
            self.canvas.tick(x + 16, y, mark)
        else:
            self.canvas.cross(x + 16, y, mark)
        for number, line in enumerate(lines):
            at = y - high / 2 + 17 + number * _LINE
            self.canvas.text(x + 29, at, line, word, room=long - 34, bold=True)

    # The end ----------------------------------------------------------------------------------------------------

    def _end(self, top: float) -> float:
        """What came of it: three boxes, each under its lane. Returns the height of the picture."""
        columns = [(24.0, 240.0), (276.0, 288.0), (576.0, 240.0)]
        stored = self.story.stored
        bodies = [_told(self.story.told[0], stored), _stored(stored), _told(self.story.told[1], stored)]
        laid = [
            [(piece, mono, bad) for text, mono, bad in body
             for piece in (wrap(text, long - 24, 13 if not mono else 12.5, mono=mono) if text else [""])]
            for (_, long), body in zip(columns, bodies, strict=True)
        ]  # fmt: skip
        high = max(len(lines) for lines in laid) * _LINE + 42
        heads = ("T0 was told", "The server stored", "T1 was told")
        for (x, long), lines, head in zip(columns, laid, heads, strict=True):
            wrong = any(bad for _, _, bad in lines)
            self.canvas.rect(x, top, long, high, "badbox" if wrong else "goodbox", round=8)
            self.canvas.text(x + 12, top + 23, head, "ink", room=long - 40, bold=True)
            if wrong:
                self.canvas.cross(x + long - 18, top + 18, "badedge", 5)
            else:
                self.canvas.tick(x + long - 18, top + 18, "goodedge")
            for number, (text, mono, bad) in enumerate(lines):
                look, y = "badword" if bad else "ink", top + 46 + number * _LINE
                self.canvas.text(x + 12, y, text, look, room=long - 20, size=12.5 if mono else 13, mono=mono)
        for number, line in enumerate(LEGEND):
            self.canvas.text(WIDE / 2, top + high + 26 + number * 16, line, "soft", room=WIDE - 40, size=11.5,
                             anchor="middle")  # fmt: skip
        return top + high + 26 + len(LEGEND) * 16 + 2


def _shown(event: Event) -> tuple[str, ...]:
    """The empty line between head and body takes no room in a picture."""
    return tuple(line for line in event.lines if line)


def _told(told: Told, stored: tuple[Copy, ...]) -> list[tuple[str, bool, bool]]:
    """Lines: text, in the font of commands or not, wrong or not."""
    if not told.outcome:
        return [("nothing: it waits for ever.", False, True)]
    if not told.true:
        leaked = any(name in copy.foreign for copy in stored for name in copy.recipients)
        truth = "a stranger got it as well." if leaked else "what is stored is damaged."
        return [(f'"{told.outcome}", but {truth}', False, True)]
    if told.outcome == "sent":
        return [('"sent", and that is true.', False, False)]
    return [(f'"{told.outcome}": {told.detail}.', False, True)]


def _stored(copies: tuple[Copy, ...]) -> list[tuple[str, bool, bool]]:
    if not copies:
        return [("nothing.", False, True)]
    lines = list[tuple[str, bool, bool]]()
    for copy in copies:
        lines += [("", False, False)] if lines else []
        lines.append((f"from {copy.sender}", False, copy.sender in copy.foreign))
        lines += [(f"for {name}", False, name in copy.foreign) for name in copy.recipients]
        lines += [(line, True, line in copy.foreign) for line in copy.lines if line]
    return lines
