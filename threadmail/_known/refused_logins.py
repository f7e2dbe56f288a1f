"""Which credentials a server refused.

Owns the memory of refused logins that all clients with one config share, so that a wrong password is offered once and
not once for each client: servers lock accounts. It is the pair that is barred, not the login: another password or a new
token is offered at once. And who may offer a pair: one thread at a time, unless the server took it a moment ago; those
with another pair, such as a token for each dial, do not wait for him. Guarantees: nothing is kept in the clear, but a
hash with a key that only this process has. Each operation on a dict is atomic; the only locks are those of `turn`, for
whoever logs in to hold meanwhile. Time is an argument.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from .._runtime.locks import new_rlock
from .._runtime.process import Process, here
from ..errors import LoginRefused, printable

_KEY = os.urandom(32)

#: Seconds after a login in which others offer the same pair side by side: a pool that starts, or comes back, does not
#: log in one by one. A password that is changed just then may be tried by each of them.
PROVEN = 5.0

#: Pairs whose turns are kept. Who has one that was dropped for a newer one may not be alone with his pair any more.
TURNS = 64


def mark(user: str, password: str) -> bytes:
    """What stands for a pair of user name and password or token."""
    pair = f"{len(user)} {user}{password}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(pair, key=_KEY, digest_size=16).digest()


class RefusedLogins:
    """See the module. A copy in another process, or of another config, begins anew."""

    def __init__(self) -> None:
        # By mark: since when, until when, and the server's answer.
        self._refused: dict[bytes, tuple[float, float, int, bytes]] = {}
        self._taken: tuple[bytes, float] = (b"", 0.0)  # the mark that the server took last, and until when that counts
        # By process, for one of the parent may be held by a thread that is not here, and mark.
        self._turns: dict[tuple[Process, bytes], Any] = {}

    def bar(self, marked: bytes, refusal: LoginRefused, until: float, now: float) -> None:
        """Let the pair not be offered again before `until`."""
        for old, (_, end, _, _) in list(self._refused.items()):
            if end <= now:
                self._refused.pop(old, None)
        text = refusal.smtp_error
        if self._taken[0] == marked:
            self._taken = b"", 0.0
        self._refused[marked] = now, until, refusal.smtp_code, text if isinstance(text, bytes) else text.encode()

    def any(self, now: float) -> bool:
        """Whether a pair is barred now."""
        return bool(self._refused) and any(now < until for _, until, _, _ in list(self._refused.values()))

    def refusal(self, marked: bytes, now: float) -> LoginRefused | None:
        """What the server said to the pair, if it is barred now; and that it is not asked again, for how long."""
        since, until, code, text = self._refused.get(marked, (0.0, 0.0, 0, b""))
        if now >= until:
            return None
        ago, left = f"{now - since:.0f} s ago", f"{until - now:.0f} s"
        why = f"not asked again: this login was refused {ago}; the next try is in {left}, or with another password"
        return LoginRefused(code, text, f"the server answered {code} {printable(text)}; {why}")

    def took(self, marked: bytes, now: float) -> None:
        """The server took the pair."""
        self._taken = marked, now + PROVEN

    def is_proven(self, marked: bytes, now: float) -> bool:
        """Whether the server took the pair a moment ago."""
        proven, until = self._taken
        return proven == marked and now < until

    def turn(self, marked: bytes) -> Any:
        """Held by whoever offers this pair, as long as that is not proven."""
        key = here(), marked
        turn = self._turns.get(key)
        if turn is None:
            for old in list(self._turns)[: 1 - TURNS]:
                self._turns.pop(old, None)
            turn = self._turns.setdefault(key, new_rlock())
        return turn

    def __reduce__(self) -> tuple[type[RefusedLogins], tuple[()]]:
        return RefusedLogins, ()

    def __repr__(self) -> str:
        return f"<{len(self._refused)} refused logins>"
