"""The one life cycle of what is opened and closed.

Owns `Life`, the states of a client, a pool and a sender. Each is changed under the lock of its owner only, and only
forwards.
"""

from __future__ import annotations

import enum


class Life(enum.Enum):
    """OPEN takes work; CLOSING takes no more and finishes, or drops, what it has; CLOSED has nothing left."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
