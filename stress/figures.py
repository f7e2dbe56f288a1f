"""How long callers wait, and what slows them down: the sender's figures, before and after.

    python -m stress.figures                     the working tree beside what is asked
    python -m stress.figures --against COMMIT    and beside that commit, by turns
    python -m stress.figures --only S1 --only S8

| name | what is measured |
|---|---|
| `S1` | one message to 1,000 recipients, half of them put off: how long an unrelated `submit()` waits |
| `S3` | a server that lets one connection in and refuses the next: connections in 12 s, and when all is settled |
| `S7` | 2,000 messages submitted and taken back with `queue_size=10`: how many are still in memory |
| `S8` | 20,000 messages queued, a deadline that passes each millisecond: the rate beside that without deadlines |
| `S9` | a queue full of messages for a domain that greylists: the rate of all others beside that without these |
| `queue` | 100,000 messages with deadlines, a tenth of them retries: the dearest operation of the queue |
| `dead` | 50,000 messages queued for a server that dies: how long a caller waits while they are settled |

Owns the measurements. Each runs in a process of its own, on public names only, against a server in another process. A
wait is the best of five: other work on the machine makes it longer, never shorter. Exits with 1 if something asked for
is not met by the working tree.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stress.sink import Session, Sink

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 180.0  # seconds for a measurement, which before may have been as slow as that
TEXT = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: x\r\n\r\nx\r\n"
NAME = "figures.example.net"

# Servers ------------------------------------------------------------------------------------------------------------


class HalfPutOff(Session):
    """Every other recipient is to come later."""

    def command(self, line: bytes) -> bytes:
        if line[:4].upper() == b"RCPT" and line.partition(b"@")[0][-1:] in b"13579":
            return b"450 4.2.0 mailbox busy\r\n"
        return super().command(line)


class Greylisting(Session):
    """One domain is put off, whoever asks."""

    def command(self, line: bytes) -> bytes:
        if line[:4].upper() == b"RCPT" and b"@grey.example" in line:
            return b"450 4.7.1 greylisted\r\n"
        return super().command(line)


class EveryOtherRefused(Session):
    """Lets one connection in, hangs up behind EHLO, and refuses the next. Counts connections, not messages."""

    number = 0

    def __init__(self, offers: Sequence[str]) -> None:
        super().__init__(offers)
        EveryOtherRefused.number += 1
        self.taken = 1
        if EveryOtherRefused.number % 2 == 0:
            self.greeting = b"421 4.3.2 busy\r\n"
            self.ended = True

    def command(self, line: bytes) -> bytes:
        self.ended = True
        return super().command(line)


# Measurements, each in a process of its own ---------------------------------------------------------------------------


def _sender(host: str, port: int, **settings: Any) -> Any:
    from threadmail import ServerConfig, ThreadedSender

    return ThreadedSender(ServerConfig(host, port, local_hostname=NAME), **settings)


def _letter(to: str | Sequence[str] = "b@example.net") -> Any:
    from threadmail import Envelope

    return Envelope("a@example.org", to, TEXT)


def _longest_submit(sender: Any, over: Callable[[], bool], seconds: float) -> float:
    """Milliseconds that the longest `submit()` took, one a millisecond, until it is over."""
    letter, longest, end = _letter(), 0.0, time.monotonic() + seconds
    while not over() and time.monotonic() < end:
        begun = time.perf_counter()
        sender.submit(letter)
        longest = max(longest, time.perf_counter() - begun)
        time.sleep(0.001)
    return longest * 1e3


def many_recipients(host: str, port: int, scale: float) -> dict[str, float]:
    from threadmail import RetryPolicy

    sender = _sender(host, port, workers=2, queue_size=100_000, retry=RetryPolicy(attempts=2, base=0.01))
    future = sender.submit(_letter([f"user{i}@example.org" for i in range(round(1000 * scale))]))
    return {"wait": _longest_submit(sender, future.done, 60.0)}


def in_and_out(host: str, port: int, scale: float) -> dict[str, float]:
    from threadmail import RetryPolicy

    seconds = 12.0 * scale
    sender = _sender(host, port, workers=2, retry=RetryPolicy(base=0.1, total=seconds / 4))
    begun = time.monotonic()
    future = sender.submit(_letter())
    settled = seconds
    while time.monotonic() - begun < seconds:
        if future.done():
            settled = min(settled, time.monotonic() - begun)
        time.sleep(0.01)
    return {"settled": settled}


def taken_back(host: str, port: int, scale: float) -> dict[str, float]:
    from threadmail import Throttle

    throttle = Throttle()
    sender = _sender(host, port, workers=1, queue_size=10, throttle=throttle)
    sender.send(_letter())
    throttle.pause(60.0)  # an outage
    sender.submit(_letter())  # one that waits, before all others
    given = []
    for _ in range(round(2000 * scale)):
        letter = _letter()
        given.append(weakref.ref(letter))
        sender.submit(letter).cancel()
    del letter
    gc.collect()
    return {"alive": float(sum(letter() is not None for letter in given))}


class _Counted:
    """Counts messages sent, but those to a domain that is put off."""

    def __init__(self) -> None:
        self.sent = 0
        self._lock = threading.Lock()

    def __call__(self, receipt: Any) -> None:
        from threadmail import Outcome

        if receipt.outcome is Outcome.SENT:
            with self._lock:
                self.sent += 1


def deadlines(host: str, port: int, scale: float) -> dict[str, float]:
    """The rates of some seconds, without deadlines and while one passes each millisecond."""
    rates = []
    queued, ahead, seconds = round(20_000 * scale), 3.0 * scale, 4.0 * scale  # ahead: time to queue them
    for with_deadlines in (False, True):
        counted = _Counted()
        sender = _sender(host, port, workers=4, queue_size=queued + 1000, on_receipt=counted)
        # Those that pass stand behind the others, so that none of them is sent: one whose deadline may pass behind
        # another message does not ride, which costs a round trip and is another matter.
        passing = list(range(round((seconds + 1.0) * 1e3)))
        random.Random(1).shuffle(passing)
        begun = time.monotonic()
        for at in (*[None] * (queued - len(passing)), *passing):
            left = None if at is None or not with_deadlines else begun + ahead + at / 1e3 - time.monotonic()
            sender.submit(_letter(), deadline=left)
        time.sleep(max(0.0, begun + ahead - time.monotonic()))
        first, now = counted.sent, time.monotonic()
        time.sleep(seconds)
        rates.append((counted.sent - first) / (time.monotonic() - now))
        sender.close(drain=False, timeout=1.0)
    return _share(rates)


def greylist(host: str, port: int, scale: float) -> dict[str, float]:
    """The rates of messages that go through, without and with a queue full of others that do not."""
    from threadmail import RetryPolicy

    rates = []
    messages, full, seconds = round(20_000 * scale), round(1000 * scale), 10.0
    for put_off in (0, full):
        counted = _Counted()
        patient = RetryPolicy(base=600.0, longest=600.0, total=3600.0)
        sender = _sender(host, port, workers=4, queue_size=full, retry=patient, on_receipt=counted)
        for _ in range(put_off):
            sender.submit(_letter("x@grey.example"))
        begun = time.monotonic()
        _submit_until(sender, messages, begun + seconds)
        while counted.sent < messages and time.monotonic() - begun < seconds:
            time.sleep(0.001)
        rates.append(counted.sent / (time.monotonic() - begun))
        sender.close(drain=False, timeout=1.0)
    return _share(rates)


def _share(rates: Sequence[float]) -> dict[str, float]:
    """Of two rates, the second beside the first. Where nothing was sent at all, nothing is kept."""
    return {"share": rates[1] / rates[0] if rates[0] else 0.0, "rate": rates[1]}


def _submit_until(sender: Any, messages: int, end: float) -> None:
    from threadmail import MailError

    letter = _letter()
    for _ in range(messages):
        try:
            sender.submit(letter, deadline=max(0.001, end - time.monotonic()))
        except MailError:  # the queue stayed full
            return


def dead_server(host: str, port: int, scale: float) -> dict[str, float]:
    """The server takes connections and says nothing; then it is gone, and all that is queued fails."""
    from threadmail import RetryPolicy

    messages = round(50_000 * scale)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        sender = _sender(*listener.getsockname(), workers=4, queue_size=messages * 2, retry=RetryPolicy(attempts=1))
        futures = [sender.submit(_letter()) for _ in range(messages)]
        time.sleep(0.2)
        # With what waits in its backlog: reset, and then refused.
    begun = time.monotonic()
    wait = _longest_submit(sender, lambda: all(future.done() for future in futures[:: messages // 100]), 60.0)
    return {"wait": wait, "settled": time.monotonic() - begun}


def operations(host: str, port: int, scale: float) -> dict[str, float]:
    """What the queue's own operations cost; nothing where there is no such queue."""
    try:
        from .operations import measure
    except ImportError:
        return {}
    run = measure(round(100_000 * scale))
    return {"each": max(run.each.values()), "longest": max(run.longest.values()) / 1e3}


