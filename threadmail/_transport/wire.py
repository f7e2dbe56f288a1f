"""The connection as a dialogue sees it: whole commands out, whole replies in, or closed.

Owns the bytes between a connected socket and SMTP: strict, bounded reading of replies (RFC 5321 §4.2) in a time that
holds however slowly the peer drips, writing in blocks, and the protocol log. Guarantees: whatever ends an
exchange early, from a malformed reply to KeyboardInterrupt, closes the connection, so that no later command can
meet an earlier one's reply. Leaves to others what the replies mean, and locking: its caller holds `sync_root`.
"""

from __future__ import annotations

import logging
import re
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from .._runtime.deadline import NEVER, now
from .._runtime.logs import say
from .._runtime.outside import is_of_a_handler
from ..config import Timeouts
from ..errors import Aborted, BadReply, ConnectionLost, MailError, printable
from ..receipt import Reply
from .socket import TICK, TimedSocket, is_from_outside
from .tls import wrap_tls

protocol_log = logging.getLogger("threadmail.protocol")

# RFC 5321 §4.5.3.1.5 allows 512 octets a line; servers exceed it, smtplib takes 8,192. Without bounds an endless reply
# grew a client by a gigabyte in a second.
MAX_LINE = 8192
MAX_LINES = 256
BLOCK = 65536

#: What TLS makes one record of, at most (RFC 8446 §5.1). One that has not left whole, the other side cannot read.
_RECORD = 16384

#: Servers say the same few lines again and again. So many of at most so many octets are known at sight, and so many
#: answers to a whole group of commands.
_KNOWN_REPLIES = 32
_KNOWN_LINE = 64
_KNOWN_GROUP = 512

_SystemSocket = socket.socket  # not what may stand there later

_AS_COMMANDS: Any = object()  # "the time-out for commands"; not None, which waits for ever

_REPLY_LINE = re.compile(rb"([1-5][0-9]{2})(?:([ -])([^\r\n]*))?")


