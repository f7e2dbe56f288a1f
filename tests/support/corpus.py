"""The stored messages, and what must become of each.

Owns the reading of ``tests/data`` and the definition of the wire form, written down here a second time on
purpose: by lines and by hand, without the email package and without the code under test, so that the two can
disagree. Leaves the list of files, and what each is there for, to ``tests/data/README.md``.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass
from pathlib import Path

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
    def path(self) -> Path:
        """Where it is stored."""
        return MESSAGES / self.name

    @property
    def wire(self) -> bytes:
        """What a server must receive between DATA and the final dot, its dot-stuffing taken off."""
        return wire_form(self.data)


def samples() -> list[Sample]:
    """All messages that can be sent, by name. Fails if the folder and the envelopes disagree."""
    envelopes = json.loads((DATA / "envelopes.json").read_text(encoding="utf-8"))
    names = sorted(path.name for path in MESSAGES.glob("*.eml"))
    if names != sorted(envelopes):
        raise ValueError(f"envelopes.json and messages/ differ: {sorted(set(names) ^ set(envelopes))}")
    return [sample(name, envelopes[name]) for name in names]


def sample(name: str, envelope: dict[str, str | list[str]]) -> Sample:
    """One stored message and its envelope."""
    return Sample(name, (MESSAGES / name).read_bytes(), str(envelope["sender"]), tuple(envelope["recipients"]))


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


def large_sample(size: int = 300_000) -> tuple[bytes, str, str]:
    """A message with an attachment of `size` random bytes, the same on every run; its sender and its recipient."""
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
    return text.encode("ascii"), sender, recipient
