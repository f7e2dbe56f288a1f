"""smtplib's client as a guarded dialogue.

Owns `sync_root`'s use: who may write the next command, what an exchange is, and what becomes of one that ends early.
Guarantees: every public method holds the lock from its first byte to its last reply; a call of the same thread, which
an RLock lets pass, gets between no two commands of an exchange; a dialogue in doubt is closed, never reused. Leaves
connecting, logging in and sending mail to `smtp`.
"""

from __future__ import annotations

import enum
import re
import smtplib
import socket
import sys
import threading
from _thread import LockType
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from .._runtime.deadline import NEVER, Deadline
from .._runtime.guard import Guarded, Root, holding
from .._runtime.locks import new_rlock
from .._transport.lookup import Waiter
from .._transport.wire import Wire
from ..config import Timeouts
from ..errors import (
    INSTEAD,
    BadReply,
    HeloRefused,
    InvalidAddress,
    InvalidConfig,
    InvalidEnvelope,
    NotConnected,
    Phase,
    Reentered,
    printable,
)
from ..receipt import Reply
from . import delivery as _delivery

Answer: TypeAlias = tuple[int, bytes]

# Commands that end a transaction, whatever the answer.
_ENDING = ("RSET", "EHLO", "HELO", "LHLO")

#: How servers refuse a command that is none of theirs.
_UNKNOWN = (500, 502, 503)

# Line ends (code written for smtplib knows the words of the error), and what else no command may hold.
_CONTROL = re.compile(r"[\0-\x08\n-\x1f\x7f]")

UNSET: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]  # smtplib's "no timeout given"


class State(enum.Enum):
    """Where the dialogue stands, as far as the next command is concerned. Changed under `sync_root` only."""

    IDLE = "idle"  # any command may come
    OPEN = "a transaction begun with mail()"  # the caller drives; only sendmail is out of place
    CONTENT = "the content of a message"  # as OPEN, and the next reply ends the transaction
    AWAITING = "a command whose reply has not been read"
    DRIVING = "an exchange that is not to be interrupted"


#: Locks with which the first method that calls another one would wait for itself, for ever.
_ONCE_ONLY = (LockType, threading.Semaphore)

#: In a forked child: what is the parent's.
Connection: TypeAlias = "tuple[Wire | None, socket.socket | None]"

_P = ParamSpec("_P")
_D = TypeVar("_D", bound="Dialogue")
_T = TypeVar("_T")


