"""Envelopes whose content stays in its file: like any other envelope, sent as the file was, or not at all."""

from __future__ import annotations

import binascii
import copy
import io
import json
import os
import pickle
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from threadmail import Client, Envelope, InvalidEnvelope, MailError, NotSupported, Outcome, Phase, ThreadedSender
from threadmail._message import file as file_module
from threadmail._message.content import BLOCK, stuffed
from threadmail._protocol.transaction import Transaction
from threadmail.testing import CaptureServer, ScriptedServer, Serve, Stall, answer, ehlo, greeting

TO = "bob@example.net"
HEAD = b"From: ann@example.org\r\nTo: bob@example.net\r\nBcc: cy@example.net\r\nMessage-ID: <1@example.org>\r\n"
BODY = b"a line of the body, and then\r\n.one with a dot\r\n" * 5_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A message of a quarter of a MiB."""
    file = tmp_path / "large.eml"
    file.write_bytes(HEAD + b"\r\n" + BODY)
    return file


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"body", b"soul"))


# ---------------------------------------------------------------- it is an envelope


def test_it_is_the_envelope_of_its_bytes(path: Path) -> None:
    """Addresses, Message-ID, size and content; Bcc is read and taken out; nothing large is held."""
    of_file, of_bytes = Envelope.from_file(path), Envelope.from_bytes(path.read_bytes())
    assert not isinstance(of_file.source, bytes)
    for name in ("sender", "recipients", "message_id", "smtputf8", "eight_bit", "size", "content"):
        assert getattr(of_file, name) == getattr(of_bytes, name)
    assert of_file.recipients == (TO, "cy@example.net")
    assert b"Bcc" not in of_file.content
    assert len(pickle.dumps(of_file)) < 2_000


def test_given_addresses_stand_before_the_header(path: Path) -> None:
    """As with `from_bytes`; and the path may be a string."""
    e = Envelope.from_file(str(path), "list@example.org", ["dee@example.net", "dee@example.net"])
    assert (e.sender, e.recipients) == ("list@example.org", ("dee@example.net",))


def test_strict_refuses_a_bare_line_end_anywhere(path: Path) -> None:
    """The last line of many is named."""
    lines = path.read_bytes().count(b"\n")
    with path.open("ab") as file:
        file.write(b"bare\n")
    with pytest.raises(InvalidEnvelope, match=f"bare LF in line {lines + 1}$"):
        Envelope.from_file(path, strict=True)
    assert Envelope.from_file(path).content.endswith(b"bare\r\n")


def test_a_small_file_is_kept(tmp_path: Path) -> None:
    """One block or less: nothing is read again, so the file may go."""
    path = tmp_path / "small.eml"
    path.write_bytes(b"From: a@x.test\r\nTo: b@x.test\r\n\r\n".ljust(BLOCK, b"x"))
    e = Envelope.from_file(path)
    path.unlink()
    assert isinstance(e.source, bytes)
    assert e.size == BLOCK


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_what_comes_out_of_a_pipe_is_kept(tmp_path: Path) -> None:
    """It can be read but once."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = HEAD + b"\r\n" + BODY
    writer = threading.Thread(target=path.write_bytes, args=[data], name="writer of a pipe")
    writer.start()
    e = Envelope.from_file(path)
    writer.join(10.0)
    assert e == Envelope.from_bytes(data)


@pytest.mark.parametrize(("name", "kind"), [("none.eml", FileNotFoundError), (".", IsADirectoryError)])
def test_a_file_that_cannot_be_read_is_the_systems_own_error(tmp_path: Path, name: str, kind: type[OSError]) -> None:
    """When the envelope is made; later, it is an error of the message's."""
    with pytest.raises(kind):
        Envelope.from_file(tmp_path / name)


def test_what_is_no_message_is_refused(tmp_path: Path) -> None:
    """In the words of `from_bytes`."""
    path = tmp_path / "picture.eml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * BLOCK)
    with pytest.raises(InvalidEnvelope, match="this is no message: line 1 is no header field"):
        Envelope.from_file(path)


def test_equal_hashed_copied_and_pickled(path: Path, tmp_path: Path) -> None:
    """One file in one state is one content; another file is another, though it has the same octets."""
    one, same = Envelope.from_file(path), Envelope.from_file(path)
    assert one == same
    assert hash(one) == hash(same)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == copy.copy(one) == one
    other = tmp_path / "other.eml"
    other.write_bytes(path.read_bytes())
    assert Envelope.from_file(other) != one
    edit(path)
    assert Envelope.from_file(path) != one
    assert "body" not in repr(one)
    assert "large.eml" not in repr(one)
    with pytest.raises(AttributeError):
        one.source = b""  # type: ignore[misc]


def test_other_recipients_share_the_file(path: Path) -> None:
    """Nothing is read or held for them."""
    e = Envelope.from_file(path)
    assert e.for_recipients("dee@example.net").source is e.source