class Wire(TimedSocket):
    """One connection.

    Args:
        sock: the socket, connected; the wire closes it.
        timeouts: how long to wait for the peer at each step.
        name: how the protocol log calls this connection.
        trace: called with the direction (">" or "<") and what is said, secrets masked; smtplib's debug output.

    Attributes:
        secrets: what was said and the server may echo, while it must not be seen.
        last_words: what the server said before it hung up on a write that listened, if it was a whole reply.
        content_left: how much of a content, and of what was written ahead of it in one write, the kernel had not taken
            when `write_content` or `write_chunk` raised ConnectionLost.
        acknowledges_at_once: set TCP_QUICKACK ahead of each wait, where the platform has it.
        is_heard: somebody listens to what is logged. Asked once for each message or command (`look_for_listeners`).
    """

    def __init__(
        self, sock: socket.socket, timeouts: Timeouts, name: str = "", trace: Callable[[str, str], None] | None = None
    ) -> None:
        super().__init__(sock)
        self.timeouts = timeouts
        self.name = name
        self.trace = trace
        self.secrets: list[bytes] = []
        self.last_words: Reply | None = None
        self.content_left = 0
        self.acknowledges_at_once = False
        self._unread = b""  # what was received, of which
        self._at = 0  # so much has been read
        self._received = 0  # times that something was
        self._known: dict[bytes, Reply] = {}  # whole replies of one line, by that line
        self._known_groups: dict[bytes, tuple[Reply, ...]] = {}  # the consent to a group, by all of its octets
        self.look_for_listeners()
        # For a look at a socket that has nothing in store itself; not one of TLS, or of whatever stands for one.
        self._poll = _poll_of(sock) if type(sock) is _SystemSocket else None

    # ------------------------------------------------------------ writing

    def write(
        self,
        data: bytes | memoryview,
        shown: str | None = None,
        *,
        timeout: float | None = _AS_COMMANDS,
        listen: bool = False,
    ) -> None:
        """Hand `data` to the kernel, all of it.

        When this raises ConnectionLost, the last byte was surely not handed over: a failing `send` takes nothing, and
        under TLS not the last record.

        Args:
            shown: what the protocol log says instead of `data`, where that is secret or long.
            timeout: seconds for each block; None is for ever. Not given: the time-out for commands.
            listen: where the connection breaks, look for `last_words`. Linux keeps what was said before a reset.
        """
        if self.is_heard:
            self._log(">", shown if shown is not None else data)
        self._transfer(data, self.timeouts.command if timeout is _AS_COMMANDS else timeout, listen=listen)

    def write_commands(self, lines: Sequence[str]) -> None:
        """Write several commands at once (RFC 2920); their replies are to be read in the same order."""
        if self.is_heard:
            for line in lines:
                self._log(">", line)
        self._transfer(joined(lines), self.timeouts.command)

    def write_content(self, data: bytes, behind: Sequence[str] = (), size: int | None = None) -> None:
        """Write the last bytes of a content and, in the same breath, the commands of the message behind it.

        Message content may be the first element of a group (RFC 2920 §3.1). Nothing comes before the write, not even
        a line of the log: whoever called has just been told that now is the last moment.

        Args:
            data: all of it (`joined` makes bytes of commands).
            behind: the commands at its end, for the log.
            size: how much of it is content; None: all.
        """
        self.content_left = end = len(data) if size is None else size
        try:
            if end < len(data) and len(data) > _RECORD and isinstance(self.sock, ssl.SSLSocket):
                # A write that fails does not say which of its records have left: the one with the end must be the last.
                self._transfer(data[:end], self.timeouts.content)
                self._transfer(data[end:], self.timeouts.content)
            else:
                self._transfer(data, self.timeouts.content)
        finally:
            if self.is_heard:
                self._log(">", f"<{end} octets of content, and the end>")
                for line in behind:
                    self._log(">", line)

    def write_chunk(self, lines: Sequence[str], content: bytes) -> None:
        """Write commands, the last of which is BDAT, and the content it announces (RFC 3030).

        Where that breaks the connection it stays open for what the server said before, and ConnectionLost is raised.
        Nothing comes before the write, as in `write_content`.
        """
        data = joined(lines) + content
        self.content_left = len(data)
        try:
            self._transfer(data, self.timeouts.content, hear_out=True)
        finally:
            if self.is_heard:
                for line in lines:
                    self._log(">", line)
                self._log(">", f"<{len(content)} octets of content>")

    def _transfer(
        self, data: bytes | memoryview, timeout: float | None, *, listen: bool = False, hear_out: bool = False
    ) -> None:
        try:
            if (
                self.ticks_here
                and self.deadline is NEVER
                and (timeout is None or timeout >= TICK)
                and len(data) <= BLOCK
                and self.is_open
                and self.sock.gettimeout() is None
            ):
                # What `_patiently` comes to for nearly every write, less a frame.
                try:
                    sent = self.sock.send(data)
                except BlockingIOError as exc:
                    if is_from_outside(exc, self.sock):
                        raise
                    sent, timeout = 0, None if timeout is None else timeout - TICK
                self.content_left -= sent
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
            while data:
                block = data if len(data) <= BLOCK else memoryview(data)[:BLOCK]
                sent = self._patiently(self.sock.send, block, timeout, "the server takes no more bytes")
                self.content_left -= sent
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
        except OSError as exc:
            if is_from_outside(exc, self.sock):
                self.close()
                raise
            if listen and not (self.aborted or isinstance(exc, TimeoutError)):
                self.last_words = self._hear()
            if hear_out and not (self.aborted or isinstance(exc, (TimeoutError, MailError))):
                raise ConnectionLost(f"the connection broke while writing: {exc.strerror or exc}") from exc
            self._give_up(exc, "the connection broke while writing")
        except BaseException:
            self.close()
            raise

    def command(self, line: str, shown: str | None = None) -> Reply:
        """Write one command and read its reply; nothing may lie unread before."""
        self.require_quiet()
        try:
            self.write(f"{line}\r\n".encode(), shown)
            return self.read_reply()
        except BaseException:
            self.close()  # an exception from outside may come between the two
            raise

    # ------------------------------------------------------------ reading

    def read_reply(self, timeout: float | None = _AS_COMMANDS) -> Reply:
        """Read one whole reply.

        Args:
            timeout: seconds for the whole reply; None is for ever. Not given: the time-out for commands.
        Raises:
            ReplyTimedOut, ConnectionLost, BadReply: and the connection is closed.
        """
        seconds = self.timeouts.command if timeout is _AS_COMMANDS else timeout
        try:
            begun = 0.0
            if self._at == len(self._unread):
                begun = now()
                self._receive(seconds)
            end = self._unread.find(b"\n", self._at) + 1
            reply = self._known.get(self._unread[self._at : end])
            if reply is not None:
                self._at = end
            else:
                reply = self._read_anew(inf if seconds is None else (begun or now()) + seconds)
        except OSError as exc:
            self._give_up(exc, "the connection broke while waiting for a reply")
        except BaseException:
            self.close()
            raise
        if self.is_heard:
            self._log("<", f"{reply.code} {printable(self.scrubbed(reply.raw))}")
        return reply

    def read_known_group(self, count: int) -> tuple[Reply, ...] | None:
        """The replies to `count` commands that were written at once, if they are known at sight; else nothing is read.

        Known is the consent to all of them, word for word as it came before (`learn_group`): one look for what else is
        read reply by reply. Waits for something to lie there, as `read_reply` does, and raises what that raises.
        """
        if self.is_heard:
            return None
        if self._at == len(self._unread):
            try:
                self._receive(self.timeouts.command)
            except OSError as exc:
                self._give_up(exc, "the connection broke while waiting for a reply")
            except BaseException:
                self.close()
                raise
        group = self._known_groups.get(self._unread[self._at :])
        if group is None or len(group) != count:
            return None
        self._at = len(self._unread)
        return group

    @property
    def place(self) -> tuple[int, int]:
        """Where in what was received the next reply begins, for `learn_group`."""
        return self._received, self._at

    def learn_group(self, begun: tuple[int, int], count: int) -> None:
        """Know at sight what was read since `begun`, if it came at once and by itself and is the consent to a group.

        That is 250 to each command and 354 to the last, a line each. What carries a name or a number never comes again,
        and is soon forgotten.
        """
        received, at = begun
        if received != self._received or self._at != len(self._unread) or self._at - at > _KNOWN_GROUP:
            return
        said = self._unread[at:]
        group = tuple(reply for line in said.splitlines(keepends=True) if (reply := self._known.get(line)))
        if [reply.code for reply in group] != [*[250] * (count - 1), 354]:
            return
        if len(self._known_groups) >= _KNOWN_REPLIES:
            self._known_groups.clear()
        self._known_groups[said] = group

    def _read_anew(self, end: float) -> Reply:
        """Read a reply that is not known at sight, and be done by `end` of the clock."""
        lines: list[bytes] = []
        code = b""
        while True:
            line = self._read_line(end)
            # A bare LF ends no line (RFC 5321 §2.3.8); taking it for an end lets two sides disagree on what was said.
            match = _REPLY_LINE.fullmatch(line, 0, len(line) - 2 if line.endswith(b"\r\n") else len(line))
            if match is None or code not in (b"", match[1]):
                raise BadReply(f"this is no SMTP reply: {printable(self.scrubbed(line)[:80])}")
            code = match[1]
            lines.append((match[3] or b"").strip(b" \t"))
            if match[2] != b"-":
                break
            if len(lines) >= MAX_LINES:
                raise BadReply(f"the reply has more than {MAX_LINES} lines")
        reply = Reply(int(code), b"\n".join(lines))
        if len(lines) == 1 and len(line) <= _KNOWN_LINE and not self.secrets:
            if len(self._known) >= _KNOWN_REPLIES:  # most name a queue id, and never come again
                self._known.clear()
            self._known[line] = reply
        return reply

    def _read_line(self, end: float) -> bytes:
        """One line, with what ends it."""
        searched = self._at
        while (stop := self._unread.find(b"\n", searched) + 1) == 0:
            searched = len(self._unread)
            if searched - self._at > MAX_LINE:
                raise BadReply(f"a reply line is longer than {MAX_LINE} octets")
            searched -= self._at  # what has been read is dropped
            self._receive(None if end == inf else end - now())
        line = self._unread[self._at : stop]
        if len(line) > MAX_LINE:
            raise BadReply(f"a reply line is longer than {MAX_LINE} octets")
        self._at = stop
        return line

    def _receive(self, seconds: float | None) -> None:
        """Wait for more; what has been read already is dropped."""
        if self.acknowledges_at_once:
            self._acknowledge_at_once()
        data = None
        if (
            self.ticks_here
            and self.deadline is NEVER
            and (seconds is None or seconds >= TICK)
            and self.is_open
            and self.sock.gettimeout() is None
        ):
            # What `_patiently` comes to for nearly every read, less a frame.
            try:
                data = self.sock.recv(MAX_LINE)
            except BlockingIOError as exc:
                if is_from_outside(exc, self.sock):
                    raise
                seconds = None if seconds is None else seconds - TICK
        if data is None:
            data = self._patiently(self.sock.recv, MAX_LINE, seconds, "no whole reply came")
        self._received += 1
        rest = self._unread[self._at :]
        if not data:
            cut = " in the middle of a reply" if rest else ""
            raise ConnectionLost(f"the server closed the connection{cut}")
        self._unread, self._at = rest + data, 0

    def _acknowledge_at_once(self) -> None:
        """The kernel forgets it with each acknowledgement.

        Without it a server that writes a reply for each message waits for ours, for Nagle's sake, and we delay it:
        44 ms a window.
        """
        option = getattr(socket, "TCP_QUICKACK", None)
        if option is not None:
            try:
                self.sock.setsockopt(socket.IPPROTO_TCP, option, 1)
            except OSError as exc:
                if is_from_outside(exc, self.sock):
                    raise
                self.acknowledges_at_once = False  # not a TCP socket

    def quiet(self) -> bool:
        """Whether nothing lies unread and the peer has not hung up: one look, no waiting.

        Bytes that no command asked for are a server out of turn (a 421 before it closes, RFC 5321 §3.8), or an attack.
        """
        if self._at < len(self._unread):
            return False
        try:
            if self.is_open and self._poll is not None and not self._poll.poll(0):
                return True
            standing = self.sock.gettimeout()
            self.sock.settimeout(0.0)
            try:
                data = self.sock.recv(MAX_LINE)
            finally:
                self.sock.settimeout(standing)
        except OSError as exc:
            if is_from_outside(exc, self.sock):
                self.close()
                raise
            # A TLS record that is no data, such as a session ticket, has been taken off by the look.
            return isinstance(exc, (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError))
        except BaseException:
            self.close()  # what it found may be lost
            raise
        self._unread, self._at = data, 0
        return False

    def require_quiet(self) -> None:
        """Close the connection and raise unless it is quiet. To be called before a command is written."""
        if not self.quiet():
            unread = self._unread[self._at :]
            said = f": {printable(self.scrubbed(unread)[:80])}" if unread else ""
            self.close()
            if self.aborted:
                raise Aborted("the connection was dropped by abort()")
            if said:
                raise BadReply(f"the server spoke out of turn{said}")
            raise ConnectionLost("the server closed the connection")

    def require_no_surplus(self) -> None:
        """Close the connection and raise if anything came together with the last reply.

        For the moment after a reply was read: a look at the socket would find no more than what microseconds bring. But
        of TLS a read takes one record only, and leaves the next with the kernel, whatever came in the same packet.
        """
        if self._at < len(self._unread) or isinstance(self.sock, ssl.SSLSocket):
            self.require_quiet()

    # ------------------------------------------------------------ TLS and the end

    def start_tls(self, context: ssl.SSLContext, hostname: str) -> ssl.SSLSocket:
        """Wrap the connection in TLS. Unread bytes from before the handshake are refused: they were injected."""
        self.require_quiet()
        return self.shake_hands(context, hostname, offered=True)

    def shake_hands(self, context: ssl.SSLContext, hostname: str, *, offered: bool = False) -> ssl.SSLSocket:
        """Wrap the connection in TLS. Where that fails the connection is closed; `abort()` ends it at once.

        Args:
            offered: the server has just said that it speaks TLS, so if it then does not, something came between.
        """
        limit = self.deadline.within(self.timeouts.connect)
        self.rest()
        try:
            mine = limit is self.deadline
            return wrap_tls(self.sock, context, hostname, limit, self._replace, offered=offered, by_deadline=mine)
        except BaseException as exc:
            self.close()
            if self.aborted and isinstance(exc, OSError) and not is_from_outside(exc, self.sock, context):
                raise Aborted("the connection was dropped by abort()") from exc
            raise

    def _replace(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._poll = None
        if self.aborted:  # it met the socket that this one took the connection from
            self.abort()

    def close(self) -> None:
        """Close without a farewell. May be called twice."""
        self._unread, self._at = b"", 0
        super().close()

    # ------------------------------------------------------------ helpers

    def scrubbed(self, text: bytes) -> bytes:
        """What the server said, without the secrets it may have echoed."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            if secret not in (b"", b"="):  # an empty response
                text = text.replace(secret, b"***")
        return text

    def _hear(self) -> Reply | None:
        try:
            return self.read_reply(0.5)  # it is there, or never
        except MailError as exc:
            if is_of_a_handler(exc):
                raise
            return None

    def look_for_listeners(self) -> None:
        """See whether anybody listens to what is logged: once for each message, and not at each of five places."""
        self.is_heard = self.trace is not None or protocol_log.isEnabledFor(logging.DEBUG)

    def _log(self, direction: str, said: str | bytes | memoryview) -> None:
        text = printable(said if isinstance(said, str) else bytes(said)).rstrip()
        try:
            if self.trace is not None:
                self.trace(direction, text)
            say(protocol_log, logging.DEBUG, "%s %s %s", self.name, direction, text)
        except Exception as exc:
            if is_of_a_handler(exc):
                raise
            # Else: a broken log handler must not come between a command and its reply.


def _poll_of(sock: socket.socket) -> select.poll | None:
    if not hasattr(select, "poll") or sock.fileno() < 0:
        return None
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll


def joined(lines: Sequence[str]) -> bytes:
    """Commands as they go to the wire."""
    return ("\r\n".join(lines) + "\r\n").encode()
