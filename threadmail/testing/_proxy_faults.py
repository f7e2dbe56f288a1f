"""What a FaultProxy can do to a connection: the faults, and the plan that says which of them strike where.

Owns plain frozen data, checked when it is made. A fault stands at a position: the number of bytes of its direction that
pass before it strikes. How it is done is `_proxy_link`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Cut:
    """End the connection when exactly `after` bytes have passed; what comes later never gets through, either way.

    The cut comes at once, not with the next byte: a reply to the last byte that passed is lost as well.

    Args:
        after: bytes of this direction that pass.
        how: ``"reset"`` (a TCP reset) or ``"fin"`` (an orderly end; what is still sent to the proxy is swallowed).
        side: who is told; the other one, where there is one, is left with a connection that has gone silent.
    """

    after: int
    how: Literal["reset", "fin"] = "reset"
    side: Literal["both", "client", "server"] = "both"

    def __post_init__(self) -> None:
        _check(self.after >= 0, f"a position is at least 0, not {self.after}")
        _check(self.how in ("reset", "fin"), f'how must be "reset" or "fin", not {self.how!r}')
        _check(
            self.side in ("both", "client", "server"), f'side must be "both", "client" or "server", not {self.side!r}'
        )


@dataclass(frozen=True)
class Hold:
    """Let exactly `after` bytes pass, and nothing more but the end of the connection, when the sender hangs up.

    Args:
        after: bytes of this direction that pass.
        reading: True swallows what comes later, as a network does that loses it. False does not even read it: the
            sender's buffers fill, as before a peer that has stopped reading, and its hanging up is not noticed before
            the other side ends the connection or the proxy is closed.
    """

    after: int
    reading: bool = True

    def __post_init__(self) -> None:
        _check(self.after >= 0, f"a position is at least 0, not {self.after}")


@dataclass(frozen=True)
class Garble:
    """Damage the byte that follows the first `after` bytes, put bytes before it, or both; then go on.

    Args:
        after: bytes of this direction that pass unharmed.
        mask: what the next byte is combined with (exclusive or). 0x80 makes ASCII what no SMTP reply may hold where it
            counts; 0 changes nothing.
        insert: bytes of the proxy's own that pass first. They count nowhere.
    """

    after: int
    mask: int = 0x80
    insert: bytes = b""

    def __post_init__(self) -> None:
        _check(self.after >= 0, f"a position is at least 0, not {self.after}")
        _check(0 <= self.mask <= 255, f"mask is a byte, not {self.mask}")


@dataclass(frozen=True)
class Delay:
    """Let `after` bytes pass, then nothing for `seconds`, then go on. Nothing is lost."""

    after: int
    seconds: float

    def __post_init__(self) -> None:
        _check(self.after >= 0 and self.seconds >= 0, "position and seconds are at least 0")


@dataclass(frozen=True)
class Trickle:
    """From position `after` on, let `size` bytes pass each `interval` seconds. Nothing is lost.

    The proxy reads no more than it can pass on, so that a fast sender's buffers fill.
    """

    after: int = 0
    interval: float = 0.01
    size: int = 1

    def __post_init__(self) -> None:
        _check(self.after >= 0 and self.interval >= 0, "position and interval are at least 0")
        _check(self.size >= 1, f"size is at least 1, not {self.size}")


Fault: TypeAlias = Cut | Hold | Garble | Delay | Trickle


@dataclass(frozen=True)
class Plan:
    """What happens to one connection. `Plan()` lets everything pass.

    Args:
        to_server: the faults on the way from the client to the server; they strike in the order of their positions.
        to_client: those on the way back.
    """

    to_server: Sequence[Fault] = ()
    to_client: Sequence[Fault] = ()


@dataclass(frozen=True)
class Passage:
    """What became of one connection so far.

    Attributes:
        number: 0 for the first connection.
        plan: what the proxy was to do to it.
        from_client, from_server: bytes that came to the proxy.
        to_server, to_client: how many of them it let pass.
        open: whether it is still under way.
        client_said, server_said: the bytes that came, for a proxy that records; else empty.
    """

    number: int
    plan: Plan
    from_client: int
    from_server: int
    to_server: int
    to_client: int
    open: bool
    client_said: bytes = b""
    server_said: bytes = b""


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
