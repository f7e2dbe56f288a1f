"""A real server from npm for a test: Nodemailer's `smtp-server`, with greylisting, limits, TLS and AUTH.

Owns the package (unpacked into a cache folder, not installed), the node process and what it tells; the script it
runs stands in ``tests/data/nodemailer``. Guarantees that `Nodemailer.messages` is what it has taken, since it tells
of a message before it answers the client, and that the process ends with the ``with`` block. Leaves to others what to
send.

    with Nodemailer(greylist=0.3, users={"ada": "secret"}) as server:
        ...                      # mail to server.url, server.tls_url
        server.messages(), server.count("put off")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .servers import Certified, Delivered, Unavailable, cached, end, install_npm

_SCRIPT = Path(__file__).resolve().parents[1] / "data" / "nodemailer" / "server.mjs"
_PACKAGE = "smtp-server@3"


class Nodemailer(Certified):
    """A running server; use it in a ``with`` statement.

    Args:
        users: passwords by user, for AUTH PLAIN and LOGIN under TLS; a login is required then.
        size: octets a message may have.
        max_clients: connections beyond are answered 421.
        idle: seconds after which a silent client is hung up on, with 421.
        greylist: seconds for which a new pair of sender and recipient is put off, with 451 4.7.1.
        rate: (messages, seconds); more are put off at MAIL, with 450 4.7.1.
        refuse: how the addresses begin that are refused for good, as senders and as recipients.
        bad_logins: so many logins are first answered 454.
        bad_greetings: so many connections are first answered 421.
    Entering raises Unavailable if it cannot be had here, TimeoutError if it does not start.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        size: int | None = None,
        max_clients: int | None = None,
        idle: float | None = None,
        greylist: float | None = None,
        rate: tuple[int, float] | None = None,
        refuse: str | None = None,
        bad_logins: int = 0,
        bad_greetings: int = 0,
    ) -> None:
        super().__init__()
        self.tls_port = 0
        certificate = self._certificate()
        settings: dict[str, Any] = {
            "users": users,
            "key": certificate.private_key_pem.bytes().decode(),
            "cert": b"".join(pem.bytes() for pem in certificate.cert_chain_pems).decode(),
            "size": size,
            "maxClients": max_clients,
            "socketTimeout": None if idle is None else idle * 1000,
            "greylist": None if greylist is None else greylist * 1000,
            "rate": None if rate is None else {"messages": rate[0], "per": rate[1] * 1000},
            "refuse": refuse,
            "logins": bad_logins,
            "greetings": bad_greetings,
        }
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._told = threading.Condition()  # guards the three below
        self._asked = 0
        self._events: Counter[str] = Counter()
        self._messages: list[Delivered] = []

    def messages(self) -> list[Delivered]:
        """What it has taken so far."""
        self._catch_up()
        with self._told:
            return list(self._messages)

    def count(self, event: str) -> int:
        """How often it has told of ``"connect"``, ``"hung up"``, ``"login"``, ``"message"``, ``"put off"`` so far."""
        self._catch_up()
        with self._told:
            return self._events[event]

    def _catch_up(self) -> None:
        """Until all it has told by now has been heard: who was answered may look here before our thread has."""
        if self._process.poll() is not None:
            return
        assert self._process.stdin is not None
        with self._told:
            self._asked += 1
            asked = self._asked
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        self.wait_for("so far", asked)

    def wait_for(self, event: str, count: int, timeout: float = 10) -> None:
        """Wait until it has told of so many; raises TimeoutError."""
        with self._told:
            if not self._told.wait_for(lambda: self._events[event] >= count, timeout):
                raise TimeoutError(f"{self._events[event]} of {count} times {event!r}")

    def __enter__(self) -> Nodemailer:
        root = cached("nodemailer", lambda scratch: install_npm(scratch, _PACKAGE))
        node = shutil.which("node")
        if node is None:
            raise Unavailable("there is no node")
        # A module looks for others from where it lies, so the script lies beside them.
        script = root / _SCRIPT.name
        if not script.exists() or script.read_bytes() != _SCRIPT.read_bytes():
            fresh = root / f"{_SCRIPT.name}.{os.getpid()}"
            shutil.copy(_SCRIPT, fresh)
            fresh.rename(script)
        self._process = subprocess.Popen(
            [node, str(script)],
            env={"PATH": "/usr/bin:/bin", "SETTINGS": json.dumps(self._settings)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name="nodemailer-told")
        self._listener.start()
        try:
            self.wait_for("ports", 1, 20)
        except BaseException:
            self._stop()
            if self._process.returncode:
                raise Unavailable(f"node ended with code {self._process.returncode}") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        end(self._process, "node")
        self._listener.join(10)
        self._process.stdin.close()
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._told:
                if told["event"] == "ports":
                    self.port, self.tls_port = told["ports"]
                elif told["event"] == "message":
                    content = base64.b64decode(told["content"])
                    self._messages.append(Delivered(told["sender"], tuple(told["recipients"]), content))
                self._events[told["event"]] += 1
                self._told.notify_all()
