"""A capture server whose every word names what it is about, so that a receipt with another's reply can be told.

Owns nothing beyond `CaptureServer`: its final reply holds an id of the message's own; with `naming` a refused
recipient's reply holds his address. `taken` says which id each message got. The server keeps a message before it
answers, so that what was answered is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from threadmail.testing import CapturedMessage, CaptureServer


class NamingServer(CaptureServer):
    """See the module. The arguments are those of `CaptureServer`, whose callbacks may refuse, not accept."""

    def __init__(self, *, on_message: Callable[[CapturedMessage], str | None] | None = None, **settings: Any) -> None:
        self._refuses = on_message
        self._taken: list[tuple[CapturedMessage, str]] = []  # changed on the server's thread only
        super().__init__(on_message=self._take, **settings)

    def _take(self, message: CapturedMessage) -> str | None:
        refusal = self._refuses(message) if self._refuses is not None else None
        if refusal is not None:
            return refusal
        queue_id = f"Q{len(self._taken) + 1:07}"  # all of one length, as whoever counts bytes needs them
        self._taken.append((message, queue_id))
        return f"250 2.0.0 queued as {queue_id}"

    @property
    def taken(self) -> list[tuple[CapturedMessage, str]]:
        """The messages so far, each with the id that its final reply names: a copy."""
        return list(self._taken)

    @property
    def messages(self) -> list[CapturedMessage]:
        """The messages so far: a copy."""
        return [message for message, _ in self._taken]


def naming(code: str, recipient: str, words: str) -> str:
    """A reply to RCPT that names whom it is about: `naming("550 5.1.1", "x@example.net", "nobody here")`."""
    return f"{code} <{recipient}>: {words}"
