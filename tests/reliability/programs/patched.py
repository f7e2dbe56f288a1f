"""A program patched by gevent: greenlets share a Client, a pool and a sender: `URL`.

Threads, locks and sockets are gevent's here, made through the names that it has patched.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Not by an import statement: types are checked with and without it.
gevent: Any = import_module("gevent")
import_module("gevent.monkey").patch_all()

import sys  # noqa: E402
import time  # noqa: E402

from tests.support.mail import envelope, names  # noqa: E402
from threadmail import Client, ClientPool, Envelope, ServerConfig, ThreadedSender  # noqa: E402

GREENLETS, EACH = 10, 5


def main() -> None:
    config = ServerConfig.from_url(sys.argv[1])
    beats = 0

    def beat() -> None:
        nonlocal beats
        while True:
            gevent.sleep(0.001)
            beats += 1

    heart = gevent.spawn(beat)
    started = time.monotonic()
    with Client(config) as client, ClientPool(config, max_size=3) as pool, ThreadedSender(config, workers=3) as sender:
        sends = {"client": client.send, "pool": pool.send, "sender": sender.send}

        def work(number: int) -> None:
            for name in names(GREENLETS, EACH):
                if name.startswith(f"t{number}m"):
                    for what, send in sends.items():
                        send(envelope(f"{what}-{name}"), deadline=20.0)

        greenlets = [gevent.spawn(work, number) for number in range(GREENLETS)]
        gevent.joinall(greenlets, timeout=25.0, raise_error=True)
        assert all(greenlet.successful() for greenlet in greenlets), "a greenlet hangs"
        batch = [Envelope.of(envelope(f"batch-{number}")) for number in range(20)]
        assert {str(receipt.outcome) for receipt in sender.send_all(batch, deadline=20.0)} == {"Outcome.SENT"}
        opened = client.stats().opened, pool.stats().opened, sender.stats().opened
    heart.kill()
    assert beats > 5, f"the others stood still for {time.monotonic() - started:.1f} s"
    assert opened[0] == 1
    assert max(opened) <= 3, opened


if __name__ == "__main__":
    main()
