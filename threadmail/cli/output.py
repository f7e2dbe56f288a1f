"""How the command line speaks.

Owns both standard streams of a command: the one place that knows whether somebody looks at a terminal, and whether
rich (the extra `cli`) is there to draw on it. Guarantees: no control sequence goes into anything but a terminal, nor
into one whose owner set NO_COLOR; text from servers, files and arguments cannot drive a terminal; a password in a URL
is not shown. Leaves what is said to the commands.
"""

from __future__ import annotations

import enum
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from .._runtime.deadline import now
from ..errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task
    from rich.text import Text

#: Seconds between two progress lines on a terminal where no bar can be drawn.
PROGRESS_EVERY = 5.0

_PASSWORD = re.compile(r"(://[^\s:]*):.*@", re.DOTALL)


class Tone(enum.Enum):
    """What a text means, which is a colour where there is one."""

    PLAIN = ""
    GOOD = "green"
    WARN = "yellow"
    BAD = "bold red"
    FAINT = "dim"


Row = Sequence[str]
Fact = tuple[str, str, Tone]


class Meter(Protocol):
    """How far a long job has come."""

    def advance(self, count: int = 1) -> None: ...


class Printer(Protocol):
    """One stream."""

    def line(self, text: str, tone: Tone = Tone.PLAIN) -> None: ...
    def table(self, columns: Row, rows: Sequence[Row], tones: Sequence[Tone]) -> None: ...
    def facts(self, facts: Sequence[Fact]) -> None: ...
    def progress(self, label: str, total: int | None) -> Any: ...


def safe(text: str) -> str:
    """One line of `text` that neither drives a terminal nor shows the password of a URL."""
    return _PASSWORD.sub(r"\1:***@", printable(text))


class Output:
    """What a command says: results to standard output, everything else to standard error.

    Args:
        stdout, stderr: the streams.
        quiet: neither notes nor progress.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, *, quiet: bool = False) -> None:
        self._out, self._err = printer(stdout), printer(stderr)
        self._stdout, self._stderr = stdout, stderr
        self._live: Printer | None = None  # draws a bar: who else writes to a terminal meanwhile would break it
        self.quiet = quiet

    @property
    def interactive(self) -> bool:
        """Whether somebody watches."""
        return not self.quiet and (_is_terminal(self._stdout) or _is_terminal(self._stderr))

    def say(self, text: str = "", tone: Tone = Tone.PLAIN) -> None:
        """A line of the result."""
        self._on(self._stdout, self._out).line(text, tone)

    def raw(self, text: str) -> None:
        """A line of the result for programs: as it is."""
        self._stdout.write(text + "\n")
        self._stdout.flush()

    def table(self, columns: Row, rows: Sequence[Row], tones: Sequence[Tone] = ()) -> None:
        """A table of the result; `tones` colours its rows."""
        self._out.table(columns, rows, tones)

    def facts(self, facts: Sequence[Fact]) -> None:
        """Names and values, one below the other."""
        self._out.facts(facts)

    def note(self, text: str) -> None:
        """News for who watches, or reads a log."""
        if not self.quiet:
            self._aside(f"threadmail: {text}", Tone.FAINT)

    def complain(self, text: str, advice: str | None = None) -> None:
        """What is wrong, and what to do about it."""
        self._aside(f"threadmail: {text}", Tone.BAD)
        if advice:
            self._aside(f"  hint: {advice}", Tone.WARN)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Meter]:
        """Show how far a job has come while the block runs: a bar on a terminal, lines on a plain one, else nothing."""
        stream = self._stderr if _is_terminal(self._stderr) else self._stdout
        if self.quiet or not _is_terminal(stream):
            yield _Silent()
            return
        self._live = self._err if stream is self._stderr else self._out
        try:
            with self._live.progress(label, total) as meter:
                yield meter
        finally:
            self._live = None

    def _aside(self, text: str, tone: Tone) -> None:
        try:
            self._on(self._stderr, self._err).line(text, tone)
        except OSError:
            pass  # nobody listens: no reason to stop

    def _on(self, stream: TextIO, usual: Printer) -> Printer:
        return self._live if self._live is not None and _is_terminal(stream) else usual


def printer(stream: TextIO) -> Printer:
    """The best that `stream` can do."""
    console = _console(stream)
    return _Plain(stream) if console is None else _Rich(console)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _console(stream: TextIO) -> Console | None:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    # Not rich's own judgement: FORCE_COLOR would make it draw into a pipe.
    if plain or not _is_terminal(stream) or not (stream.encoding or "").lower().startswith("utf"):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)


# ---------------------------------------------------------------- without rich


class _Plain:
    """Lines of text, with nothing in them but text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        encoding = self._stream.encoding or "utf-8"
        fitting = f"{safe(text)}\n".encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(fitting)
        self._stream.flush()

    def table(self, columns: Row, rows: Sequence[Row], tones: Sequence[Tone]) -> None:
        cells = [list(columns), *([safe(cell) for cell in row] for row in rows)]
        widths = [max(_width(row[i]) for row in cells) for i in range(len(columns))]
        for row in cells:
            padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
            self.line("  ".join(padded).rstrip())

    def facts(self, facts: Sequence[Fact]) -> None:
        width = max((_width(name) for name, _, _ in facts), default=0)
        for name, value, _ in facts:
            self.line(f"{name}{' ' * (width - _width(name))}  {value}".rstrip())

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Meter]:
        yield _Lines(self, label, total)


