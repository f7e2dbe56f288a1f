"""Every byte of every session broken in every way, and every receipt compared with what the server has.

    python -m stress.cuts [--only MODE] [--way WAY] [--fault FAULT] [--sample N] [--seed S]

Cuts (reset and FIN, either side or both), silence and damage at each byte position in both directions, for each mode of
the session and each way to send. Without `--sample` every byte is broken; under TLS that takes a while, so there about
`TLS_SAMPLE` bytes of each direction are drawn by the seed, unless `--sample 0` asks for all of them. Each line says how
many sessions were broken, how many outcomes were false, and the longest time until the outcome was told against its
deadline. What is false is printed with its place: the same mode, way, fault and seed break it there again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from tests.reliability.cutting import FAULTS, MODES
from tests.reliability.cutting_tally import Tally
from tests.reliability.cutting_ways import CLIENT, SMTP_WAY, WAYS

TLS_SAMPLE = 200
SHOWN = 20  # false outcomes of a sweep to print


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.cuts", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="MODE", choices=[mode.name for mode in MODES])
    parser.add_argument("--way", choices=[way.name for way in WAYS])
    parser.add_argument("--fault", choices=list(FAULTS))
    parser.add_argument("--sample", type=int, help="bytes of each direction; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    loggers = [logging.getLogger(name) for name in ("threadmail", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # they report what is done to them
    try:
        return run(options.only, options.way, options.fault, options.sample, options.seed)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run(only: str | None, only_way: str | None, only_fault: str | None, sample: int | None, seed: int) -> int:
    """Sweep, and print what each sweep came to. Returns the exit status."""
    total = Tally(f"in all (seed {seed})")
    begin = time.monotonic()
    for mode in MODES:
        for way in WAYS:
            for fault in FAULTS:
                wanted = only in (None, mode.name) and only_way in (None, way.name) and only_fault in (None, fault)
                # A damaged message cannot be told from another one that the same way sends.
                if not wanted or (fault == "garble" and way not in (SMTP_WAY, CLIENT)):
                    continue
                tally = Tally(f"{mode.name}, {way.name}, {fault}")
                bytes_each = sample if sample is not None or mode.exact else TLS_SAMPLE
                tally.sweep(mode, way, fault, bytes_each or None, seed)
                print(tally, *tally.wrong[:SHOWN], sep="\n  ", flush=True)
                total.include(tally)
    print(f"{total}; took {time.monotonic() - begin:.0f} s")
    return 1 if total.wrong or not total.trials else 0


if __name__ == "__main__":
    sys.exit(main())
