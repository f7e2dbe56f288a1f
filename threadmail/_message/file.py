"""The content of a message that stays in its file.

Owns the reading: once when an envelope is made, to check and to measure it, and again by each connection that sends it.
Guarantees: what is in memory does not grow with the file; what is sent is, octet for octet, what `message` makes of the
file's bytes; of a file that is not what it was when its envelope was made, the last block never comes. Leaves to
`_message.message` what a message must look like, and to `_message.content` what goes to the wire.

A file is opened anew each time and closed behind the last block: a queue of envelopes holds no descriptor, a fork
inherits none, and what is pickled is the path. What is read later is bound to what was checked by device, inode, size
and time, which are looked at first, and by a checksum, for the clock of a file system ticks but every few ms.
"""

from __future__ import annotations

import binascii
import errno
import io
import os
import re
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .._runtime.outside import is_of_a_handler
from ..errors import InvalidEnvelope
from . import message as _message

#: Octets that are read at a time.
BLOCK = 65536

_CRLF = b"\r\n"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_HIDDEN_END = re.compile(rb"[\r\n]\0+\.")
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the system may have again
_QUOTED = 40  # octets of a bad line that an error shows


@dataclass(frozen=True)
class FileContent:
    """Content that stays in its file: what to read, how it was found, and nothing that grows with it.

    Two are equal if they are of one file in one state. `len()` is in octets, CRLF-normalised and not stuffed, which is
    the SIZE of RFC 1870.

    Attributes:
        path: of the file, absolute.
        state: device, inode, size and time (ns) of the file that was read.
        head: what stands for the first `start` octets of the file: a header out of which Bcc was taken.
        octets: how many there are in all blocks.
        eight_bit: whether one of them is beyond ASCII.
        checksum: of the octets of the file from `start`.
    """

    path: str
    state: tuple[int, int, int, int]
    head: bytes = field(repr=False)
    start: int = field(repr=False)
    octets: int
    eight_bit: bool
    checksum: int = field(repr=False)

    def __len__(self) -> int:
        return self.octets

    def isascii(self) -> bool:
        return not self.eight_bit

    def require_unchanged(self) -> None:
        """Look at the file, without reading it.

        Raises:
            InvalidEnvelope: it is not the one that was read; permanent, unless the system lacks something just now.
        """
        try:
            with _opened(self.path) as file:
                self._require(_state(file) == self.state)
        except OSError as exc:
            if is_of_a_handler(exc):
                raise
            raise self._unreadable(exc) from exc

    def blocks(self, size: int = BLOCK) -> Generator[bytes, None, None]:
        """The content in blocks of about `size` octets, none of which ends between CR and LF.

        The file is open until the last block comes, or the iterator is closed.

        Raises:
            InvalidEnvelope: instead of the last block, as `require_unchanged`.
        """
        try:
            with _opened(self.path) as file:
                self._require(_state(file) == self.state)
                file.seek(self.start)
                checksum, left, held = 0, self.state[2] - self.start, self.head
                for raw in _raw_blocks(file, size):
                    left -= len(raw)
                    self._require(left >= 0)  # it may grow faster than it can be sent
                    checksum = binascii.crc32(raw, checksum)
                    if held:
                        yield held
                    held = _message.with_crlf(raw)
                self._require(_state(file) == self.state and checksum == self.checksum)
        except OSError as exc:
            if is_of_a_handler(exc):
                raise
            raise self._unreadable(exc) from exc
        if held:
            yield held

    def _require(self, unchanged: bool) -> None:
        if not unchanged:
            raise InvalidEnvelope(f"content: {self.path} has changed since the envelope was made")

    def _unreadable(self, exc: OSError) -> InvalidEnvelope:
        problem = f"content: {self.path} cannot be read: {exc.strerror or exc}"
        return InvalidEnvelope(problem, transient=exc.errno in _EXHAUSTED)


def read_file(path: str | os.PathLike[str], *, strict: bool, size: int = BLOCK) -> tuple[FileContent, bytes]:
    """Read a message once, in blocks.

    Returns:
        Its content, a leading mbox line (`From `) and Bcc fields taken out; and its header, which still has the latter.
    Raises:
        OSError: the file cannot be read.
        InvalidEnvelope: what `_message` says of the same bytes, or the file changed meanwhile.
    """
    path = os.path.abspath(os.fsdecode(path))
    with _opened(path) as file:
        state = _state(file)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidEnvelope(f"content: {path} is no regular file, which could be read again when it is sent")
        raw = _raw_blocks(file, size)
        lines = _Lines()
        top = _top(raw)
        lines.take(top)
        normal = _message.with_crlf(top)
        begin, end = _header_span(normal)
        header = normal[begin:end]
        head, start = _message.without_bcc(header), _raw_length(top, normal, end)
        if begin == 0 and head == header:
            head, start, end = b"", 0, 0
        below = top[start:]
        seven_bit, checksum = head.isascii() and below.isascii(), binascii.crc32(below)
        for block in raw:
            lines.take(block)
            seven_bit = seven_bit and block.isascii()
            checksum = binascii.crc32(block, checksum)
        if _state(file) != state or lines.octets != state[2]:
            raise InvalidEnvelope(f"content: {path} changed while it was read")
    lines.require_sound(top, strict=strict)
    _message.require_message(normal[begin:])
    octets = len(head) + lines.octets + lines.added - end
    return FileContent(path, state, head, start, octets, not seven_bit, checksum), header


