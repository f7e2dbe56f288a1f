"""A million messages from a generator, in constant memory.

    python -m stress.million [--messages N] [--workers N]

Sends through `send_each` to a server on loopback, and prints the peak of envelopes alive, of resident memory, and the
messages per second. Exits with 1 if anything was lost or memory grew with the number of messages.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

from threadmail import Envelope, Outcome, ThreadedSender

from .sink import Sink

#: Free of it, an object made by one thread and let go by another is freed only when the first comes round to it.
GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


class Counted(Envelope):
    """Counts how many of its kind are alive."""

    alive = 0
    peak = 0
    counting = threading.RLock()  # guards the two; re-entrant, since a collection may begin anywhere

    def __init__(self, number: int) -> None:
        super().__init__(f"from-{number}@example.org", f"to-{number}@example.net", b"Subject: x\r\n\r\nhello\r\n")
        with Counted.counting:
            Counted.alive += 1
            Counted.peak = max(Counted.peak, Counted.alive)

    def __del__(self) -> None:
        with Counted.counting:
            Counted.alive -= 1


def resident_mib() -> float:
    """The peak so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queue", type=int, default=1000)
    args = parser.parse_args()

    def stream() -> Iterator[Envelope]:
        for number in range(args.messages):
            yield Counted(number)

    outcomes: Counter[Outcome] = Counter()
    started = time.monotonic()
    settled = 0
    with Sink() as sink:
        with ThreadedSender(sink.url, workers=args.workers, queue_size=args.queue) as sender:
            for settled, receipt in enumerate(sender.send_each(stream()), 1):
                outcomes[receipt.outcome] += 1
                if settled % 10_000 == 0:
                    seconds = time.monotonic() - started
                    print(f"{settled:>9,} sent, {settled / seconds:,.0f}/s, peak {resident_mib():.0f} MiB", flush=True)
    gc.collect()
    seconds = time.monotonic() - started
    print(f"{settled:,} messages in {seconds:.0f} s ({settled / seconds:,.0f}/s): {dict(outcomes)}")
    print(f"at most {Counted.peak:,} envelopes alive, {Counted.alive} left, peak resident {resident_mib():.0f} MiB")
    print(f"the server counted {sink.messages:,}")
    good = (
        outcomes == {Outcome.SENT: args.messages}
        and sink.messages == args.messages
        and Counted.peak <= (args.queue + args.workers + 8) * (1 if GIL else 2)
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
