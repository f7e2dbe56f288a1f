"""A server without a network: a socket that answers each line by itself, for tests that ask a thousand questions.

Owns what was said to it, byte for byte, and a reading of it that trusts nobody: commands by line, content up to the
first lone dot, as a strict server reads. Nothing waits: where a real socket would, TimeoutError or BlockingIOError says
so at once.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

STAGES = ("greeting", "ehlo", "auth", "mail", "rcpt", "second rcpt", "data", "content", "quit")
GOOD = {
    "greeting": b"220 me ESMTP\r\n",
    "ehlo": b"250-me\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 AUTH PLAIN\r\n",
    "auth": b"235 welcome\r\n",
    "data": b"354 go ahead\r\n",
    "quit": b"221 bye\r\n",
}


@dataclass
class FakeSocket:
    """Answers as a good server does, but for one stage.

    Args:
        stage: where `odd` is said instead of the right reply; None: nowhere.
        odd: what is said there; after it the server hangs up (`hangs_up`), or says nothing for ever.
        endless: repeat `odd` for ever.
    """

    stage: str | None = None
    odd: bytes = b""
    hangs_up: bool = False
    endless: bool = False
    said: bytearray = field(default_factory=bytearray)
    taken: int = 0  # bytes of replies that were read
    content_whole: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self._ready = bytearray()
        self._silent = False
        self._line = bytearray()
        self._in_content = False
        self._rcpts = 0
        self._timeout: float | None = None
        self._answer("greeting")

    # -- the server ---------------------------------------------------------------------------------------------------

    def _answer(self, stage: str) -> None:
        if self._silent:
            return
        self._silent = stage == self.stage
        self._ready += self.odd if self._silent else GOOD.get(stage, b"250 ok\r\n")
        # Whatever was said in the place of 354, only a 354 lets the content come.
        self._in_content = stage == "data" and self._ready.startswith(b"354")

    def _hear(self, data: bytes) -> None:
        self._line += data
        while True:
            end = b"\r\n.\r\n" if self._in_content else b"\r\n"
            before, found, rest = bytes(self._line).partition(end)
            if not found:
                return
            self._line = bytearray(rest)
            if self._in_content:
                self._in_content, self.content_whole = False, True
                self._answer("content")
                continue
            verb = before[:4].lower().decode("latin-1").strip()
            self._rcpts += verb == "rcpt"
            self._answer("second rcpt" if verb == "rcpt" and self._rcpts == 2 else verb)

    # -- the socket ---------------------------------------------------------------------------------------------------

    def recv(self, count: int) -> bytes:
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        if not self._ready and self._silent and self.endless:
            self._ready += self.odd
        data = bytes(self._ready[:count])
        del self._ready[:count]
        self.taken += len(data)
        if data or (self._silent and self.hangs_up):
            return data
        if self._timeout == 0:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        raise TimeoutError("timed out")

    def send(self, data: bytes | memoryview) -> int:
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        self.said += data
        self._hear(bytes(data))
        return len(data)

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def setsockopt(self, *options: Any) -> None:
        pass

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 25)

    def fileno(self) -> int:
        return -1 if self.closed else 3

    def close(self) -> None:
        self.closed = True


@contextmanager
def dialled(fake: FakeSocket) -> Iterator[FakeSocket]:
    """Whoever connects gets `fake`; once."""
    fakes = iter([fake])

    def create_connection(*arguments: Any, **settings: Any) -> Any:
        try:
            return next(fakes)
        except StopIteration:
            raise ConnectionRefusedError(111, "Connection refused") from None

    with patch.object(socket, "create_connection", create_connection):
        yield fake


@dataclass
class Heard:
    """What a strict server read: commands in order, and the content with its dots taken off; None: there was none."""

    commands: list[str]
    content: bytes | None


def read_strictly(said: bytes) -> Heard:
    """Read a session; AssertionError where it is not well-formed.

    Each line ends in CRLF and holds no other CR or LF (RFC 5321 §2.3.8), commands hold no NUL and no control character
    but what UTF-8 is made of, content ends with the first lone dot and what follows is a command again.
    """
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", said), "a bare CR or LF"
    lines = said.split(b"\r\n")
    assert lines.pop() == b"", "the last line has no end"
    heard = Heard([], None)
    rest = iter(lines)
    for line in rest:
        assert not re.search(rb"[\0-\x1f\x7f]", line), f"a control character in the command {line!r}"
        heard.commands.append(line.decode())
        if line.lower() == b"data":
            content = b""
            for text in rest:
                if text == b".":
                    break
                content += text.removeprefix(b".") + b"\r\n"
            else:
                raise AssertionError("the content has no end")
            assert heard.content is None, "a second content"
            heard.content = content
    return heard
