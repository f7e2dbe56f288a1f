"""Chance, as whoever makes a client, a pool or a sender gives it.

Owns the check of `rng`. Guarantees: what is no `random.Random` is named where it is given. It is asked while a server
is dialled, and what it raised there would be met on a thread of ours, which has messages to settle.
"""

from __future__ import annotations

import random

from ..errors import InvalidConfig


def chance(rng: random.Random | None) -> random.Random:
    """`rng`, or one of its own for None.

    Raises:
        InvalidConfig: it is something else; the class itself, say.
    """
    if rng is None:
        return random.Random()
    given: object = rng
    if not isinstance(given, random.Random):
        raise InvalidConfig(f"rng is no random.Random but a {type(given).__name__}")
    return rng
