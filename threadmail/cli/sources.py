"""Where the messages of `threadmail send` come from.

Owns the way from paths to the bytes of single messages: files, folders, Maildirs, mbox files, standard input.
Guarantees: one message is in memory at a time (of a folder also the names in it), and a large `*.eml` file not at all;
what cannot be read comes out as an item that says so, and the next one follows. Leaves what a message must look like to
`Envelope`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .._message.message import MBOX_LINE

STDIN = "-"
LARGE = 1024 * 1024  # octets; a larger file is read while it is sent, and must not change until then


class Readable(Protocol):
    """What a binary file can do that is needed here."""

    def readline(self) -> bytes: ...
    def read(self) -> bytes: ...


@dataclass(frozen=True)
class Item:
    """A message, as `content` or, where that is large, as the `path` of its file; or why there is none (`problem`)."""

    name: str
    content: bytes = field(default=b"", repr=False)
    problem: str | None = None
    path: str | None = None


def items(paths: Iterable[str], stdin: Readable) -> Iterator[Item]:
    """The messages of `paths` in order: `-` is standard input, folders are searched for `*.eml`, sorted by name.

    What begins with an mbox line (`From ` and no colon) and is not called `*.eml` is an mbox file (RFC 4155). Of a
    Maildir `cur` and `new` are read.
    """
    for path in paths:
        if path == STDIN:
            yield from _content("standard input", stdin, may_be_mbox=True)
            continue
        for file in _files(path):
            if isinstance(file, Item):
                yield file
                continue
            try:
                if _is_eml(file) and os.path.getsize(file) > LARGE:
                    yield Item(file, path=file)
                    continue
                with open(file, "rb") as stream:
                    yield from _content(file, stream, may_be_mbox=not _is_eml(file))
            except OSError as exc:
                yield Item(file, problem=f"cannot be read: {exc.strerror or exc}")


def count(paths: Iterable[str]) -> int | None:
    """How many items there will be; None where only reading them all would tell."""
    total = 0
    for path in paths:
        if path == STDIN or (not os.path.isdir(path) and not _is_eml(path)):
            return None
        total += sum(1 for _ in _files(path))
    return total


# ---------------------------------------------------------------- folders


def _files(path: str) -> Iterator[str | Item]:
    """The files that `path` stands for: itself, or those in it."""
    if not os.path.isdir(path):
        yield path
        return
    empty = True
    for file in _in_folder(path):
        empty = False
        yield file
    if empty:
        yield Item(path, problem="there is no *.eml file in this folder")


def _in_folder(folder: str) -> Iterator[str | Item]:
    if all(os.path.isdir(os.path.join(folder, name)) for name in ("cur", "new", "tmp")):
        yield from _entries(os.path.join(folder, "cur"), everything=True)
        yield from _entries(os.path.join(folder, "new"), everything=True)
    else:
        yield from _entries(folder, everything=False)


def _entries(folder: str, *, everything: bool) -> Iterator[str | Item]:
    try:
        with os.scandir(folder) as entries:
            # Hidden files are none of the user's: a Maildir's own, or what macOS leaves beside each file ("._a.eml").
            found = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries if not e.name.startswith("."))
    except OSError as exc:
        yield Item(folder, problem=f"cannot be read: {exc.strerror or exc}")
        return
    for name, is_folder in found:
        path = os.path.join(folder, name)
        if is_folder:
            yield from _in_folder(path)
        elif everything or _is_eml(name):
            yield path


def _is_eml(path: str) -> bool:
    return path.lower().endswith(".eml")


# ---------------------------------------------------------------- contents


def _content(name: str, stream: Readable, *, may_be_mbox: bool) -> Iterator[Item]:
    first = stream.readline()
    if may_be_mbox and MBOX_LINE.match(first):
        for number, content in enumerate(_mbox(stream), 1):
            yield Item(f"{name}#{number}", content)
    else:
        yield Item(name, first + stream.read())


def _mbox(stream: Readable) -> Iterator[bytes]:
    """The messages of an mbox file whose first line has been read, as `mailbox.mbox` divides it, which reads all first.

    Each mbox line ends a message, an empty line before it belongs to neither. `From : ` is none, which that takes for
    one. Lines that begin with `>From ` stay as they are: whether a body was quoted that way, or written so, the file
    does not tell.
    """
    lines: list[bytes] = []
    while True:
        line = stream.readline()
        if line and not MBOX_LINE.match(line):
            lines.append(line)
            continue
        if lines and lines[-1] in (b"\n", b"\r\n"):
            lines.pop()
        yield b"".join(lines)
        lines.clear()
        if not line:
            return