# The table ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A number that a measurement gives, and what is asked of it, if anything."""

    key: str
    what: str
    unit: str = ""
    bound: float | None = None
    at_least: bool = False

    def meets(self, found: float) -> bool:
        if self.bound is None:
            return True
        return found >= self.bound if self.at_least else found <= self.bound

    @property
    def asked(self) -> str:
        return "-" if self.bound is None else f"{'>=' if self.at_least else '<='} {_in_words(self.bound, self.unit)}"


@dataclass(frozen=True)
class Measure:
    """One measurement: what runs, against which server, at most how often (the best counts).

    `run` gets host, port, and what part of everything it is to do: 1.0 is what the table is about.
    """

    name: str
    run: Callable[[str, int, float], dict[str, float]]
    values: tuple[Value, ...]
    session: Callable[[Sequence[str]], Session] = Session
    rtt: float = 0.0  # ms of a delay line before the server
    runs: int = 1


MEASURES = (
    Measure(
        "S1", many_recipients, (Value("wait", "1,000 recipients, half put off: the longest submit()", "ms", 20.0),),
        HalfPutOff, runs=5,
    ),
    Measure(
        "S3", in_and_out,
        (
            Value("server", "in and out: connections in 12 s", "", 10.0),
            Value("settled", "in and out, total=3: settled after (12: never)", "s", 4.0),
        ),
        EveryOtherRefused, runs=3,
    ),
    Measure("S7", taken_back, (Value("alive", "2,000 taken back: envelopes alive", "", 20.0),)),
    Measure(
        "S8", deadlines,
        (
            Value("share", "20,000 queued, a deadline passes each ms: rate over that without", "x", 0.8, at_least=True),
            Value("rate", "the rate with deadlines", "/s"),
        ),
        rtt=10.0, runs=3,
    ),
    Measure(
        "S9", greylist,
        (
            Value("share", "1,000 greylisted: rate of the others over that without", "x", 0.8, at_least=True),
            Value("rate", "the rate beside the greylisted", "/s"),
        ),
        Greylisting, runs=3,
    ),
    Measure(
        "queue", operations,
        (
            Value("each", "100,000 queued: the dearest operation", "us", 50.0),
            Value("longest", "and the longest single step under the lock", "ms"),
        ),
        runs=3,
    ),
    Measure(
        "dead", dead_server,
        (
            Value("wait", "50,000 queued for a dead server: the longest submit()", "ms", 20.0),
            Value("settled", "and all are settled after", "s"),
        ),
        runs=5,
    ),
)  # fmt: skip


