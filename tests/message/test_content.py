"""Content in blocks: whatever their size, they come to what one piece would have been, and nothing is copied for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import corpus
from threadmail import Envelope, InvalidEnvelope, MailError
from threadmail._message import file as file_module
from threadmail._message.content import BLOCK, SMALL, Content, blocks, stuffed, stuffed_blocks
from threadmail._message.file import FileContent, read_file
from threadmail._message.message import header_fields, normalise_line_ends

#: What makes a difference at the border of a block, in any order.
SYLLABLES = [b"\r", b"\n", b"\r\n", b".", b"..", b"\0", b"a", b"\xff", b" ", b"\t", b":", b"From ", b"\r\n.", b"x" * 45]
FIELDS = [
    b"From: a@x.test",
    b"To: b@x.test,\r\n c@x.test",
    b"Bcc: d@x.test",
    b"Message-ID:\n <1@x>",
    b"Subject: \xff",
    b"To: b@x.test",
]
FILLER = b"What stands behind the header is looked at with it.\r\n"  # and what stands behind this is not
HEAD = b"From: a@x.test\r\nTo: b@x.test\r\n\r\n"

PATIENT = settings(deadline=None)  # the machine may be busy

soups = st.lists(st.sampled_from(SYLLABLES), max_size=24).map(b"".join)
headers = st.lists(st.sampled_from(FIELDS), max_size=6).flatmap(
    lambda fields: st.sampled_from([b"\r\n", b"\n", b"\r"]).map(lambda end: b"".join(f + end for f in fields))
)
mbox_lines = st.sampled_from([b"", b"", b"From x y\n", b"From \r\n"])
fillers = st.sampled_from([b"", b"\n" + FILLER, b"\r\n" + FILLER])
messages = st.tuples(mbox_lines, headers, fillers, soups).map(b"".join)
sizes = st.integers(1, 9) | st.sampled_from([16, 50, 1000])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("content") / "message.eml"


def in_file(path: Path, data: bytes, size: int = BLOCK, *, strict: bool = False) -> tuple[FileContent, bytes]:
    path.write_bytes(data)
    return read_file(path, strict=strict, size=size)


def joined(pieces: Iterator[bytes | memoryview]) -> bytes:
    return b"".join(pieces)


def crlf(data: bytes) -> bytes:
    return b"\r\n".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))


# ---------------------------------------------------------------- borders


@PATIENT
@given(soups.map(crlf), sizes)
def test_bytes_in_pieces_are_what_one_piece_is(content: bytes, size: int) -> None:
    """Dots at line starts, CR and LF on both sides of a border, no final line end, nothing at all."""
    pieces = list(stuffed_blocks(content, size))
    assert joined(iter(pieces)) == stuffed(content)
    assert isinstance(pieces[-1], bytes)
    assert len(pieces[-1]) <= size or len(pieces) == 1
    assert joined(blocks(content, size)) == content
    for block in blocks(content, size):
        assert len(block) <= size + 1
        assert not (bytes(block).endswith(b"\r") and block is not content)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize(
    "raw", [b"\r\n.\r\n..\r\n.z\r\n", b"a\n.\n", b".\r.\r", b"\r\n", b".", b"x\r\n\r\n.", b"\n\r\n\r."]
)
def test_a_file_in_pieces_is_what_one_piece_is(path: Path, raw: bytes, size: int) -> None:
    """Each border falls everywhere: with CR, LF or CRLF as they stood in the file."""
    for padding in range(size):
        data = HEAD + b"y" * padding + raw
        content, header = in_file(path, data, size)
        wanted = normalise_line_ends(data, strict=False)
        assert joined(content.blocks(size)) == wanted
        assert joined(stuffed_blocks(content, size)) == stuffed(wanted)
        assert (len(content), header) == (len(wanted), HEAD[:-2])


@PATIENT
@given(st.lists(st.sampled_from([b"\r\n.", b".", b"\r\n", b"x", b"\r\n..", b"x" * 999]), max_size=40).map(b"".join))
def test_small_content_is_one_block_however_it_is_stuffed(content: bytes) -> None:
    """So that it can leave in one write with its end, without a look at the pieces."""
    assert len(stuffed(content)) <= len(content) * 4 // 3 + 8
    assert SMALL * 4 // 3 + 8 <= BLOCK


# ---------------------------------------------------------------- a file is what its bytes are


def outcome_of_bytes(data: bytes, strict: bool, *addresses: str) -> tuple[object, ...]:
    try:
        made = Envelope.from_bytes(data, *addresses, strict=strict)
    except MailError as error:
        return type(error), str(error)
    return made.sender, made.recipients, made.message_id, made.smtputf8, made.eight_bit, made.size, made.content


def outcome_of_file(path: Path, data: bytes, size: int, strict: bool, *addresses: str) -> tuple[object, ...]:
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threadmail.envelope.BLOCK", -1)
        patch.setattr("threadmail.envelope.read_file", lambda p, strict: read_file(p, strict=strict, size=size))
        try:
            made = Envelope.from_file(path, *addresses, strict=strict)
        except MailError as error:
            return type(error), str(error)
    assert isinstance(made.source, FileContent)
    content = joined(blocks(made.source, size))
    assert content == made.content
    assert joined(stuffed_blocks(made.source, size)) == stuffed(content)
    return made.sender, made.recipients, made.message_id, made.smtputf8, made.eight_bit, made.size, content


@PATIENT
@given(messages, sizes, st.sampled_from([(False,), (False, "a@x.test", "b@x.test"), (True,)]))
def test_a_file_makes_the_envelope_that_its_bytes_make(path: Path, data: bytes, size: int, how: Any) -> None:
    """The same addresses, flags and octets, or the same error in the same words, with borders anywhere."""
    assert outcome_of_file(path, data, size, *how) == outcome_of_bytes(data, *how)


SAMPLES = [
    *[(sample.name, sample.data) for sample in [*corpus.samples(), corpus.large_sample()]],
    *[(bad.name, bad.read_bytes()) for bad in corpus.bad_files()],
    ("sample.mbox", corpus.MBOX.read_bytes()),
]


@pytest.mark.parametrize(("name", "data"), SAMPLES, ids=[name for name, _ in SAMPLES])
def test_real_mail_is_the_same_from_a_file(path: Path, name: str, data: bytes) -> None:
    """What programs in the field wrote, and what is no mail: in blocks of one octet up to the usual ones."""
    for size in (1, 7, 100, 4096, BLOCK) if len(data) < 100_000 else (4095, BLOCK):
        for strict in (False, True):
            assert outcome_of_file(path, data, size, strict) == outcome_of_bytes(data, strict)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"x\r\n" + b"\0" * 9 + b".\r\n",
        HEAD + FILLER + b"\0" * 9 + b".\r\n",
        HEAD + FILLER + b"x\r" + b"\0" * 9 + b".",
        HEAD + FILLER + b"x\n\n\0x.\0.\n\0",
        b"\0\0.\r\n" + HEAD,
        HEAD[:-2] + b"Subject: x\rBcc: eve@x.test\r\n\r\nbody",
        HEAD[:-2].replace(b"\r\n", b"\r") + b"\r" + b"body\r" * 20 + b"\n",
        b"From x\r" + HEAD.replace(b"\r\n", b"\r") + b"one\r\ntwo",
        HEAD[:-2] + b"X: " + b"y" * 300 + b"\r\n z" * 300 + b"\r\n\r\nbody",
        HEAD[:-2] + b"Bcc: d@x.test",
        b"Bcc: d@x.test\nFrom: a@x.test\n\n.\n",
        b"From x\n\nbody",
        b" \r\n" * 50,
        b" \r\n" * 50 + b"x",
        b"",
        b"From ",
        b"From: a@x.test\r\nno field" + b"z" * 100 + b"\r\n\r\n",
        b"From: a@x.test\r\nTo: b@x.test\r\nBcc: \xff@x.test\r\n\r\nbody",
        b"From: a@x.test\r\nTo: b@x.test\r\nX: \xff\r\n\r\nbody",
    ],
)
def test_what_only_shows_across_borders_is_seen(path: Path, data: bytes, size: int) -> None:
    """Hidden ends of data, hidden fields, headers longer than a block, files that are all header or all blank."""
    for strict in (False, True):
        assert outcome_of_file(path, data, size, strict) == outcome_of_bytes(data, strict)


# ---------------------------------------------------------------- nothing is copied


def test_content_without_dots_goes_out_as_itself() -> None:
    """One view of all but the end, which alone is copied."""
    content = HEAD + b"x" * 75_000 + b"\r\n" + b"a.b\r\n" * 100_000
    first, last = stuffed_blocks(content)
    assert isinstance(first, memoryview)
    assert first.obj is content
    assert isinstance(last, bytes)
    assert len(last) <= BLOCK


def test_only_blocks_with_dots_are_copied() -> None:
    """A dot in the middle of a large content costs a block."""
    content = b"x" * 300_000 + b"\r\n." + b"y" * 300_000
    pieces = list(stuffed_blocks(content))
    assert joined(iter(pieces)) == stuffed(content)
    assert sum(len(piece) for piece in pieces if isinstance(piece, bytes)) <= 2 * BLOCK + 1


def test_many_dots_do_not_make_many_pieces() -> None:
    """Each is a write of its own, so none but the last few is smaller than a block."""
    content = HEAD + b".x\r\n" * 100_000
    pieces = list(stuffed_blocks(content))
    assert joined(iter(pieces)) == stuffed(content)
    assert len(pieces) <= len(content) // BLOCK + 4


def test_ready_bytes_are_taken_as_they_are() -> None:
    """Making an envelope of clean content copies nothing, and its recipients share it."""
    content = HEAD + b"x\r\n" * 1000
    made = Envelope.from_bytes(content)
    assert made.content is content
    assert made.source is content
    assert made.for_recipients("c@x.test").content is content


# ---------------------------------------------------------------- files that change


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\r\n")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def written_anew(path: Path) -> None:
    data = path.read_bytes()
    other = path.with_suffix(".new")
    other.write_bytes(data)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    os.replace(other, path)


def edited_in_secret(path: Path) -> None:
    """The same length and time: what a change within a tick of the clock looks like."""
    time = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"Z")
    os.utime(path, ns=(0, time))


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 1))


def deleted(path: Path) -> None:
    path.unlink()


CHANGES = [grown, cut_short, written_anew, edited_in_secret, touched, deleted]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_before_it_is_sent_never_ends(tmp_path: Path, change: object) -> None:
    """No last block, an error that names the file, and nothing at all where a look at the file is enough."""
    assert callable(change)
    path = tmp_path / "message.eml"
    content, _ = in_file(path, HEAD + b"x" * 1000 + b"\r\n", 100)
    change(path)
    read: list[object] = []
    with pytest.raises(InvalidEnvelope, match=r"content: .*message\.eml") as info:
        read.extend(stuffed_blocks(content, 100))
    assert not info.value.transient
    if change is edited_in_secret:
        content.require_unchanged()
    else:
        assert read == []
        with pytest.raises(InvalidEnvelope, match=r"message\.eml"):
            content.require_unchanged()


@pytest.mark.parametrize("at", [1, 5, 8])
@pytest.mark.parametrize("change", [grown, cut_short, edited_in_secret, touched])
def test_a_file_that_changes_while_it_is_sent_never_ends(tmp_path: Path, change: object, at: int) -> None:
    """The end of data does not come, at whichever block it happens."""
    assert callable(change)
    path = tmp_path / "message.eml"
    content, _ = in_file(path, HEAD + b"x" * 1000 + b"\r\n", 100)
    with closing(stuffed_blocks(content, 100)) as pieces:
        read = list(itertools.islice(pieces, at))
        change(path)
        with pytest.raises(InvalidEnvelope, match="has changed"):
            read.extend(pieces)
    assert len(joined(iter(read))) <= 1000


def test_a_file_that_grows_faster_than_it_is_sent_is_left(tmp_path: Path) -> None:
    """A log that is still written to has no end."""
    path = tmp_path / "message.eml"
    content, _ = in_file(path, HEAD + b"x" * 1000, 100)

    def chase() -> None:
        for _ in content.blocks(100):
            with path.open("ab") as file:
                file.write(b"y" * 200)

    with pytest.raises(InvalidEnvelope, match="has changed"):
        chase()


def test_a_file_that_changes_while_it_is_read_makes_no_envelope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked must be what was there."""
    path = tmp_path / "message.eml"
    path.write_bytes(HEAD + b"x" * 1000)
    real = file_module._top

    def meanwhile(raw: Iterator[bytes]) -> bytes:
        grown(path)
        return real(raw)

    monkeypatch.setattr(file_module, "_top", meanwhile)
    with pytest.raises(InvalidEnvelope, match="changed while it was read"):
        read_file(path, strict=False, size=100)