def test_it_survives_json_as_bytes(path: Path) -> None:
    """What is written down must not depend on a file."""
    e = Envelope.from_file(path)
    back = Envelope.from_dict(json.loads(json.dumps(e.to_dict())))
    path.unlink()
    assert (back.sender, back.recipients, back.content) == (e.sender, e.recipients, HEAD_SENT + b"\r\n" + BODY)


HEAD_SENT = HEAD.replace(b"Bcc: cy@example.net\r\n", b"")


def test_the_path_outlives_a_change_of_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon goes to `/`."""
    monkeypatch.chdir(path.parent)
    e = Envelope.from_file(path.name)
    monkeypatch.chdir("/")
    assert e.content.endswith(BODY)


# ---------------------------------------------------------------- sent


def test_it_arrives_through_every_door(path: Path) -> None:
    """One client, and a sender of four threads: octet for octet, from one file."""
    e = Envelope.from_file(path)
    with CaptureServer() as server:
        with Client(server.url) as client:
            assert client.send(e).outcome is Outcome.SENT
        with ThreadedSender(server.url, workers=4) as sender:
            sender.send_all([e.for_recipients(f"to-{i}@example.net") for i in range(8)]).raise_for_failures()
        assert [m.content for m in server.messages] == [HEAD_SENT + b"\r\n" + BODY] * 9


def test_its_size_is_announced_without_reading_it(path: Path) -> None:
    """And a server that takes less is not even asked."""
    e = Envelope.from_file(path, recipients=TO)
    size = len(HEAD_SENT + b"\r\n" + BODY)
    with ScriptedServer([Serve(extensions=(f"SIZE {size}",))], [Serve(extensions=(f"SIZE {size - 1}",))]) as server:
        with Client(server.url) as client:
            client.send(e)
        with Client(server.url) as client, pytest.raises(MailError, match=f"{size} octets and the server takes"):
            client.send(e)
        assert [line for line in server.received[0] if f"size={size}" in line]
        assert len(server.messages) == 1


def test_a_server_without_8bitmime_gets_it_recoded(tmp_path: Path) -> None:
    """For that it is read as a whole; what cannot be recoded is refused as ever."""
    path = tmp_path / "utf8.eml"
    mime = b"From: a@x.test\r\nTo: b@x.test\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    path.write_bytes(mime + b"Content-Transfer-Encoding: 8bit\r\n\r\n" + "Grüße\r\n".encode() * 10_000)
    e = Envelope.from_file(path)
    assert e.eight_bit
    with ScriptedServer([Serve(extensions=())]) as server, Client(server.url) as client:
        assert client.send(e).outcome is Outcome.SENT
        assert server.messages[0].content.isascii()
        path.write_bytes(b"DKIM-Signature: x\r\n" + path.read_bytes())
        with pytest.raises(NotSupported, match="signed"):
            client.send(Envelope.from_file(path))


# ---------------------------------------------------------------- a file that changes


@pytest.mark.parametrize("change", [edit, Path.unlink], ids=["edited", "deleted"])
def test_a_file_that_changed_is_not_even_announced(path: Path, change: Callable[[Path], None]) -> None:
    """Permanent and NOT_SENT, nothing written; the connection and the other messages are none the worse."""
    gone, fine = Envelope.from_file(path), Envelope.from_bytes(HEAD + b"\r\nfine\r\n")
    change(path)
    with CaptureServer() as server:
        with Client(server.url) as client:
            with pytest.raises(InvalidEnvelope, match=re.escape("large.eml")) as info:
                client.send(gone)
            assert client.is_connected
            assert client.send(fine).outcome is Outcome.SENT
        assert (info.value.transient, info.value.outcome) == (False, Outcome.NOT_SENT)
        assert info.value.receipt is not None
        assert (info.value.receipt.phase, info.value.receipt.message_id) == (Phase.MAIL, "<1@example.org>")
        with ThreadedSender(server.url, workers=2) as sender:
            report = sender.send_all([fine, gone, fine])
        assert [r.outcome for r in report] == [Outcome.SENT, Outcome.NOT_SENT, Outcome.SENT]
        assert report[1].attempts <= 1
        assert len(server.messages) == 3


def change_at(block: int, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the file changed when so many of its blocks have been read, once."""
    real = file_module._raw_blocks
    done: list[int] = []

    def meanwhile(file: io.FileIO, size: int) -> Iterator[bytes]:
        for number, data in enumerate(real(file, size)):
            if number == block and not done:
                done.append(number)
                change()
            yield data

    monkeypatch.setattr(file_module, "_raw_blocks", meanwhile)


