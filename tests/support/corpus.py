"""The stored messages, and what must become of each.

Owns the reading of ``tests/data`` and the definition of the wire form, written down here a second time on
purpose: by lines and by hand, without the email package and without the code under test, so that the two can
disagree. Leaves the list of files, and what each is there for, to ``tests/data/README.md``.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DATA = Path(__file__).resolve().parents[1] / "data"
MESSAGES = DATA / "messages"
BAD = DATA / "bad"
MBOX = DATA / "sample.mbox"

IN_MBOX = (
    "gmail-alternative.eml",
    "cron.eml",
    "body-utf8.eml",
    "bcc-only.eml",
    "group-undisclosed.eml",
    "django-error.eml",
)
"""The messages in `MBOX`, in its order."""


@dataclass(frozen=True)
class Sample:
    """One stored message: its name, its bytes, and the envelope written down for it by hand."""

    name: str
    data: bytes
    sender: str
    recipients: tuple[str, ...]

    @property
    def wire(self) -> bytes:
        """What a server must receive between DATA and the final dot, its dot-stuffing taken off."""
        return wire_form(self.data)


class Arrived(Protocol):
    """A message as some server took it in."""

    @property
    def sender(self) -> str: ...
    @property
    def recipients(self) -> tuple[str, ...]: ...
    @property
    def content(self) -> bytes: ...


def samples() -> list[Sample]:
    """All messages that can be sent, by name. Fails if the folder and the envelopes disagree."""
    envelopes = json.loads((DATA / "envelopes.json").read_text(encoding="utf-8"))
    names = sorted(path.name for path in MESSAGES.glob("*.eml"))
    if names != sorted(envelopes):
        raise ValueError(f"envelopes.json and messages/ differ: {sorted(set(names) ^ set(envelopes))}")
    return [
        Sample(name, (MESSAGES / name).read_bytes(), envelopes[name]["sender"], tuple(envelopes[name]["recipients"]))
        for name in names
    ]


def bad_files() -> list[Path]:
    """All files that cannot be sent, by name."""
    return sorted(BAD.glob("*.eml"))


def wire_form(data: bytes) -> bytes:
    """The form in which a message must arrive: CRLF everywhere, no blind recipients, no mbox line, CRLF at the end."""
    lines = lines_of(data)
    if lines and lines[0].startswith(b"From "):
        del lines[0]
    kept: list[bytes] = []
    in_header, in_bcc = True, False
    for line in lines:
        if line == b"":
            in_header = False
        if in_header:
            if line[:1] not in (b" ", b"\t"):
                in_bcc = line.partition(b":")[0].rstrip(b" \t").lower() in (b"bcc", b"resent-bcc")
            if in_bcc:
                continue
        kept.append(line)
    return b"".join(line + b"\r\n" for line in kept)


def lines_of(data: bytes) -> list[bytes]:
    """Split at CRLF, CR and LF, and at nothing else (bytes.splitlines agrees, str.splitlines would not)."""
    lines, start, at = [], 0, 0
    while at < len(data):
        if data[at] in b"\r\n":
            lines.append(data[start:at])
            at += 2 if data[at : at + 2] == b"\r\n" else 1
            start = at
        else:
            at += 1
    if start < len(data):
        lines.append(data[start:])
    return lines


def differences(expected: Iterable[Sample], arrived: Iterable[Arrived]) -> list[str]:
    """What is wrong with a delivery: each sample must have arrived once, with its envelope, byte for byte.

    The order of messages and of recipients does not count. An empty list says that nothing is wrong.
    """
    left = list(arrived)
    wrong, missing = [], []
    for sample in expected:
        found = next((message for message in left if message.content == sample.wire), None)
        if found is None:
            missing.append(sample)
            continue
        left.remove(found)
        if (found.sender, sorted(found.recipients)) != (sample.sender, sorted(sample.recipients)):
            wrong.append(f"{sample.name}: envelope {found.sender!r} to {found.recipients!r}")
    for sample in missing:
        # The message meant is most likely the one that begins most like it.
        closest = max(left, key=lambda message: _common(message.content, sample.wire), default=None)
        if closest is None:
            wrong.append(f"{sample.name}: did not arrive")
            continue
        left.remove(closest)
        at = _common(closest.content, sample.wire)
        context = slice(max(0, at - 20), at + 40)
        wrong.append(f"{sample.name}: at byte {at} {closest.content[context]!r} instead of {sample.wire[context]!r}")
    return wrong + [f"nobody sent {message.content[:200]!r}" for message in left]


def _common(one: bytes, other: bytes) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def large_sample(size: int = 300_000) -> Sample:
    """A message with an attachment of `size` random bytes, the same on every run, that is stored nowhere."""
    sender, recipient = "sender@example.com", "rcpt@example.org"
    attachment = base64.encodebytes(random.Random(size).randbytes(size)).decode("ascii")
    text = (
        f"From: {sender}\nTo: {recipient}\nSubject: A large attachment\nMIME-Version: 1.0\n"
        "Date: Fri, 15 Mar 2024 12:00:00 +0000\nMessage-ID: <large@example.com>\n"
        'Content-Type: multipart/mixed; boundary="=-large"\n\n'
        "--=-large\nContent-Type: text/plain\n\nSee attached.\n\n"
        "--=-large\nContent-Type: application/octet-stream; name=random.bin\n"
        f"Content-Transfer-Encoding: base64\n\n{attachment}\n--=-large--\n"
    )
    return Sample("large.eml", text.encode("ascii"), sender, (recipient,))