def test_a_system_out_of_descriptors_may_have_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transient, unlike a file that has gone."""
    content, _ = in_file(tmp_path / "message.eml", HEAD + b"x" * 1000)

    def none_left(path: str) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(file_module, "_opened", none_left)
    for act in (content.require_unchanged, lambda: joined(blocks(content))):
        with pytest.raises(InvalidEnvelope, match="Too many open files") as info:
            act()
        assert info.value.transient


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_a_fifo_in_place_of_the_file_makes_nobody_wait(tmp_path: Path) -> None:
    """To open one waits for a writer, for ever."""
    path = tmp_path / "message.eml"
    content, _ = in_file(path, HEAD + b"x" * 1000)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidEnvelope, match="has changed"):
        joined(blocks(content))
    with pytest.raises(InvalidEnvelope, match="no regular file"):
        read_file(path, strict=False)


def test_the_file_is_closed_when_the_pieces_are(tmp_path: Path) -> None:
    """Whether they were all taken or not; a descriptor left open would be a warning, which is an error."""
    content: Content
    content, header = in_file(tmp_path / "message.eml", HEAD + b"x" * 1000)
    assert dict(header_fields(header)) == {"From": "a@x.test", "To": "b@x.test"}
    pieces = stuffed_blocks(content, 100)
    next(pieces)
    before = open_files(tmp_path)
    pieces.close()
    assert (before, open_files(tmp_path)) in [(1, 0), (0, 0)]
    joined(stuffed_blocks(content, 100))
    assert open_files(tmp_path) == 0


def open_files(folder: Path) -> int:
    """How many descriptors of this process are of files in `folder`; 0 where nobody can tell."""
    found = 0
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found += os.readlink(link).startswith(str(folder))
        except OSError:
            pass
    return found