@pytest.mark.parametrize("change", [edit, lambda p: os.truncate(p, 100_000)], ids=["edited", "truncated"])
@pytest.mark.parametrize("block", [0, 1, 3])
@pytest.mark.parametrize("offers", [["PIPELINING"], []], ids=str)
def test_a_file_that_changes_under_way_never_gets_its_end(
    path: Path, change: Callable[[Path], None], block: int, offers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has seen some of it, and no end of data: hung up on, NOT_SENT, permanent, never tried again."""
    commands = [answer("MAIL", "250 ok"), answer("RCPT", "250 ok"), answer("DATA", "354 go")]
    before_final: list[Transaction] = []
    with ScriptedServer([greeting(), ehlo(*offers), *commands, Stall()]) as server:
        e = Envelope.from_file(path, recipients=TO)
        change_at(block, lambda: change(path), monkeypatch)
        with Client(server.url) as client:
            with pytest.raises(InvalidEnvelope, match="has changed since") as info:
                client.transmit(e, before_final=before_final.append)
            assert not client.is_connected
        server.wait_for_connections(0)
        received = b"".join(t.data for t in server.transcript if t.direction == "received")
    assert (info.value.transient, info.value.outcome, info.value.phase) == (False, Outcome.NOT_SENT, Phase.CONTENT)
    assert before_final == []
    assert b"\r\n.\r\n" not in received
    assert len(server.received) == 1


def test_a_file_that_changes_costs_those_behind_it_a_connection_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rode with it goes out all the same, once."""
    fine = [Envelope.from_bytes(HEAD + b"\r\n%d\r\n" % i, recipients=TO) for i in range(4)]
    large = Envelope.from_file(path, recipients=TO)
    change_at(2, lambda: edit(path), monkeypatch)
    with ScriptedServer([Serve(extensions=("PIPELINING",))], last="repeat") as server:
        with ThreadedSender(server.url, workers=1) as sender:
            report = sender.send_all([*fine[:2], large, *fine[2:]])
        assert [r.outcome for r in report] == [Outcome.SENT] * 2 + [Outcome.NOT_SENT] + [Outcome.SENT] * 2
        assert isinstance(report[2].error, InvalidEnvelope)
        assert [m.content for m in server.messages] == [e.content for e in fine]


# ---------------------------------------------------------------- memory


class Drain:
    """A server that keeps nothing but a checksum: it allocates one buffer for each connection.

    All connections meet behind their DATA, so that the contents are under way at the same time.
    """

    def __init__(self, connections: int) -> None:
        self.checksums: list[int] = []
        self._meeting = threading.Barrier(connections)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=connections)
        self.url = f"smtp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve, name=f"drain {i}") for i in range(connections)]

    @contextmanager
    def running(self) -> Iterator[Drain]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._meeting.abort()
            self._listener.close()
            for thread in self._threads:
                thread.join(10.0)

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.settimeout(30.0)
        with closing(sock), sock.makefile("rb", buffering=0) as lines:
            sock.sendall(b"220 drain\r\n")
            while line := lines.readline().upper():
                if line.startswith(b"EHLO"):
                    sock.sendall(b"250-drain\r\n250 SIZE\r\n")
                elif line.startswith(b"DATA"):
                    self._meeting.wait(30.0)
                    sock.sendall(b"354 go\r\n")
                    self.checksums.append(self._take(sock))
                    sock.sendall(b"250 ok\r\n")
                else:
                    sock.sendall(b"221 bye\r\n" if line.startswith(b"QUIT") else b"250 ok\r\n")

    def _take(self, sock: socket.socket) -> int:
        checksum, end, buffer = 0, b"", memoryview(bytearray(4 * BLOCK))
        while not end.endswith(b"\r\n.\r\n"):
            count = sock.recv_into(buffer)
            assert count, "the client hung up"
            checksum = binascii.crc32(buffer[:count], checksum)
            end = (end + bytes(buffer[max(0, count - 5) : count]))[-5:]
        return checksum


@pytest.mark.parametrize("dots", [False, True])
def test_eight_connections_hold_one_content_and_a_file_none(tmp_path: Path, dots: bool) -> None:
    """5 MiB to eight servers at once: what is held beside the caller's own bytes are some blocks; dots change nothing.

    A stuffed copy for each connection would be 40 MiB.
    """
    line = (b"." if dots else b"x") + b"7bit" * 17 + b"\r\n"
    data = HEAD + b"\r\n" + line * (5 * 2**20 // len(line))
    path = tmp_path / "5MiB.eml"
    path.write_bytes(data)
    wanted = binascii.crc32(stuffed(Envelope.from_bytes(data).content))
    of_bytes = data.replace(b"Bcc: cy@example.net\r\n", b"", 1)
    del data
    makers: list[Callable[[], Envelope]] = [lambda: Envelope.from_bytes(of_bytes), lambda: Envelope.from_file(path)]
    for make in makers:
        with Drain(8).running() as server:
            tracemalloc.start()
            try:
                e = make()
                with ThreadedSender(server.url, workers=8) as sender:
                    sender.send_all([e.for_recipients(f"to-{i}@example.net") for i in range(8)]).raise_for_failures()
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert server.checksums == [wanted] * 8
        assert peak < 6 * 2**20