def best_of(measure: Measure, once: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The best run of several: no further one when all is met, or when it is hopeless."""
    asked = next(value for value in measure.values if value.bound is not None)
    assert asked.bound is not None
    best: dict[str, float] = {}
    for _ in range(measure.runs):
        found = once()
        if asked.key not in found:
            return found  # that code has nothing of the kind
        sign = 1 if asked.at_least else -1
        if not best or sign * found[asked.key] > sign * best[asked.key]:
            best = found
        if all(value.meets(best[value.key]) for value in measure.values):
            break
        if best[asked.key] > 10 * asked.bound and not asked.at_least:
            break
    return best


def once(measure: Measure, tree: Path, scale: float = 1.0) -> dict[str, float]:
    """One run, by the threadmail that lies in `tree`."""
    with _served(measure) as (sink, host, port), tempfile.TemporaryFile() as errors:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree), str(ROOT)))}
        command = [sys.executable, "-m", "stress.figures", "--child", measure.name, host, str(port), str(scale)]
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=errors, timeout=PATIENCE, check=True
            )
        except subprocess.SubprocessError as error:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise SystemExit(f"{measure.name}: {error}: {said[-1] if said else ''}") from error
        found: dict[str, Any] = json.loads(done.stdout)
        source = Path(found.pop("source")).resolve()
        if not source.is_relative_to((tree / "threadmail").resolve()):
            raise SystemExit(f"{measure.name}: it is not what was to be measured: {source}")
        return {**found, "server": float(sink.messages)}


@contextmanager
def _served(measure: Measure) -> Iterator[tuple[Sink, str, int]]:
    from .bench.line import DelayLine

    with ExitStack() as stack:
        sink = stack.enter_context(Sink(session=measure.session))
        if not measure.rtt:
            yield sink, sink.host, sink.port
            return
        line = stack.enter_context(DelayLine((sink.host, sink.port), measure.rtt / 1e3))
        yield sink, line.host, line.port


def _in_words(value: float, unit: str) -> str:
    from .bench.figures import in_words

    text = f"{value:,.0f}" if float(value).is_integer() and not unit else in_words(value)
    return f"{text}{' ' if unit in ('us', 'ms', 's') else ''}{unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.child:
        return _child(*options.child)
    from .bench.against import AFTER, BEFORE
    from .bench.table import table

    chosen = [measure for measure in MEASURES if not options.only or measure.name in options.only]
    rows: list[list[str]] = []
    met = True
    with _trees(options.against) as places:
        shown = [tree for tree in (BEFORE, AFTER) if tree in places]
        for measure in chosen:
            found = {tree: best_of(measure, functools.partial(once, measure, places[tree])) for tree in shown}
            for value in measure.values:
                good = value.key in found[AFTER] and value.meets(found[AFTER][value.key])
                met &= good
                there = [found[tree].get(value.key) for tree in shown]
                said = ["-" if number is None else _in_words(number, value.unit) for number in there]
                verdict = "-" if value.bound is None else "met" if good else "**short**"
                rows.append([measure.name, value.what, value.asked, *said, verdict])
                print(": ".join((measure.name, value.what, *said, verdict)), flush=True)
    print()
    print(table(["", "what", "asked", *shown, "verdict"], rows))
    return 0 if met and rows else 1


@contextmanager
def _trees(commit: str | None) -> Iterator[dict[str, Path]]:
    from .bench import against

    if commit is None:
        yield {against.AFTER: ROOT}
        return
    with against.trees(commit) as places:
        yield places


def _child(name: str, host: str, port: str, scale: str) -> int:
    import logging

    import threadmail

    # An editable installation lends its modules to a package that has none of that name: code of before would get ours.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _module_of(finder).startswith("__editable__")]
    logging.disable(logging.CRITICAL)
    measure = next(measure for measure in MEASURES if measure.name == name)
    print(json.dumps({**measure.run(host, int(port), float(scale)), "source": threadmail.__file__}), flush=True)
    os._exit(0)  # what is still queued is not waited for: how a sender ends is measured elsewhere


def _module_of(finder: object) -> str:
    return str(getattr(finder, "__module__", ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stress.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT", help="measure that commit as well")
    parser.add_argument("--only", action="append", default=[], choices=[measure.name for measure in MEASURES])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
