"""The tables in Markdown, in the order in which a reader asks, and how they get into a page that has more to say.

Owns what stands between the two marks in `docs/performance.md` and in the README; the rest of both is written by hand
and stays as it is. Every figure is a median with the lowest and the highest beside it where that helps, and
every ratio was taken pair by pair (`figures`). Leaves pictures to `plots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from . import figures
from .figures import Figure, in_words
from .growth import sentences
from .peers import PEERS
from .plan import Cell, size_in_words
from .rounds import Results
from .targets import KEPT, TARGETS, Check, Verdict

BEGIN = "<!-- measured: written by `python -m stress.bench`, from here -->"
END = "<!-- measured: to here -->"


def into(page: str, measured: str) -> str:
    """The page with what was measured between its marks, in place of what stood there.

    Raises:
        ValueError: it has not both marks, once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError("the page has no place for what was measured: the marks are not there once each")
    return f"{before}{begin}\n\n{measured.strip()}\n\n{end}{after}"


def measured(results: Results, pictures: Iterable[str] = ()) -> str:
    """All tables."""
    shown = set(pictures)
    sections = [
        _head(results),
        "## Targets\n\n" + targets(results),
        shortfalls(results),
        _section("Round trips a message", _TRIPS, trips(results), "bench-trips.svg" in shown, "bench-trips.svg"),
        _section("Throughput against the round-trip time", _SPEED, _speed(results), "bench-speed.svg" in shown,
                 "bench-speed.svg"),
        _section("CPU: client and server on one core", _CORE, _plain(results, "core")),
        _section("Messages given as objects", _OBJECTS, _plain(results, "objects")),
        _section("CHUNKING with a window, and real Postfix", _WINDOW, _plain(results, "window")),
        _section("Large messages", _LARGE, _plain(results, "large")),
        _section("Memory", _MEMORY, _memory(results), "bench-memory.svg" in shown, "bench-memory.svg"),
        _section("One thread and 32", _LINEAR, _plain(results, "linear")),
        *_growth(results, shown),
        _foot(results),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def brief(results: Results) -> str:
    """The table of the README: who needs how much of what."""
    eight = results.find("speed", rtt=10.0, connections=8)
    window = results.find("window", server="sink", rtt=10.0, connections=8)
    large = results.find("memory", form="ready", messages=8)
    rows = []
    for peer in _BRIEF:
        found = (
            figures.counted(results, peer),
            figures.median(results, window if peer == "threadmail-window" else eight, peer, figures.rate),
            figures.median(results, large, peer, figures.peak),
        )
        if any(found):
            rows.append([PEERS[peer].label, *(in_words(one.value) if one else "-" for one in found)])
    head = ["2 KiB a message", "round trips a message", "messages/s, 10 ms, 8 connections"]
    return table([*head, "8 x 25 MiB: peak MiB"], rows)


_BRIEF = ("threadmail", "threadmail-window", "nodemailer", "aiosmtplib", "smtplib", "smtplib-new")


def targets(results: Results) -> str:
    """The targets row by row; of those that nothing was measured for, the first line only."""
    rows = []
    for target in TARGETS:
        rows.append(
            [str(target.number), f"**{target.what}**", target.wording, "", f"**{target.judge(results).value}**"]
        )
        judged = [(check, *check.judge(results)) for check in target.checks]
        for check, found, verdict in judged if any(found for _, found, _ in judged) else ():
            value = _with_unit(with_range(found), check) if found else "-"
            said = verdict.value if verdict is not Verdict.SHORT else "**short**"
            rows.append(["", check.what, check.asked, value, said if check.decides else f"({verdict.value})"])
    return table(["#", "what", "at least", "measured", ""], rows)


def _with_unit(figure: str, check: Check) -> str:
    return f"{figure}{'' if check.unit == 'x' else ' '}{check.unit}"


def shortfalls(results: Results) -> str:
    """What falls short, and what was full meanwhile."""
    lines = []
    for target in TARGETS:
        for check, beside in zip(target.checks, (*target.checks[1:], None), strict=True):
            found, verdict = check.judge(results)
            if found is not None and verdict is Verdict.SHORT and check.decides:
                said = [f"{_with_unit(in_words(found.value), check)} where {check.asked} is asked"]
                other = beside.judge(results)[0] if beside is not None and not beside.decides else None
                if other is not None:
                    said.append(f"{KEPT} {_with_unit(in_words(other.value), check)}")
                said += [why] if (why := check.why(results)) else []
                lines.append(f"* Row {target.number}, {check.what}: {'; '.join(said)}.")
    return "\n".join(["What falls short:", "", *lines]) if lines else ""


def trips(results: Results) -> str:
    rows = []
    for peer in PEERS.values():
        count, by_time = figures.counted(results, peer.name), figures.trips(results, peer.name)
        if count is not None:
            rows.append((count.value, [peer.label, with_range(count), with_range(by_time) if by_time else "-"]))
    return table(["who", "counted by the line", "by slope"], [row for _, row in sorted(rows)]) if rows else ""


def _speed(results: Results) -> str:
    blocks = []
    for k, size in sorted({(cell.connections, cell.size) for cell in results.cells("speed")}):
        cells = [cell for cell in results.cells("speed") if (cell.connections, cell.size) == (k, size)]
        cells.sort(key=lambda cell: cell.rtt)
        head = [f"messages a second, k={k}, {size_in_words(size)}", *(_wire(cell) for cell in cells)]
        rows = []
        for peer in PEERS.values():
            rates = [figures.median(results, cell, peer.name, figures.rate) for cell in cells]
            if any(rates):
                rows.append([peer.label, *(in_words(found.value) if found else "-" for found in rates)])
        blocks.append(table(head, rows))
    return "\n\n".join(blocks)


def _plain(results: Results, part: str) -> str:
    """A table for each cell of a part: rate, ratio to ours, CPU."""
    return "\n\n".join(f"{cell.where.partition(': ')[2]}:\n\n{_cell(results, cell)}" for cell in results.cells(part))


def _cell(results: Results, cell: Cell) -> str:
    rows = []
    for peer in cell.peers:
        speed = figures.median(results, cell, peer, figures.rate)
        if speed is None:
            continue
        # A window is beside nodemailer; all else is beside us as we are by default.
        ours = figures.ratio(results, cell, *((peer, "nodemailer") if cell.part == "window" else ("threadmail", peer)))
        itself = "nodemailer" if cell.part == "window" else "threadmail"
        cost = figures.median(results, cell, peer, figures.each)
        busy = figures.median(results, cell, peer, lambda run: run.busy)
        rows.append([
            PEERS[peer].label, in_words(speed.value), with_range(ours) if ours and peer != itself else "",
            in_words(cost.value) if cost else "-", f"{busy.value:.0%}" if busy else "-",
        ])  # fmt: skip
    ratio = "times nodemailer" if cell.part == "window" else "threadmail over it"
    return table(["who", "messages/s", ratio, "client's CPU, us a message", "server busy"], rows)


def _memory(results: Results) -> str:
    rows = []
    for cell in results.cells("memory"):
        for peer in cell.peers:
            most = figures.median(results, cell, peer, figures.peak)
            more = figures.median(results, cell, peer, figures.grown)
            if most is not None and more is not None:
                given = "streamed from a file" if cell.form == "file" else "read into memory"
                copies = more.value * (1 << 20) / cell.size if peer != "smtp-source" else None
                shown = in_words(copies) if copies is not None else "-"
                rows.append([PEERS[peer].label, str(cell.messages), given, in_words(most.value), shown])
    return table(["who", "messages", "content", "peak MiB in all", "wire copies"], rows) if rows else ""


def _growth(results: Results, shown: set[str]) -> list[str]:
    return [
        _section(title, "\n".join(f"* {line}" for line in lines), "", f"bench-{part}.svg" in shown, f"bench-{part}.svg")
        for part, title, lines in sentences(results)
    ]


def _head(results: Results) -> str:
    about = results.about
    loaded = "\n\n**The machine was busy with other work: these figures say little.**" if about.get("loaded") else ""
    return (
        f"Written by `{about.get('command', 'python -m stress.bench')}`: {about.get('machine', '')}. "
        "Medians, with the lowest and the highest beside them; ratios are taken pair by pair. "
        f"Seed {about.get('seed', '-')}.{loaded}"
    )


def _foot(results: Results) -> str:
    lines = ["## On what", ""]
    lines += [f"* Delay line of {rtt:g} ms: {found}." for rtt, found in sorted(results.lines.items())]
    lines += [f"* {label}: {told}." for label, told in results.about.get("versions", {}).items()]
    lines += [f"* Not to be had: {who}: {why}." for who, why in sorted(results.missing.items())]
    lines += [f"* Failed, and left out: {failure}." for failure in results.failures]
    return "\n".join(lines)


def _section(title: str, text: str, body: str, picture: bool = False, file: str = "") -> str:
    if not body and not picture and not text.startswith("*"):
        return ""
    shown = f"![{title}]({file})" if picture else ""
    return "\n\n".join(part for part in (f"## {title}", text, shown, body) if part)


def _wire(cell: Cell) -> str:
    return f"{cell.rtt:g} ms" if cell.rtt else "0 ms, one core" if cell.pinned else "0 ms"


def with_range(found: Figure) -> str:
    if found.count < 2:
        return in_words(found.value)
    return f"{in_words(found.value)} ({in_words(found.low)} to {in_words(found.high)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell would end it."""
    clean: Callable[[str], str] = lambda cell: cell.replace("|", "\\|").replace("\n", " ")  # noqa: E731
    lines = [f"| {' | '.join(map(clean, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


_TRIPS = (
    "One connection, 2 KiB, on a wire of 10 ms and one of 1 ms. Counted: the delay line follows what was sent because "
    "of what, which no load disturbs. By slope: time over the number of messages, at both distances; what is fixed, "
    "and what a message costs without a wire, fall out. Were there waits that are no round trips (a delayed "
    "acknowledgement, say), the slope would have them and the count would not; load shows there as well."
)
_SPEED = "To `smtp-sink`. At 0 ms, client and server share one core; then a delay line is between."
_CORE = "No wire, one connection, one core for both: what counts is work."
_OBJECTS = "The same, with messages that were built before the clock ran; making bytes of them is measured."
_WINDOW = (
    "Opt-in; gives up that at most one message a connection can be in doubt. By default a connection is replaced after "
    "100 messages (nodemailer's is as well), which a window feels most: the second row of it keeps the connection."
)
_LARGE = "Content that is bytes already, one core for client and server."
_MEMORY = (
    "Messages of 25 MiB to eight connections at once, all with the same content. Wire copies: what was taken over what "
    "the process had when it was ready to read the content."
)
_LINEAR = "10 ms, 2 KiB."
