"""`multiprocessing` with senders that were used at import: `URL METHOD`, METHOD as for `multiprocessing.get_context`.

Under fork the workers find the module as the parent left it; under spawn and forkserver they import it again.
"""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import pytest

from tests.support.mail import envelope
from threadmail import Client, ClientPool, ServerConfig, ThreadedSender

CONFIG = ServerConfig.from_url(sys.argv[1])
CLIENT = Client(CONFIG)
POOL = ClientPool(CONFIG)
SENDER = ThreadedSender(CONFIG, workers=2)


def send_all(who: str) -> list[str]:
    name = f"{who}-{multiprocessing.current_process().name}"
    return [
        str(send(envelope(f"{name}-{what}"), deadline=20.0).outcome)
        for what, send in (("client", CLIENT.send), ("pool", POOL.send), ("sender", SENDER.send))
    ]


def work(config: ServerConfig) -> None:
    """A worker's whole life. It leaves the sender to the end of the process, with a message in the queue."""
    assert config == CONFIG
    send_all("process")
    with Client(config) as client:
        client.send(envelope(f"config-{multiprocessing.current_process().name}"))
    CLIENT.close()
    POOL.close()
    SENDER.submit(envelope(f"queued-{multiprocessing.current_process().name}"))


def main() -> None:
    context: Any = multiprocessing.get_context(sys.argv[2])
    send_all("before")
    for unfit in (CLIENT, POOL, SENDER):
        if sys.argv[2] != "fork":
            with pytest.raises(TypeError, match=r"cannot be pickled.*onfig"):
                context.Process(target=work, args=(unfit,)).start()
    processes = [context.Process(target=work, args=(CONFIG,), name=f"w{number}") for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(25.0)
        assert process.exitcode == 0, f"{process.name} ended with {process.exitcode}"
    send_all("after")
    CLIENT.close()
    POOL.close()


if __name__ == "__main__":
    main()
