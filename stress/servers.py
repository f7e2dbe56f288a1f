"""The soak's servers: each refuses by domain, drops connections in its own way, and tells what it has got.

Owns their start and end. Guarantees that `arrived` is the whole truth: nothing is on its way any more when it returns.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.support.naming import NamingServer, naming
from threadmail import RetryPolicy, Timeouts

from .ledger import DEFERRED, REFUSED, Arrived
from .storm import Storm

PATIENCE = 60.0  # seconds until something that has not ended is taken for hanging


class Server(Protocol):
    """What the soak needs of a server; a context manager.

    Attributes:
        settings: what a client's config needs beside the address.
        patience: how a sender is to try again.
        faulty: whether messages are refused by chance.
        struck: what went wrong by this server's doing, complete when `arrived` has returned.
        hit: connections with a message on them that this server (or what is before it) may have ended, at most, so far.
    """

    host: str
    port: int
    settings: Mapping[str, Any]
    patience: RetryPolicy
    faulty: bool
    struck: Counter[str]
    hit: int

    def __enter__(self) -> Server: ...
    def __exit__(self, *exc: object) -> None: ...

    def disturb(self, rng: random.Random) -> tuple[str, int]:
        """Do something rude; return what, and how often."""
        ...

    def arrived(self, at_least: int) -> list[Arrived]:
        """Everything it has taken, when nothing is on its way any more."""
        ...


class _Plain:
    """What most servers have in common. A timeout is shorter than the soak's patience: silence is no hang."""

    settings: Mapping[str, Any] = {"timeouts": Timeouts.all(PATIENCE / 3)}
    patience = RetryPolicy(attempts=3, base=0.01, longest=0.05)

    def __init__(self) -> None:
        self.faulty = True
        self.struck: Counter[str] = Counter()
        self.hit = 0


class Aiosmtpd(_Plain):
    """`NamingServer`, which drops connections on demand and refuses some messages at the last moment."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng  # used on the server's thread only
        self._server = NamingServer(on_recipient=self._refuse, on_message=self._refuse_message)

    def __enter__(self) -> Aiosmtpd:
        self._server.start()
        self.host, self.port = self._server.host, self._server.port
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.close()

    def _refuse(self, recipient: str) -> str | None:
        domain = recipient.rpartition("@")[2]
        code, words = {REFUSED: ("550 5.1.1", "nobody here"), DEFERRED: ("451 4.2.1", "later")}.get(domain, ("", ""))
        return naming(code, recipient, words) if code else None

    def _refuse_message(self, message: object) -> str | None:
        chance = self._rng.random() if self.faulty else 1.0
        return "554 5.7.1 no" if chance < 0.01 else "452 4.3.1 full" if chance < 0.03 else None

    def disturb(self, rng: random.Random) -> tuple[str, int]:
        dropped = self._server.drop_connections(rng.choice(["fin", "reset", "421"]))
        self.hit += dropped
        return "connection dropped by the server", dropped

    def arrived(self, at_least: int) -> list[Arrived]:
        self._server.close()  # it keeps a message before it answers, so that what was answered is there
        return [Arrived(m.sender, m.recipients, m.content, queue_id) for m, queue_id in self._server.taken]


class RealPostfix(_Plain):
    """Postfix, which hangs up on a session with too many refused recipients."""

    def __init__(self, rng: random.Random) -> None:
        from tests.support.postfix import Postfix

        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name)
        self._path.chmod(0o755)  # Postfix's processes give up root
        checks = f"{{{REFUSED}=550 5.1.1 nobody here}}, {{{DEFERRED}=451 4.2.1 later}}"
        settings = {
            "smtpd_recipient_restrictions": f"check_recipient_access inline:{{{checks}}}",
            "smtpd_hard_error_limit": "2",
            "smtpd_soft_error_limit": "100",
        }
        self._postfix = Postfix(self._path, settings=settings)

    def __enter__(self) -> RealPostfix:
        self._postfix.__enter__()
        self.host, self.port = self._postfix.host, self._postfix.port
        return self

    def __exit__(self, *exc: object) -> None:
        self._postfix.__exit__(None, None, None)
        self._folder.cleanup()

    def disturb(self, rng: random.Random) -> tuple[str, int]:
        return "left alone", 0  # it hangs up by itself

    def arrived(self, at_least: int) -> list[Arrived]:
        self._postfix.wait_for(at_least, PATIENCE)
        end = time.monotonic() + PATIENCE
        while not self._at_rest():  # what was in doubt may still be on its way
            if time.monotonic() > end:
                raise TimeoutError("Postfix's queue does not come to rest")
            time.sleep(0.1)
        return [
            Arrived(m.sender, m.recipients, m.content, _queue_id(m.received)) for m in self._postfix.messages()
        ]  # fmt: skip

    def _at_rest(self) -> bool:
        log = self._postfix.log()
        if len(re.findall(r"\bconnect from", log)) != len(re.findall(r"\bdisconnect from", log)):
            return False
        queues = (self._path / "queue" / name for name in ("incoming", "active", "deferred", "maildrop"))
        return not any(entry.is_file() for queue in queues for entry in queue.rglob("*"))


class RealExim(_Plain):
    """Exim, which limits connections, and messages on each; and puts messages off, after their content too."""

    def __init__(self, rng: random.Random) -> None:
        from tests.support.exim import Exim

        super().__init__()
        rcpt = (
            f"deny message = 550 5.1.1 <$local_part@$domain>: nobody here\ndomains = {REFUSED}\n"
            f"defer message = 451 4.2.1 <$local_part@$domain>: later\ndomains = {DEFERRED}"
        )
        data = "defer message = 452 4.3.1 full\ncondition = ${if <{${randint:100}}{2}}"
        limits = {"smtp_accept_max_per_host": "6", "smtp_accept_max_per_connection": "20"}
        self._exim = Exim(settings=limits, rcpt=rcpt, data=data)

    def __enter__(self) -> RealExim:
        self._exim.__enter__()
        self.host, self.port = self._exim.host, self._exim.port
        return self

    def __exit__(self, *exc: object) -> None:
        self._exim.__exit__(None, None, None)

    def disturb(self, rng: random.Random) -> tuple[str, int]:
        return "left alone", 0  # it hangs up by itself

    def arrived(self, at_least: int) -> list[Arrived]:
        end = time.monotonic() + PATIENCE
        while len(self._exim.processes()) > 1:  # a session may still take in what its client has given up
            if time.monotonic() > end:
                raise TimeoutError("Exim's sessions do not end")
            time.sleep(0.1)
        log = self._exim.log()
        self.struck["connection over the limit"] += log.count("too many connections")
        self.struck["connection with too many messages"] += log.count("too many messages")
        return [
            Arrived(m.sender, m.recipients, m.content, _queue_id(m.received)) for m in self._exim.messages()
        ]  # fmt: skip


def _queue_id(received: bytes) -> str:
    match = re.search(rb"\bid ([\w-]+)", received)
    return match[1].decode() if match else ""


SERVERS: dict[str, Callable[[random.Random], Server]] = {
    "aiosmtpd": Aiosmtpd,
    "postfix": RealPostfix,
    "exim": RealExim,
    "storm": Storm,
}
