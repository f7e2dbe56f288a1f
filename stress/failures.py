"""Failures of every kind by the thousand, and what the process holds afterwards.

    python -m stress.failures [--each N] [--way WAY]

Each kind is met N times in each way to send; before and after, file descriptors, threads, live objects of threadmail's
and the resident memory are counted. The exit status is 1 if anything but memory has grown.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.reliability.failing import WAYS, Census, fail


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.failures", description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=int, default=100, help="failures of each kind in each way, a multiple of 4")
    parser.add_argument("--way", choices=list(WAYS))
    options = parser.parse_args(arguments)
    logger = logging.getLogger("threadmail")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    gc.disable()  # what is closed only when the garbage collector comes by is not closed
    try:
        return max([run(way, options.each) for way in WAYS if options.way in (None, way)])
    finally:
        gc.enable()
        logger.setLevel(level)


def run(way: str, each: int) -> int:
    """Fail in one way, and print what is left. Returns the exit status."""
    fail(way, 4)  # what is made once, and kept
    before, memory = Census.take(), resident()
    begin = time.monotonic()
    failures = fail(way, each)
    after = Census.take()
    even = after == before
    print(
        f"{way}: {sum(failures.values())} failures of {len(failures)} kinds in {time.monotonic() - begin:.0f} s; "
        f"{sum(after.files.values())} files (before: {sum(before.files.values())}), "
        f"{len(after.threads)} threads ({len(before.threads)}), "
        f"{sum(after.objects.values())} objects ({sum(before.objects.values())}), "
        f"{resident() // 1024} KiB resident ({memory // 1024}): {'even' if even else 'LEFT BEHIND'}",
        flush=True,
    )
    if not even:
        threads = set(after.threads) - set(before.threads)
        print(f"  {after.files - before.files} {threads} {after.objects - before.objects}")
    return 0 if even else 1


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    sys.exit(main())
