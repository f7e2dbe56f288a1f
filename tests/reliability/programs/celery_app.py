"""A Celery worker's module whose senders are used at import; its prefork children inherit them: `DIRECTORY`.

Runs a worker on a broker made of files, and gives it tasks when it is ready. The children end by os._exit(), which runs
no hook of Python's: what is in a queue then is closed by Celery's own signal.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.mail import envelope
from threadmail import Client, ClientPool, ServerConfig, ThreadedSender

CONFIG = ServerConfig.from_url(os.environ["THREADMAIL_URL"])
CLIENT = Client(CONFIG)
POOL = ClientPool(CONFIG)
SENDER = ThreadedSender(CONFIG, workers=2)

# Not by an import statement: types are checked with and without it.
celery: Any = import_module("celery")
signals: Any = import_module("celery.signals")

OPTIONS = "--pool=prefork --concurrency=2 --loglevel=ERROR --without-gossip --without-mingle --without-heartbeat"


def send_all(who: str) -> None:
    for what, send in (("client", CLIENT.send), ("pool", POOL.send), ("sender", SENDER.send)):
        send(envelope(f"{who}-{what}"), deadline=20.0)


def make_app(directory: Path) -> Any:
    app = celery.Celery("mail", broker="filesystem://")
    app.conf.broker_transport_options = {
        "data_folder_in": str(directory),
        "data_folder_out": str(directory),
        "control_folder": str(directory / "control"),
    }
    app.conf.worker_hijack_root_logger = False
    return app


def main() -> None:
    app = make_app(Path(sys.argv[1]))

    @app.task  # type: ignore[untyped-decorator]
    def mail(name: str) -> None:
        send_all(f"task-{name}")
        SENDER.submit(envelope(f"queued-{name}"))

    @signals.worker_process_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def close(**_: object) -> None:
        SENDER.close(timeout=10.0)

    @signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def give_work(**_: object) -> None:
        for number in range(4):
            mail.delay(str(number))

    send_all("before")
    try:
        app.worker_main(["worker", *OPTIONS.split()])
    finally:
        send_all("after")
        CLIENT.close()
        POOL.close()


if __name__ == "__main__":
    main()
