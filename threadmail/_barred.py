"""Which credentials a server refused.

Owns the memory of refused logins that all clients with one config share, so that a wrong password is offered once and
not once for each client: servers lock accounts. It is the pair that is barred, not the login: another password or a new
token is offered at once. Guarantees: nothing is kept in the clear, but a hash with a key that only this process has.
Has no lock: each operation on the one dict is atomic. Time is an argument.
"""

from __future__ import annotations

import hashlib
import os

from .errors import LoginRefused

_KEY = os.urandom(32)


def mark(user: str, password: str) -> bytes:
    """What stands for a pair of user name and password or token."""
    pair = f"{len(user)} {user}{password}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(pair, key=_KEY, digest_size=16).digest()


class RefusedLogins:
    """See the module. A copy in another process, or of another config, begins anew."""

    def __init__(self) -> None:
        self._refused: dict[bytes, tuple[float, int, bytes]] = {}  # by mark: until when, and the server's answer

    def bar(self, marked: bytes, refusal: LoginRefused, until: float, now: float) -> None:
        """Let the pair not be offered again before `until`."""
        for old, (end, _, _) in list(self._refused.items()):
            if end <= now:
                self._refused.pop(old, None)
        text = refusal.smtp_error
        self._refused[marked] = until, refusal.smtp_code, text if isinstance(text, bytes) else text.encode()

    def any(self, now: float) -> bool:
        """Whether a pair is barred now."""
        return bool(self._refused) and any(now < until for until, _, _ in list(self._refused.values()))

    def refusal(self, marked: bytes, now: float) -> LoginRefused | None:
        """What the server said to the pair, if it is barred now."""
        until, code, text = self._refused.get(marked, (0.0, 0, b""))
        return LoginRefused(code, text) if now < until else None

    def __reduce__(self) -> tuple[type[RefusedLogins], tuple[()]]:
        return RefusedLogins, ()

    def __repr__(self) -> str:
        return f"<{len(self._refused)} refused logins>"
