"""Processes that are killed while they send: what one of them recorded as sent, the server has, and has once from it.

    python -m stress.kill [--seconds N] [--seed S]

Each worker process sends a list of messages with a `ThreadedSender` and appends every receipt to a file, synced, when
it has it. It is killed (SIGKILL) at a random moment and started again with what the file does not have. Then the server
is asked, by Message-ID and by run (each process writes its number into a header).

Claimed: no process sends a message twice, or is told of one twice; a process that was not killed was told of each once,
by `on_receipt` and by what it waited for, and leaves no thread; what is recorded as sent was accepted; what is recorded
as not sent was not; every copy is whole; and at least one was killed and one sent, or nothing was shown.

**Not claimed:** that a message is not sent twice by two processes. Between the server's acceptance and the record lies
a moment, and a process killed in it leaves a message of which its successor knows nothing: it sends it again. How often
that happened is printed. Only a record made before the end of data could tell (an outbox).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import judgement
from tests.support.judgement import Kind
from threadmail import Envelope, Outcome, Receipt, ThreadedSender
from threadmail.testing import CapturedMessage, CaptureServer

ROOT = Path(__file__).resolve().parents[1]

WORKERS = 3  # processes at once
MESSAGES = 300  # in a list; then comes the next one
LATEST = 0.8  # seconds after its start by which a process is killed
FLOOR = 0.9  # of what was recorded must be recorded as sent: nothing goes wrong but that somebody is killed

PATIENCE = 60.0
UNEVEN = 3  # a process's status when it was told something else by `on_receipt` than by `send_each`
LEFT = 4  # and when a thread is left

_MARKS = re.compile(rb"^Message-ID: <(\S+)@example\.org>\r\nX-Run: (\d+)\r\n", re.MULTILINE)


def letter(name: str, run: int) -> Envelope:
    body = f"{name} line\r\n" * (1 + hash_of(name) % 50)
    content = f"From: from-{name}@example.org\r\nMessage-ID: <{name}@example.org>\r\nX-Run: {run}\r\n\r\n{body}"
    return Envelope(f"from-{name}@example.org", [f"to-{name}@example.net"], content.encode())


def hash_of(name: str) -> int:
    """The same in every process, as hash() is not."""
    return sum(name.encode())


# ---------------------------------------------------------------- the process that is killed


def work(url: str, run: int, names: Iterable[str], record: Path) -> int:
    """Send `names`, and append each receipt to `record` when it is there. Returns the exit status."""
    announced: Counter[tuple[str, Outcome]] = Counter()
    yielded: Counter[tuple[str, Outcome]] = Counter()
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def keep(receipt: Receipt) -> None:
        name = name_of(receipt)
        announced[name, receipt.outcome] += 1
        os.write(file, f"{run} {name} {receipt.outcome.name}\n".encode())
        os.fsync(file)

    with ThreadedSender(url, workers=3, on_receipt=keep) as sender:
        print("ready", flush=True)
        for receipt in sender.send_each(letter(name, run) for name in names):
            yielded[name_of(receipt), receipt.outcome] += 1
    os.close(file)
    if announced != yielded:
        return UNEVEN
    return LEFT if threading.active_count() > 1 else 0


def name_of(receipt: Receipt) -> str:
    return receipt.sender.removeprefix("from-").partition("@")[0]


# ---------------------------------------------------------------- the one who kills


@dataclass
class Tally:
    """What the killers did; they share it."""

    runs: int = 0
    kills: int = 0
    records: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    finished: dict[int, tuple[str, ...]] = field(default_factory=dict)  # runs that ended in peace, and what they had
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_run(self) -> int:
        with self.lock:
            self.runs += 1
            return self.runs


def settled(record: Path) -> dict[tuple[str, int], list[Outcome]]:
    """What a file has, by name and run, all of it. A line that a kill cut short says nothing."""
    lines = record.read_text().split("\n")[:-1] if record.exists() else []
    found: dict[tuple[str, int], list[Outcome]] = {}
    for run, name, outcome in (line.split() for line in lines):
        found.setdefault((name, int(run)), []).append(Outcome[outcome])
    return found


def kill_and_restart(url: str, number: int, folder: Path, rng: random.Random, over: threading.Event, t: Tally) -> None:
    """Lists, one after the other, until the time is over; the last one is finished in peace."""
    generation = 0
    while not over.is_set():
        generation += 1
        names = [f"w{number}g{generation}m{index}" for index in range(MESSAGES)]
        record = folder / f"{number}-{generation}"
        with t.lock:
            t.records.append(record)
            t.names += names
        while left := [name for name in names if name not in {done for done, _ in settled(record)}]:
            if not one_run(url, left, record, t, None if over.is_set() else rng.uniform(0.0, LATEST), over):
                return


def one_run(url: str, names: Sequence[str], record: Path, t: Tally, life: float | None, over: threading.Event) -> bool:
    """One process, killed after `life` seconds. Returns whether all is as it should be."""
    run = t.next_run()
    argv = [sys.executable, "-m", "stress.kill", "--work", url, str(run), str(record)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("\n".join(names))
            process.stdin.close()
            process.stdout.readline()
            if life is not None:
                over.wait(life)
                if process.poll() is None:
                    process.kill()
                    with t.lock:
                        t.kills += 1
            status: object = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = "a hang"
    if status == 0:
        with t.lock:
            t.finished[run] = tuple(names)
    if status in (0, -9):
        return True
    with t.lock:
        t.violations.append(f"run {run} ended with {status}")
    return False


# ---------------------------------------------------------------- the judgement


def judge(arrived: Sequence[CapturedMessage], t: Tally) -> tuple[list[str], str]:
    """What is wrong, and the figures."""
    wrong = list(t.violations)
    copies: Counter[tuple[str, int]] = Counter()
    for message in arrived:
        marks = _MARKS.search(message.content)
        if marks is None:
            wrong.append(f"nobody's message arrived: {message.content[:80]!r}")
            continue
        name, run = marks[1].decode(), int(marks[2])
        copies[name, run] += 1
        expected = letter(name, run)
        if (message.sender, message.recipients, message.content) != (
            expected.sender,
            expected.recipients,
            expected.content,
        ):
            wrong.append(f"{name} of run {run} is not whole")
    told = {key: outcomes for record in t.records for key, outcomes in settled(record).items()}
    for (name, run), outcomes in told.items():
        if len(outcomes) > 1:
            wrong.append(f"{name} of run {run} was told {len(outcomes)} times: {[o.value for o in outcomes]}")
        number = {name: copies[name, run]}
        for kind, _, _ in judgement.miscounts([name], outcomes[-1].value, [], number):
            if kind is not Kind.TWICE:
                how = "did not arrive" if kind is Kind.LOST else "arrived"
                wrong.append(f"{name} of run {run} is recorded as {outcomes[-1].value}, and {how}")
    wrong += [f"{name} arrived {count} times from run {run}" for (name, run), count in copies.items() if count > 1]
    for run, names in t.finished.items():
        heard = {name: len(told.get((name, run), [])) for name in names}
        wrong += [f"{name} of run {run} was never told" for name, count in judgement.unheard(names, heard) if not count]
    doubts = sum(Outcome.IN_DOUBT in outcomes for outcomes in told.values())
    wrong += judgement.unexplained(doubts, 0)  # whoever is killed records nothing more, and nothing else goes wrong
    if not t.kills:
        wrong.append("empty: nobody was killed")
    wrong += judgement.too_few(Counter(outcomes[-1].value for outcomes in told.values()), FLOOR)
    by_name = Counter(name for (name, _), count in copies.items() if count)
    lost = [name for name in t.names if not by_name[name]]
    wrong += [f"{name} never arrived, though a run was left to finish its list" for name in lost if not t.violations]
    unknown = sum(key not in told for key, count in copies.items() if count)
    counts = Counter(outcome.value for outcomes in told.values() for outcome in outcomes)
    figures = (
        f"{t.runs} runs, {t.kills} kills; {len(t.names):,} messages; recorded: "
        + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
        + f"; unknown (arrived, and the process was killed before it recorded that): {unknown}; of these sent again by "
        f"a later run, which nothing here claims to prevent: {sum(count > 1 for count in by_name.values())}"
    )
    return wrong, figures


def kill(seconds: float, seed: int) -> int:
    """Kill for so long. Returns the number of violations."""
    over, t = threading.Event(), Tally()
    with tempfile.TemporaryDirectory(prefix="kill-") as folder, CaptureServer() as server:
        killers = [
            threading.Thread(
                target=kill_and_restart,
                args=(server.url, number, Path(folder), random.Random(f"{seed}/{number}"), over, t),
                name=f"killer-{number}",
                daemon=True,
            )
            for number in range(WORKERS)
        ]
        for killer in killers:
            killer.start()
        over.wait(seconds)
        over.set()
        for killer in killers:
            killer.join(2 * PATIENCE)
        t.violations += [f"{killer.name} hangs" for killer in killers if killer.is_alive()]
        wrong, figures = judge(server.messages, t)
    print(figures)
    print("".join(f"  {line}\n" for line in wrong[:20]), end="")
    print(f"{len(wrong)} violations; seed {seed}, Python {sys.version}")
    return len(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of killing (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (1); how processes run stays chance")
    parser.add_argument("--work", nargs=3, metavar=("URL", "RUN", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        url, run, record = options.work
        return work(url, int(run), sys.stdin.read().split(), Path(record))
    return 1 if kill(options.seconds, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
