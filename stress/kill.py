"""Processes that are killed while they send: what one of them recorded as sent, the server has, and has once from it.

    python -m stress.kill [--seconds N] [--seed S]

Each worker process sends a list of messages with a `ThreadedSender` and appends every receipt to a file, synced, when
it has it. It is killed (SIGKILL) at a random moment and started again with what the file does not have. Then the server
is asked, by Message-ID and by run (each process writes its number into a header).

Claimed: no process sends a message twice; what is recorded as sent was accepted; what is recorded as not sent was not;
every copy is whole. **Not claimed:** that a message is not sent twice by two processes. Between the server's acceptance
and the record lies a moment, and a process killed in it leaves a message of which its successor knows nothing: it sends
it again. How often that happened is printed. Only a record made before the end of data could tell (an outbox).
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

from threadmail import Envelope, Outcome, Receipt, ThreadedSender
from threadmail.testing import CapturedMessage, CaptureServer

ROOT = Path(__file__).resolve().parents[1]

WORKERS = 3  # processes at once
MESSAGES = 300  # in a list; then comes the next one
LATEST = 0.8  # seconds after its start by which a process is killed

PATIENCE = 60.0

_MARKS = re.compile(rb"^Message-ID: <(\S+)@example\.org>\r\nX-Run: (\d+)\r\n", re.MULTILINE)


def letter(name: str, run: int) -> Envelope:
    body = f"{name} line\r\n" * (1 + hash_of(name) % 50)
    content = f"From: from-{name}@example.org\r\nMessage-ID: <{name}@example.org>\r\nX-Run: {run}\r\n\r\n{body}"
    return Envelope(f"from-{name}@example.org", [f"to-{name}@example.net"], content.encode())


def hash_of(name: str) -> int:
    """The same in every process, as hash() is not."""
    return sum(name.encode())


# ---------------------------------------------------------------- the process that is killed


def work(url: str, run: int, names: Iterable[str], record: Path) -> None:
    """Send `names`, and append each receipt to `record` when it is there."""
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def keep(receipt: Receipt) -> None:
        name = receipt.sender.removeprefix("from-").partition("@")[0]
        os.write(file, f"{run} {name} {receipt.outcome.name}\n".encode())
        os.fsync(file)

    with ThreadedSender(url, workers=3, on_receipt=keep) as sender:
        print("ready", flush=True)
        for _ in sender.send_each(letter(name, run) for name in names):
            pass
    os.close(file)


# ---------------------------------------------------------------- the one who kills


@dataclass
class Tally:
    """What the killers did; they share it."""

    runs: int = 0
    kills: int = 0
    records: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_run(self) -> int:
        with self.lock:
            self.runs += 1
            return self.runs


def settled(record: Path) -> dict[tuple[str, int], Outcome]:
    """What a file has, by name and run. A line that a kill cut short says nothing."""
    lines = record.read_text().split("\n")[:-1] if record.exists() else []
    found = {}
    for run, name, outcome in (line.split() for line in lines):
        found[name, int(run)] = Outcome[outcome]
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
    told = {key: outcome for record in t.records for key, outcome in settled(record).items()}
    wrong += [f"{name} arrived {count} times from run {run}" for (name, run), count in copies.items() if count > 1]
    for (name, run), outcome in told.items():
        if outcome is Outcome.SENT and copies[name, run] == 0:
            wrong.append(f"{name} of run {run} is recorded as sent, and did not arrive")
        if outcome is Outcome.NOT_SENT and copies[name, run] > 0:
            wrong.append(f"{name} of run {run} is recorded as not sent, and arrived")
    by_name = Counter(name for (name, _), count in copies.items() if count)
    lost = [name for name in t.names if not by_name[name]]
    wrong += [f"{name} never arrived, though a run was left to finish its list" for name in lost if not t.violations]
    unknown = sum(key not in told for key, count in copies.items() if count)
    counts = Counter(outcome.value for outcome in told.values())
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
            )
            for number in range(WORKERS)
        ]
        for killer in killers:
            killer.start()
        over.wait(seconds)
        over.set()
        for killer in killers:
            killer.join(2 * PATIENCE)
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
        work(url, int(run), sys.stdin.read().split(), Path(record))
        return 0
    return 1 if kill(options.seconds, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