class _Silent:
    def advance(self, count: int = 1) -> None:
        pass


class _Lines:
    """Progress as a line now and then."""

    def __init__(self, printer: _Plain, label: str, total: int | None) -> None:
        self._printer, self._label, self._total = printer, label, total
        self._done = 0
        self._next = now() + PROGRESS_EVERY

    def advance(self, count: int = 1) -> None:
        self._done += count
        if now() >= self._next:
            self._next = now() + PROGRESS_EVERY
            of = f" of {self._total:,}" if self._total is not None else ""
            self._printer.line(f"{self._label}: {self._done:,}{of}")


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


# ---------------------------------------------------------------- with rich


class _Rich:
    """A terminal, drawn on by rich."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        self._console.print(self._text(text, tone))

    def table(self, columns: Row, rows: Sequence[Row], tones: Sequence[Tone]) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in columns:
            figures = all(row[len(table.columns)].replace(",", "").isdigit() for row in rows)
            table.add_column(column, overflow="fold", justify="right" if figures else "left")
        for index, row in enumerate(rows):
            tone = tones[index] if index < len(tones) else Tone.PLAIN
            table.add_row(*(self._text(cell, tone if i == 1 else Tone.PLAIN) for i, cell in enumerate(row)))
        self._console.print(table)

    def facts(self, facts: Sequence[Fact]) -> None:
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value, tone in facts:
            grid.add_row(self._text(name, Tone.FAINT), self._text(value, tone))
        self._console.print(grid)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Meter]:
        from rich.progress import BarColumn, Progress, ProgressColumn, TimeElapsedColumn
        from rich.text import Text

        class Count(ProgressColumn):
            def render(self, task: Task) -> Text:
                of = f" of {task.total:,.0f}" if task.total is not None else ""
                pace = f", {task.speed:,.0f} a second" if task.speed else ""
                return Text(f"{task.completed:,.0f}{of}{pace}")

        with Progress(label, BarColumn(), Count(), TimeElapsedColumn(), console=self._console, transient=True) as bar:
            task = bar.add_task(label, total=total)

            class Bar:
                def advance(self, count: int = 1) -> None:
                    bar.advance(task, count)

            yield Bar()

    @staticmethod
    def _text(text: str, tone: Tone) -> Text:
        from rich.text import Text

        return Text(safe(text), style=tone.value)
