"""A WSGI application whose senders were used when it was loaded, before gunicorn forked its workers (`--preload`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.mail import envelope
from threadmail import Client, ClientPool, ServerConfig, ThreadedSender

CONFIG = ServerConfig.from_url(os.environ["THREADMAIL_URL"])
CLIENT = Client(CONFIG)
POOL = ClientPool(CONFIG)
SENDER = ThreadedSender(CONFIG, workers=2)


def send_all(who: str) -> list[str]:
    sends = (("client", CLIENT.send), ("pool", POOL.send), ("sender", SENDER.send))
    return [str(send(envelope(f"{who}-{what}"), deadline=20.0).outcome) for what, send in sends]


send_all("preload")


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Send on each, and leave one message in the queue for the worker's end."""
    name = f"{os.getpid()}-{environ['QUERY_STRING']}"
    outcomes = send_all(f"worker-{name}")
    SENDER.submit(envelope(f"queued-{name}"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(outcomes).encode()]
