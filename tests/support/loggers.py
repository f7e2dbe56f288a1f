"""Records that are handed over behind a busy handler: when that is over."""

from __future__ import annotations

import threading
import time

SOON = 10.0


def handed_over() -> None:
    """Wait until no thread hands over records any more."""
    end = time.monotonic() + SOON
    while threads := [thread for thread in threading.enumerate() if thread.name == "threadmail-log"]:
        assert time.monotonic() < end, "records are still being handed over"
        for thread in threads:
            try:
                thread.join(SOON)
            except RuntimeError:  # it is just being started
                time.sleep(0.001)