class _Lines:
    """What `_message.normalise_line_ends` asks of a content, asked block by block."""

    def __init__(self) -> None:
        self.octets = 0
        self.added = 0  # by giving each line a CRLF
        self._feeds = 0
        self._lone_return = False
        self._bare: tuple[str, int] | None = None  # the first bare line end, and its line
        self._hidden_in: int | None = None
        self._behind = b"\n"  # a line end, and a NUL for any number of them, if nothing else stands before the block

    def take(self, block: bytes) -> None:
        """Look at the next block, which does not end between CR and LF."""
        if self._hidden_in is None:
            self._look_for_hidden_end(block)
        pairs, feeds, returns = block.count(_CRLF), block.count(b"\n"), block.count(b"\r")
        if not returns == pairs == feeds:
            if self._bare is None:
                found = _message.BARE_END.search(block)
                assert found is not None
                name = "CR" if found[0] == b"\r" else "LF"
                self._bare = name, self._line(block, found.start())
            self.added += returns + feeds - 2 * pairs
            self._lone_return = self._lone_return or returns > pairs
        self._feeds += feeds
        self.octets += len(block)

    def _look_for_hidden_end(self, block: bytes) -> None:
        before = self._behind if block.startswith((b"\0", b".")) else b""
        run = before + block
        if b"\n\0" in run or b"\r\0" in run:
            found = _HIDDEN_END.search(run)
            if found is not None:
                self._hidden_in = self._line(block, found.end() - len(before))
        if run.endswith((b"\n", b"\r", b"\0")):
            rest = run.rstrip(b"\0")
            nul = b"\0" if len(rest) < len(run) else b""
            self._behind = b"\n" + nul if rest.endswith((b"\n", b"\r")) else b""
        elif block:
            self._behind = b""

    def _line(self, block: bytes, position: int) -> int:
        return self._feeds + block.count(b"\n", 0, position) + 1

    def require_sound(self, top: bytes, *, strict: bool) -> None:
        """Raise what `_message.normalise_line_ends` raises. `top` holds the header, and more."""
        if self._hidden_in is not None:
            raise InvalidEnvelope(f"content: NUL in front of a dot in line {self._hidden_in}")
        if strict and self._bare is not None:
            raise InvalidEnvelope(f"content: bare {self._bare[0]} in line {self._bare[1]}")
        if self._feeds and self._lone_return:
            _message.refuse_hidden_field(top)


def _top(raw: Iterator[bytes]) -> bytes:
    """The blocks up to the end of the header. Asks at doubling lengths, for the header may be all there is."""
    top = next(raw, b"")
    taken = 1
    while not _holds_header(_message.with_crlf(top)):
        more = b"".join(islice(raw, taken))
        if not more:
            break
        top += more
        taken *= 2
    return top


def _holds_header(normal: bytes) -> bool:
    """Whether what follows cannot change what the header is, nor what an error would say of it."""
    begin, end = _header_span(normal)
    return len(normal) - end >= _QUOTED and normal.find(_CRLF, end) >= 0 and not normal[begin:].isspace()


def _header_span(normal: bytes) -> tuple[int, int]:
    """Where the header begins, behind an mbox line, and ends."""
    begin = 0
    if _message.MBOX_LINE.match(normal):
        begin = len(b"".join(normal.partition(_CRLF)[:2]))
    return begin, begin + _message.header_length(normal[begin:])


def _raw_length(raw: bytes, normal: bytes, end: int) -> int:
    """How long is in `raw` what is `end` octets, of whole lines, in `normal`."""
    if end == len(normal):
        return len(raw)
    count = normal.count(_CRLF, 0, end)
    return next(islice(_LINE_END.finditer(raw), count - 1, None)).end() if count else 0


def _raw_blocks(file: io.FileIO, size: int) -> Iterator[bytes]:
    """What is left of a file, in blocks of which none ends between CR and LF."""
    held = b""
    while data := file.read(size):
        block = held + data
        held = b"\r" if block.endswith(b"\r") else b""
        if held:
            block = block[:-1]
        if block:
            yield block
    if held:
        yield held


def _opened(path: str) -> io.FileIO:
    return io.FileIO(path, opener=_without_waiting)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO that has taken the place of a file


def _state(file: io.FileIO) -> tuple[int, int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
