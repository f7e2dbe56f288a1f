"""Content on its way to the wire.

Owns the form in which content leaves: whole where it is small, in blocks where it is not, so that no connection holds a
copy of it. Guarantees: joined, the pieces are what one piece would have been, wherever their borders lie; content in
memory is not copied but where a dot must be doubled. Leaves the reading of files to `_message.file`, and the writing to
`_session.delivery`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TypeAlias

from .file import BLOCK, FileContent

__all__ = ["BLOCK", "SMALL", "Content", "Pieces", "blocks", "stuffed", "stuffed_blocks"]

Content: TypeAlias = "bytes | FileContent"
Pieces: TypeAlias = "Generator[bytes | memoryview, None, None]"

#: Content of no more octets is at most one block when it is stuffed, however many dots it holds, and its end with it.
SMALL = BLOCK * 3 // 4 - 8

_CRLF = b"\r\n"
_DOT = b"\r\n."


def stuffed(content: bytes, behind: bytes = b"") -> bytes:
    """`content` as it goes to the wire: dots doubled at line starts, a line end and the lone dot behind it.

    And `behind` that, what is to leave in the same write; here, for the sake of one copy less.
    RFC 5321 §4.5.2. Looking first is cheaper than replacing: 0.6 ms against 3.9 ms a MiB.
    """
    if _DOT in content:
        content = content.replace(_DOT, b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + ((b".\r\n" if content.endswith(_CRLF) else b"\r\n.\r\n") + behind)


def stuffed_blocks(content: Content, size: int = BLOCK) -> Pieces:
    """What `stuffed` returns, in pieces. The last one is bytes, ends the data, and has at most `size` octets.

    Of bytes only blocks with a dot at the start of a line are copied; what lies between them comes as one view. To be
    closed (`contextlib.closing`) by whoever may not take it all, for a file is open meanwhile.

    Raises:
        InvalidEnvelope: as `blocks`.
    """
    held: bytes | memoryview = b""
    with closing(
        _stuffed_bytes(content, size) if isinstance(content, bytes) else _stuffed_file(content, size)
    ) as pieces:
        for piece in pieces:
            if held:
                yield held
            held = piece
    last = _ended(bytes(held))
    if len(last) > size:
        yield last[:-size]
    yield last[-size:]


def blocks(content: Content, size: int = BLOCK) -> Pieces:
    """`content` in blocks of about `size` octets, `len(content)` in all, none of which ends between CR and LF.

    Nothing is doubled and nothing added: it is what follows BDAT (RFC 3030). Bytes are not copied.

    Raises:
        InvalidEnvelope: instead of the last block of a file that is not what it was, or cannot be read.
    """
    return _slices(content, size) if isinstance(content, bytes) else content.blocks(size)


def _doubled(block: bytes, *, at_line_start: bool) -> bytes:
    if _DOT in block:
        block = block.replace(_DOT, b"\r\n..")
    return b"." + block if at_line_start and block.startswith(b".") else block


def _ended(block: bytes) -> bytes:
    return block + (b".\r\n" if block.endswith(_CRLF) else b"\r\n.\r\n")


def _stuffed_file(content: FileContent, size: int) -> Pieces:
    at_line_start = True
    with closing(content.blocks(size)) as stream:
        for block in stream:
            yield _doubled(block, at_line_start=at_line_start)
            at_line_start = block.endswith(_CRLF)


def _stuffed_bytes(content: bytes, size: int) -> Pieces:
    """The last piece fits into `size` octets with its end, unless dots are doubled; one before it may be long."""
    view = memoryview(content)
    at, last = 0, _border(content, len(content) - max(size - 5, 2))
    while at < last:
        dot = content.find(_DOT, max(0, at - 2), last)
        plain = last if dot < 0 else dot + 2
        if at == 0 and content.startswith(b"."):
            plain = 0
        if plain == last or plain - at >= size:
            yield view[at:plain]
            at = plain
        else:
            end = min(last, _border(content, at + size))
            yield _doubled(content[at:end], at_line_start=_starts_line(content, at))
            at = end
    yield _doubled(content[last:], at_line_start=_starts_line(content, last))


def _slices(content: bytes, size: int) -> Pieces:
    view = memoryview(content)
    at = 0
    while at < len(content):
        end = _border(content, at + size)
        yield view[at:end]
        at = end


def _border(content: bytes, at: int) -> int:
    """`at`, or one octet behind it, where a block may end without parting a CR from its LF."""
    return max(0, at + 1 if content[max(0, at - 1) : at + 1] == _CRLF else at)


def _starts_line(content: bytes, at: int) -> bool:
    return at == 0 or content.startswith(_CRLF, at - 2)