def exclusive(
    method: Callable[Concatenate[_D, _P], _T], *, reading: bool = False, parting: bool = False
) -> Callable[Concatenate[_D, _P], _T]:
    """A method that is one step: it holds `sync_root`, and must be over in the seconds of its argument `deadline`.

    No `with` over a generator, which an exception from outside can strike between the generator and the body, or at its
    very end: then the lock is held for as long as somebody keeps the traceback. Here it is taken by the interpreter,
    and all that has to be put back is put back in a `finally` before anything else is called.
    """

    @wraps(method)
    def step(self: _D, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        deadline: Any = kwargs.get("deadline")
        end = NEVER if deadline is None else Deadline.after(deadline)
        with holding(self.sync_root, end):
            outer, inside = self._deadline, self._inside
            self._require_turn(reading or (parting and not inside))
            try:
                self._inside = True
                if end is not NEVER:
                    self._set_deadline(outer.within(end))
                return method(self, *args, **kwargs)
            except BaseException:
                if self._state is State.AWAITING:
                    self._drop()  # whoever reads next would read the reply to this command
                raise
            finally:
                self._deadline, self._inside = outer, inside
                wire = self._wire
                if wire is not None:
                    wire.deadline = outer
                    self._rest(wire)

    return step


def exclusive_reading(method: Callable[Concatenate[_D, _P], _T]) -> Callable[Concatenate[_D, _P], _T]:
    """As `exclusive`, for what reads the reply that a command of another step waits for."""
    return exclusive(method, reading=True)


def exclusive_parting(method: Callable[Concatenate[_D, _P], _T]) -> Callable[Concatenate[_D, _P], _T]:
    """As `exclusive`, for what ends the connection: also where a reply is still to be read, if no step waits for it."""
    return exclusive(method, parting=True)


class Dialogue(Guarded, smtplib.SMTP):
    """What the guarded clients have in common once they are connected.

    Args:
        timeout: as smtplib's: seconds for everything; not given, `Timeouts()` or the socket module's default holds.
        timeouts: how long to wait at each step, instead of `timeout`.
        sync_root: the lock to use, for owners that guard more than the dialogue with it; a reentrant one.
    """

    # smtplib's own, which is set here as well.
    sock: socket.socket | None
    file: Any | None
    helo_resp: bytes | None
    ehlo_resp: bytes | None
    command_encoding: str

    _for_one_dial = False  # its owner makes a new one for each, so that an abort() of before connect() is for that
    _waiter: Waiter | None = None  # the last wait for a name to be resolved; under way, or over

    def __init__(
        self,
        local_hostname: str,
        timeout: float | None,
        source_address: Any,
        timeouts: Timeouts | None,
        sync_root: Any,
    ) -> None:
        if isinstance(sync_root, _ONCE_ONLY):
            raise InvalidConfig("sync_root must be a lock that its holder can take again: an RLock")
        self._wire: Wire | None = None
        self._pipeline: _delivery.Pipeline | None = None  # of this wire
        self._state = State.IDLE
        self._resume = State.IDLE
        self._inside = False  # a step is under way; only its own thread can see it so
        self._challenged = False  # the last reply was 334: what is said next is secret
        self._deadline: Deadline = NEVER
        self._abort_requested = False  # written without the lock by abort(), cleared by connect(), but `_for_one_dial`
        self._own_timeouts = timeouts
        self._host = ""
        Guarded.__init__(self, sync_root)
        # Not the constructors of SMTP_SSL and LMTP, whose arguments differ between versions; and without the host:
        # theirs raise errors of their own.
        smtplib.SMTP.__init__(self, "", 0, local_hostname, timeout, source_address)  # type: ignore[arg-type]
        if timeout is not UNSET:
            self._limits()

    # ------------------------------------------------------------ the guard

    @contextmanager
    def within(self, deadline: float | Deadline | None = None) -> Iterator[None]:
        """Hold `sync_root`, and let everything inside be over in time.

        Args:
            deadline: seconds that waiting for the lock and all calls inside may take together; None bounds nothing.
        Raises:
            TimedOut: the lock was not to be had in time.
            Reentered: this thread is inside an exchange on this client.
        """
        end = Deadline.after(deadline)
        with holding(self.sync_root, end):  # as `exclusive`, which says what this cannot promise
            self._require_turn()
            outer = self._deadline
            try:
                self._set_deadline(outer.within(end))
                yield
            except BaseException:
                if self._state is State.AWAITING:
                    self._drop()
                raise
            finally:
                self._deadline = outer
                wire = self._wire
                if wire is not None:
                    wire.deadline = outer
                    self._rest(wire)

    def _rest(self, wire: Wire) -> None:
        """A step is over: a connection that did not outlive it goes."""
        if not wire.is_open:
            self._drop()
        elif self._own_timeouts is None:
            wire.rest()  # smtplib's `timeout` is that of the socket, as everybody can see

    @exclusive
    def _together(self, calls: Callable[[], _T], *, deadline: float | Deadline | None = None) -> _T:
        """What several calls of this client come to, which are one step and are over in time together."""
        return calls()

    def _require_turn(self, reading: bool = False) -> None:
        if self._state is State.DRIVING or (self._state is State.AWAITING and not reading):
            # The lock is ours, so this is the same thread. Nothing was written; the exchange goes on unharmed.
            raise Reentered(f"this thread is in the middle of {self._state.value} on this client: {INSTEAD}")

    def _drive(self, exchange: Callable[[Wire], _T]) -> _T:
        """An exchange of several commands that nothing may interrupt; for methods that hold the lock."""
        wire = self._connected()
        self._state = State.DRIVING
        try:
            return exchange(wire)
        finally:
            self._state = State.IDLE

    def _require_no_transaction(self) -> None:
        if self._state is not State.IDLE:
            raise Reentered(f"{self._state.value} is under way on this client")

    def _set_deadline(self, deadline: Deadline) -> None:
        self._deadline = deadline
        if self._wire is not None:
            self._wire.deadline = deadline

    def _connected(self) -> Wire:
        if self.sock is None:
            raise NotConnected("there is no connection: call connect() first")
        if self._wire is None or self._wire.sock is not self.sock:  # somebody put a socket of his own there
            self._wire = self._new_wire(self.sock)
        self._wire.trace = self._trace if self.debuglevel > 0 else None
        self._wire.look_for_listeners()
        self._wire.look_who_calls()
        return self._wire

    def _new_wire(self, sock: socket.socket) -> Wire:
        wire = Wire(sock, self._limits(), f"{printable(self._host)}#{id(sock) & 0xFFFF:04x}")
        wire.deadline = self._deadline
        return wire

    def _limits(self) -> Timeouts:
        if self._own_timeouts is not None:
            return self._own_timeouts
        if self.timeout is not UNSET:
            return Timeouts.all(self.timeout)
        default = socket.getdefaulttimeout()
        return Timeouts() if default is None else Timeouts.all(default)

    def _trace(self, direction: str, said: str) -> None:
        self._debug("send:" if direction == ">" else "reply:", repr(said))

    def _debug(self, *said: object) -> None:
        smtplib.SMTP._print_debug(self, *said)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close without a farewell. To end a call that another thread is making, `abort()`.

        Raises:
            Reentered: this very thread is inside an exchange on this client, which goes on unharmed.
        """
        with holding(self.sync_root, NEVER):
            self._require_turn(reading=not self._inside)
            self._drop()

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        sock, self.sock = self.sock, None
        self._pipeline = None
        self.file = None
        self._state = self._resume = State.IDLE
        self._challenged = False
        self.command_encoding = "ascii"  # SMTPUTF8 was for a message on this connection
        if wire is not None:
            wire.close()
        if sock is not None:
            sock.close()

    def _inherited(self, pid: int) -> Connection | None:
        return None if self._pid == pid else (self._wire, self.sock)

    def _made_anew(self, pid: int, inherited: Connection) -> Root:
        for each in inherited:
            if each is not None:
                each.close()  # without a word: the parent speaks on it
        return Root(new_rlock())

    def _begin(self, pid: int, fresh: Root) -> None:
        if self._pid == pid:
            return
        # As `_drop`, which would be a call.
        self._wire = None
        self.sock = None
        self._pipeline = None
        self.file = None
        self._state = self._resume = State.IDLE
        self._challenged = self._inside = False
        self.command_encoding = "ascii"
        self._deadline = NEVER
        self._root = fresh
        self._pid = pid

    def abort(self) -> None:
        """Drop the connection under the call that another thread is making. Takes no lock and returns at once.

        That call ends with `Aborted`, its outcome NOT_SENT or IN_DOUBT by the phase it was in.
        """
        if self.is_inherited:
            return  # the call under way, and the connection under it, are the parent's
        self._abort_requested = True
        waiter, wire = self._waiter, self._wire
        if waiter is not None:
            waiter.call_off()
        if wire is not None:
            wire.abort()

    def is_quiet(self) -> bool:
        """Whether there is a connection on which nothing lies unread and nobody has hung up: one look, no waiting."""
        with self.sync_root:  # not a step: that costs more than the look
            self._require_turn()
            return self.sock is not None and self._connected().quiet()

    # ------------------------------------------------------------ commands and replies

    @exclusive
    def send(self, s: Any) -> None:
        """Write bytes as they are; text in the encoding of commands."""
        data = s.encode(self.command_encoding) if isinstance(s, str) else bytes(s)
        sys.audit("smtplib.send", self, data)
        self._connected().write(data, f"<{len(data)} octets>")

    @exclusive
    def putcmd(self, cmd: str, args: str = "") -> None:
        """Write a command; its reply must be read before another one is written."""
        line = f"{cmd} {args}" if args else cmd
        if _CONTROL.search(line):
            shown = self._masked(line).encode("unicode_escape").decode("ascii")
            raise InvalidEnvelope(f"command and arguments contain prohibited newline characters: {shown}")
        wire = self._connected()
        data = f"{line}\r\n".encode(self.command_encoding)
        sys.audit("smtplib.send", self, data)
        wire.require_quiet()
        ends = self._state is State.CONTENT or line[:4].upper() in _ENDING
        if ends:
            self.command_encoding = "ascii"  # SMTPUTF8 was for that transaction
        self._resume, self._state = State.IDLE if ends else self._state, State.AWAITING
        wire.write(data, self._masked(line))

    def _masked(self, line: str) -> str:
        """`line` as the log may show it. Code written for smtplib logs in by hand: docmd("AUTH", "XOAUTH2 ...")."""
        if self._challenged:
            return "***"
        words = line.split(None, 2)
        return f"AUTH {words[1]} ***" if len(words) > 2 and words[0].upper() == "AUTH" else line

    @exclusive_reading
    def getreply(self) -> Answer:
        """Read a whole reply: (code, text). Anything else closes the connection and raises."""
        return self._next_reply()

    def _next_reply(self) -> Answer:
        """As `getreply`. Nobody else reads meanwhile: who came second would wait for what never comes."""
        wire = self._connected()
        before, self._state = self._state, State.DRIVING
        try:
            reply = wire.read_reply()
        finally:
            self._state = before
        if reply.code == 354:
            self._state = State.CONTENT
        elif self._state is State.AWAITING:
            self._state = self._resume
        elif self._state is State.CONTENT:
            self._state = State.IDLE
        self._challenged = reply.code == 334
        if reply.code == 221 or reply.closes:
            self._drop()  # the server is closing (RFC 5321 §3.8); smtplib lets the next command find out
        return reply.pair

    @exclusive
    def docmd(self, cmd: str, args: str = "") -> Answer:
        self.putcmd(cmd, args)
        return self.getreply()

    @exclusive
    def ehlo(self, name: str = "") -> Answer:
        try:
            return super().ehlo(_one_word(name or self.local_hostname))
        except BaseException:
            self.ehlo_resp = None  # half of what the server offers may have been noted, as if it were all
            raise

    @exclusive
    def helo(self, name: str = "") -> Answer:
        return super().helo(_one_word(name or self.local_hostname))

    def ehlo_or_helo_if_needed(self) -> None:
        """EHLO, or HELO where the server does not know that (RFC 5321 §3.2), unless it has been greeted already.

        Not after a 4yz: HELO would give up all that EHLO offers, STARTTLS and AUTH among it, for a passing trouble. And
        under LMTP it is LHLO or nothing, also where smtplib goes on with HELO: see `_is_greeted`.

        Raises:
            HeloRefused: the server wants neither, or not now.
            BadReply: it answered something else, and the connection is closed.
        """
        with self.sync_root:
            self._require_turn()
            if not self._is_greeted:
                self._greet()

    @property
    def _speaks_lmtp(self) -> bool:
        return self.ehlo_msg == "lhlo"

    @property
    def _is_greeted(self) -> bool:
        """Whether mail may follow.

        Under LMTP after LHLO alone: who takes a HELO speaks SMTP (RFC 2033 §4.1), and owes one reply to the content
        where LMTP waits for as many as there are recipients. Nor after one that was refused, which smtplib notes all
        the same: there are servers that take a MAIL from whoever has not said his name.
        """
        if self._speaks_lmtp:
            return self.does_esmtp and self.ehlo_resp is not None
        return self.helo_resp is not None or self.ehlo_resp is not None

    def _greet(self) -> None:
        reply = Reply(*self.ehlo())
        if reply.permanent and not self._speaks_lmtp:
            reply = Reply(*self.helo())
        if reply.positive and reply.code not in (220, 221):  # a second greeting shifts all replies by one
            return
        self.helo_resp = self.ehlo_resp = None
        if reply.transient or reply.permanent:
            raise HeloRefused(*reply.pair, self._not_greeted(reply))
        self._drop()
        raise BadReply(f"{self.ehlo_msg.upper()} was answered {reply}", phase=Phase.CONNECT)

    def _not_greeted(self, reply: Reply) -> str:
        """What a refused greeting is told as: that it may be the other protocol, where the command is not known."""
        told = f"the server answered {reply}"
        if reply.code not in _UNKNOWN:
            return told
        if self._speaks_lmtp:
            return f"{told}: it knows no LHLO, and may speak SMTP (smtp://) instead of LMTP"
        return f"{told}: it knows neither EHLO nor HELO, and may speak LMTP (lmtp://) instead of SMTP"

    @exclusive
    def has_extn(self, opt: str) -> bool:
        return super().has_extn(opt)

    @exclusive
    def help(self, args: str = "") -> bytes:
        return super().help(args)

    @exclusive
    def noop(self, *, deadline: float | Deadline | None = None) -> Answer:
        return super().noop()

    @exclusive
    def verify(self, address: str) -> Answer:
        return super().verify(self._one_line(address))

    vrfy = verify

    @exclusive
    def expn(self, address: str) -> Answer:
        return super().expn(self._one_line(address))

    def _one_line(self, address: str) -> str:
        """`address`, for smtplib to look for a mailbox in: it would find one behind a line end as well."""
        if not address.isprintable():
            raise InvalidAddress(f"address {address!a} holds a line end or another control character")
        try:
            address.encode(self.command_encoding)
        except UnicodeEncodeError:
            raise InvalidAddress(f"address {address!a} is not ASCII, as an address asked about must be") from None
        return address


def _one_word(name: str) -> str:
    """`name`, which is what EHLO takes; what stood behind a space would be a parameter of it."""
    if not _CONTROL.search(name) and not re.fullmatch(r"[!-~]+", name):  # of control characters putcmd will tell
        raise InvalidConfig(f"local_hostname {name!a} is no host name")
    return name
