"""A Celery worker's module whose senders are used at import; its prefork children inherit them: `DIRECTORY`.

Runs a worker on a broker made of files, and gives it tasks when it is ready. The children end by os._exit(), which runs
no hook of Python's: what is in a queue then is closed by Celery's own signal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_shutdown, worker_ready

from tests.support.mail import envelope
from threadmail import Client, ClientPool, ServerConfig, ThreadedSender

CONFIG = ServerConfig.from_url(os.environ["THREADMAIL_URL"])
CLIENT = Client(CONFIG)
POOL = ClientPool(CONFIG)
SENDER = ThreadedSender(CONFIG, workers=2)

OPTIONS = (
    "--pool=prefork --concurrency=2 --loglevel=ERROR --quiet --without-gossip --without-mingle --without-heartbeat"
)


def send_all(who: str) -> None:
    for what, send in (("client", CLIENT.send), ("pool", POOL.send), ("sender", SENDER.send)):
        send(envelope(f"{who}-{what}"), deadline=20.0)


def make_app(directory: Path) -> Celery:
    app = Celery("mail", broker="filesystem://")
    app.conf.broker_transport_options = {
        "data_folder_in": str(directory),
        "data_folder_out": str(directory),
        "control_folder": str(directory / "control"),
    }
    app.conf.worker_hijack_root_logger = False
    return app


def main() -> None:
    app = make_app(Path(sys.argv[1]))

    @app.task
    def mail(name: str) -> None:
        send_all(f"task-{name}")
        SENDER.submit(envelope(f"queued-{name}"))

    @worker_process_shutdown.connect(weak=False)
    def close(**_: object) -> None:
        SENDER.close(timeout=10.0)

    @worker_ready.connect(weak=False)
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
