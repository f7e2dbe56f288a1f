"""Mail that real programs wrote arrives byte for byte, and files that are no mail stop nobody else's.

The messages and their envelopes stand in ``tests/data``; what must become of them is defined in
``tests.support.corpus``, without the email package. ``test_postfix`` sends the same through a real server.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import mailbox
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import corpus
from threadmail import Envelope, InvalidEnvelope
from threadmail.testing import CaptureServer

SAMPLES = corpus.samples()
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Arrival:
    sender: str
    recipients: tuple[str, ...]
    content: bytes


def send(server: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line on a folder of messages; no name is to be cut to fit a terminal."""
    command = [sys.executable, "-m", "threadmail", "send", "--server", server, str(folder)]
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, timeout=60, capture_output=True, text=True, encoding="utf-8", check=False
    )


def outbox(folder: Path) -> list[corpus.Sample]:
    """Put every message that can be sent, and a large one, into `folder`."""
    shutil.copytree(corpus.MESSAGES, folder)
    large = corpus.large_sample()
    (folder / large.name).write_bytes(large.data)
    return [*SAMPLES, large]


@pytest.fixture
def server() -> Iterator[CaptureServer]:
    with CaptureServer() as running:
        yield running


# The assets themselves.


def test_corpus_is_whole() -> None:
    assert len(SAMPLES) >= 36
    listed = set(re.findall(r"^\| `([\w.-]+\.eml)` \|", (corpus.DATA / "README.md").read_text("utf-8"), re.MULTILINE))
    assert listed == {sample.name for sample in SAMPLES} | {path.name for path in corpus.bad_files()}
    assert sum(path.stat().st_size for path in corpus.DATA.rglob("*") if path.is_file()) < 1_000_000


def test_no_address_leads_anywhere() -> None:
    harmless = re.compile(r"(@|\.)(example\.(com|org|net)|test)$|@\[")
    for sample in SAMPLES:
        for address in (sample.sender, *sample.recipients):
            assert harmless.search(address), (sample.name, address)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample.name))
def test_lines_end_where_bytes_say(sample: corpus.Sample) -> None:
    """The corpus' own splitting agrees with the interpreter's for bytes; that for text knows eight more line ends."""
    assert corpus.lines_of(sample.data) == sample.data.splitlines()
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", sample.wire) is None


def test_dkim_body_hash_covers_the_wire_form() -> None:
    """RFC 6376 section 3.4.3: `simple` canonicalisation hashes the very bytes of the body."""
    [sample] = [sample for sample in SAMPLES if sample.name == "dkim-signed.eml"]
    body = sample.wire.partition(b"\r\n\r\n")[2]
    [claimed] = re.findall(rb"\bbh=([^;]+);", sample.wire)
    assert base64.b64decode(claimed) == hashlib.sha256(body).digest()


def test_mbox_holds_the_messages_it_says() -> None:
    box = mailbox.mbox(corpus.MBOX, create=False)
    try:
        stored = [corpus.wire_form(box.get_bytes(key)) for key in box.iterkeys()]
    finally:
        box.close()
    by_name = {sample.name: sample for sample in SAMPLES}
    assert stored == [by_name[name].wire for name in corpus.IN_MBOX]


def test_comparison_sees_every_fault() -> None:
    first, second = SAMPLES[:2]
    good = [Arrival(first.sender, first.recipients, first.wire), Arrival(second.sender, second.recipients, second.wire)]
    assert corpus.differences([first, second], good[::-1]) == []
    for number, arrived in enumerate((
        good[:1],
        [*good, good[0]],
        [good[0], dataclasses.replace(good[1], content=second.wire[:-1])],
        [good[0], dataclasses.replace(good[1], content=second.wire.replace(b"e", b"E", 1))],
        [good[0], dataclasses.replace(good[1], sender=first.sender)],
        [good[0], dataclasses.replace(good[1], recipients=(*second.recipients, "more@example.org"))],
    )):  # fmt: skip
        assert len(corpus.differences([first, second], arrived)) == 1, number


# What threadmail makes of them.


@pytest.mark.parametrize("sample", [*SAMPLES, corpus.large_sample()], ids=lambda sample: str(sample.name))
def test_envelope_keeps_every_byte(sample: corpus.Sample) -> None:
    envelope = Envelope.from_bytes(sample.data)
    assert envelope.sender == sample.sender
    assert sorted(envelope.recipients) == sorted(sample.recipients)
    end = b"" if envelope.content.endswith(b"\r\n") else b"\r\n"
    assert envelope.content + end == sample.wire


@pytest.mark.parametrize("path", corpus.bad_files(), ids=lambda path: str(path.name))
def test_bad_file_makes_no_envelope(path: Path) -> None:
    with pytest.raises(InvalidEnvelope):
        Envelope.from_bytes(path.read_bytes())


def test_given_envelope_wins_over_the_header() -> None:
    """A mailing list's posts go to its subscribers, whatever To says; Bcc stays off the wire all the same."""
    [sample] = [sample for sample in SAMPLES if sample.name == "bcc.eml"]
    envelope = Envelope.from_bytes(sample.data, sender="list@example.net", recipients=["subscriber@example.net"])
    assert (envelope.sender, envelope.recipients) == ("list@example.net", ("subscriber@example.net",))
    assert envelope.content == sample.wire


def test_command_line_delivers_byte_for_byte(server: CaptureServer, tmp_path: Path) -> None:
    expected = outbox(tmp_path / "outbox")
    done = send(server.url, tmp_path / "outbox")
    assert done.returncode == 0, done.stdout + done.stderr
    assert corpus.differences(expected, server.messages) == []


def test_bad_files_are_named_and_stop_no_other(server: CaptureServer, tmp_path: Path) -> None:
    expected = outbox(tmp_path / "outbox")
    for path in corpus.bad_files():
        shutil.copy(path, tmp_path / "outbox")
    done = send(server.url, tmp_path / "outbox")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert [path.name for path in corpus.bad_files() if path.name not in said] == []
    assert "Traceback" not in said
    assert corpus.differences(expected, server.messages) == []
