"""smtplib's clients, safe to share.

Owns `SMTP`, `SMTP_SSL` and `LMTP`: subclasses of the standard library's that a code base gets by changing one import
line. `with client.sync_root:` makes several calls one step. Guarantees, beyond those of `_session.dialogue`: TLS is
verified, and had or the connection closed; credentials cross no network in the clear unasked; addresses and content are
checked before the first byte of a message. Leaves connecting again, idle connections and retries to `Client`.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
import sys
from copy import copy
from functools import partial
from typing import Any

from ._runtime.deadline import NEVER, Deadline, DeadlinePassed
from ._runtime.outside import is_of_a_handler
from ._session import login as _login
from ._session.dialogue import UNSET, Answer, State, exclusive, exclusive_parting
from ._session.sendmail import SendingDialogue
from ._transport.connecting import in_time, is_from_outside_the_dial, seconds_left, tls_context, why_not_connected
from ._transport.lookup import CalledOff, ResolverFailed, Waiter, addresses, default_local_hostname
from ._transport.socket import is_from_outside
from ._transport.wire import Wire
from .config import Timeouts, is_loopback
from .errors import (
    Aborted,
    BadReply,
    ConnectFailed,
    ConnectionLost,
    ConnectTimedOut,
    GreetingRefused,
    InsecureLogin,
    InvalidConfig,
    MailError,
    NotSupported,
    Outcome,
    Phase,
    ReplyError,
    ReplyTimedOut,
    StartTLSRefused,
)
from .receipt import Reply

_NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Client(SendingDialogue):
    """What the three classes have in common."""

    # smtplib's own, which is set here as well.
    sock: socket.socket | None
    helo_resp: bytes | None
    ehlo_resp: bytes | None
    esmtp_features: dict[str, str]
    does_esmtp: bool

    #: Send credentials without TLS to another machine.
    allow_plaintext_login = False

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        timeout: float | None = UNSET,
        source_address: Any = None,
        *,
        timeouts: Timeouts | None = None,
        sync_root: Any = None,
    ) -> None:
        local_hostname = local_hostname or default_local_hostname(NEVER)
        super().__init__(local_hostname, timeout, source_address, timeouts, sync_root)
        self._host = host
        if host:
            answer = self.connect(host, port)
            if answer[0] != 220:
                self.close()
                raise GreetingRefused(*answer)

    # ------------------------------------------------------------ connecting

    @exclusive
    def connect(
        self,
        host: str = "localhost",
        port: int = 0,
        source_address: Any = None,
        *,
        deadline: float | Deadline | None = None,
    ) -> Answer:
        """Connect, and read the greeting; as smtplib's, with errors that say what is wrong.

        Args:
            host: name or address, "host:port", or for LMTP the path of a Unix socket.
            deadline: seconds that all of it may take.
        Returns:
            The greeting as (code, text).
        Raises:
            ConnectFailed: or one of its subclasses, by cause.
        """
        self._drop()
        if not self._for_one_dial:
            self._abort_requested = False
        self._state = State.DRIVING  # the first reply is that of the greeting, whoever would ask for one meanwhile
        try:
            return self._connect(host, port, source_address)
        except BaseException:
            self._drop()  # a greeting that comes yet would be the reply to the first command
            raise
        finally:
            self._state = State.IDLE

    def _connect(self, host: str, port: int, source_address: Any) -> Answer:
        self.helo_resp = self.ehlo_resp = None
        self.esmtp_features = {}
        self.does_esmtp = False
        if source_address:
            self.source_address = source_address
        if not port and host.count(":") == 1 and not host.startswith("/"):
            host, _, given = host.partition(":")
            if not given.isdecimal():
                raise ConnectFailed(f"port {given!r} is no number", transient=False)
            port = int(given)
        port = port or self.default_port
        self._host = host
        sys.audit("smtplib.connect", self, host, port)
        answer = self._greeted(host, port)
        if self.debuglevel > 0:
            self._debug("connect:", repr(answer[1]))
        return answer

    def _greeted(self, host: str, port: int) -> Answer:
        self.sock = self._get_socket(host, port, self._limits().connect)
        wire = self._connected()  # from here on abort() reaches it
        if self._abort_requested:
            wire.abort()
        try:
            return self._next_reply()
        except ReplyTimedOut as error:
            silent = ConnectTimedOut(f"{host}:{port} accepted the connection but sent no greeting")
            silent.deadline_passed = error.deadline_passed
            raise silent from error
        except BadReply as error:
            stranger = BadReply(f"{host}:{port} is no SMTP server: {error}", phase=Phase.CONNECT)
            stranger.transient = False
            raise stranger from error
        except MailError as error:
            error.phase = Phase.CONNECT
            raise

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        end = self._deadline
        end.check("connecting")
        if self.debuglevel > 0:
            self._debug("connect: to", (host, port), self.source_address)
        try:
            sock = self._dial(host, port, timeout, end)
        except CalledOff:
            raise Aborted("the call was ended by abort()", phase=Phase.CONNECT) from None
        except (ConnectFailed, InvalidConfig):
            raise  # of the resolver, and an OSError as well; or what was given as a time-out is none
        except (OSError, ValueError, OverflowError) as exc:
            if is_of_a_handler(exc) or (isinstance(exc, OSError) and is_from_outside_the_dial(exc)):
                raise
            raise why_not_connected(exc, host if host.startswith("/") else f"{host}:{port}") from exc
        try:
            sock.settimeout(socket.getdefaulttimeout() if self.timeout is UNSET else self.timeout)
            sock.setsockopt(*_NO_DELAY)  # content and lone dot in two segments cost 44 ms with Nagle's algorithm
        except BaseException as exc:
            if not isinstance(exc, OSError) or is_from_outside_the_dial(exc):
                sock.close()
                raise
            # Else: a Unix socket has no such option.
        return sock

    def _dial(self, host: str, port: int, timeout: float | None, end: Deadline) -> socket.socket:
        """A socket that is connected to the first address of `host` that answers.

        Args:
            timeout: seconds for the lookup of the name, and for each address.
            end: when all of it must be over.
        """
        places = in_time(lambda limit: self._places(host, port, limit), end, timeout)
        while True:
            place = places.pop(0)
            if end.passed:
                raise DeadlinePassed("the deadline passed")
            try:
                # An address at a time: given the name, it would allow each address the time that is left for all.
                return in_time(partial(self._reach, place), end, timeout)
            except OSError as exc:
                if not places or is_from_outside_the_dial(exc):
                    raise
                if self._abort_requested:
                    raise CalledOff from None

    def _places(self, host: str, port: int, limit: Deadline) -> list[tuple[str, int]]:
        """The addresses of `host`. A mistake in a resolver of the user's, or its plugin, is a failure to connect.

        What comes up while another thread asks is none, but comes from outside, such as a time limit of a job queue.
        """
        made: list[Waiter] = []

        def new_waiter() -> Waiter:
            made.append(self._new_waiter())
            return made[0]

        try:
            return addresses(host, port, new_waiter, limit)
        except ResolverFailed as failed:
            exc = failed.args[0]
            if isinstance(exc, (OSError, ValueError, OverflowError)):
                exc = copy(exc)  # others may wait for the same, and each adds its own traceback
                raise why_not_connected(exc, f"{host}:{port}") from exc
        except Exception as raised:
            if made or isinstance(raised, (OSError, ValueError, OverflowError)) or is_of_a_handler(raised):
                raise
            exc = raised
        transient = isinstance(exc, (MemoryError, RuntimeError))  # what the machine lacks now it may have later
        # Of the exception only its class is told: its text may hold anything.
        raise ConnectFailed(f"cannot connect to {host}:{port}: {type(exc).__name__}", transient=transient) from exc

    def _reach(self, place: tuple[str, int], limit: Deadline) -> socket.socket:
        return socket.create_connection(place, seconds_left(limit), self.source_address)

    def _new_waiter(self) -> Waiter:
        waiter = self._waiter = Waiter()  # from here on abort() reaches it
        if self._abort_requested:
            waiter.call_off()
        return waiter

    def starttls(  # type: ignore[override]  # smtplib's differs between versions
        self,
        keyfile: str | None = None,
        certfile: str | None = None,
        context: ssl.SSLContext | None = None,
        *,
        deadline: float | Deadline | None = None,
    ) -> Answer:
        """Go on in TLS, or not at all: where it cannot be had, the connection is closed.

        Args:
            keyfile, certfile: a client certificate, for servers that ask for one.
            context: None verifies the server's certificate and name.
            deadline: seconds that all of it may take.
        Raises:
            NotSupported, StartTLSRefused, TLSFailed: and there is no connection any more.
        """
        context = tls_context(context, certfile, keyfile)  # first, for it may fail
        return self._secure(context, deadline=deadline)

    @exclusive
    def _secure(self, context: ssl.SSLContext, *, deadline: float | Deadline | None) -> Answer:
        self.ehlo_or_helo_if_needed()
        return self._drive(partial(self._start_tls, context, "starttls" in self.esmtp_features))

    def _start_tls(self, context: ssl.SSLContext, offered: bool, wire: Wire) -> Answer:
        try:
            if not offered:
                raise NotSupported("the server offers no STARTTLS", phase=Phase.TLS)
            reply = wire.command("STARTTLS")
            if reply.transient or reply.permanent:
                raise StartTLSRefused(*reply.pair)
            if reply.code != 220:
                raise BadReply(f"STARTTLS was answered {reply}")
            # What was said in the clear is not to be believed (RFC 3207 §4.2). Before there is TLS: an exception from
            # outside that comes afterwards finds nothing of it.
            self.helo_resp = self.ehlo_resp = None
            self.esmtp_features = {}
            self.does_esmtp = False
            self.sock = wire.start_tls(context, self._host)
            return reply.pair
        except BaseException as exc:
            wire.close()
            if isinstance(exc, MailError):
                exc.phase = Phase.TLS
            raise

    @property
    def is_encrypted(self) -> bool:
        """Whether what is said now is protected by TLS."""
        return isinstance(self.sock, ssl.SSLSocket)

    # ------------------------------------------------------------ logging in

    def login(
        self,
        user: str,
        password: str,
        *,
        initial_response_ok: bool = True,
        mechanism: str | None = None,
        deadline: float | Deadline | None = None,
    ) -> Answer:
        """Log in, by one mechanism and once.

        Args:
            mechanism: the SASL mechanism; None takes the best one offered. With XOAUTH2 and OAUTHBEARER the password is
                the token.
            deadline: seconds that all of it may take.
        Raises:
            InsecureLogin: no TLS, and the server is another machine (see `allow_plaintext_login`).
            NotSupported: the server offers no AUTH, or no mechanism known here.
            LoginRefused: wrong credentials, or not now.
        """
        secret = _login.Secret(password)
        del password  # no traceback of what follows shows it
        return self._log_in(user, secret, mechanism, initial_response_ok, deadline=deadline)

    @exclusive
    def _log_in(
        self,
        user: str,
        secret: _login.Secret,
        mechanism: str | None,
        initial_ok: bool,
        *,
        deadline: float | Deadline | None,
    ) -> Answer:
        self.ehlo_or_helo_if_needed()
        if "auth" not in self.esmtp_features:
            hint = "" if self.is_encrypted else " (many offer it only after STARTTLS)"
            raise NotSupported(f"the server offers no AUTH{hint}", phase=Phase.AUTH)
        if not (self.is_encrypted or self.allow_plaintext_login or self._peer_is_local()):
            raise InsecureLogin(f"no TLS: the credentials would cross the network to {self._host} in the clear")
        name = _login.choose(self.esmtp_features["auth"], mechanism, tls=self.is_encrypted)
        answerer = _login.mechanism(name, user, secret)
        return self._drive(lambda wire: _login.authenticate(wire, name, answerer, secret, initial_ok=initial_ok).pair)

    @exclusive
    def auth(self, mechanism: str, authobject: Any, *, initial_response_ok: bool = True) -> Answer:
        """Log in by a mechanism of one's own: `authobject(challenge)` gives the answer to each challenge."""

        def answerer(challenge: bytes | None) -> str | None:
            self._auth_challenge_count += 1  # smtplib's own mechanisms count on it
            answer: str | None = authobject() if challenge is None else authobject(challenge)
            return answer

        self._auth_challenge_count = 0
        name, initial_ok = mechanism.upper(), initial_response_ok
        return self._drive(lambda wire: _login.authenticate(wire, name, answerer, None, initial_ok=initial_ok).pair)

    def _peer_is_local(self) -> bool:
        sock = self.sock
        assert sock is not None
        try:
            peer = sock.getpeername()
        except OSError as exc:  # reset meanwhile, which says nothing about where the server is
            self._drop()
            if is_from_outside(exc, sock):
                raise
            raise ConnectionLost("the server closed the connection", phase=Phase.AUTH) from exc
        return not isinstance(peer, tuple) or is_loopback(str(peer[0]))  # the name of a Unix socket is no tuple

    # ------------------------------------------------------------ the end

    @exclusive_parting
    def quit(self, *, deadline: float | Deadline | None = None) -> Answer:
        """Say goodbye and close.

        Raises:
            Reentered: the reply to a command has not been read, and would be taken for the one to this; it is closed.
        """
        return self._together(self._quit, deadline=self._limits().quit)

    def _quit(self) -> Answer:
        try:
            if self._pipeline is not None and self._pipeline.said_goodbye:
                return self._connected().read_reply().pair
            return super().quit()
        finally:
            self._drop()

    @exclusive_parting
    def __exit__(self, *exc: Any) -> None:
        """Say goodbye and close.

        Raises:
            ReplyError: QUIT was answered anything but 221, as smtplib tells it; not where an error ended the block. It
                is about no message, so `may_resend` is False: each has had an answer of its own.
        """
        if self._state is State.AWAITING:
            self._drop()  # as for quit(); but what ended the block is not to be hidden
            return
        self._together(partial(self._leave, bool(exc and exc[0])), deadline=self._limits().quit)

    def _leave(self, after_error: bool) -> None:
        try:
            code, text = self.docmd("QUIT")
        except MailError as error:
            if not (after_error or isinstance(error, smtplib.SMTPServerDisconnected)):
                raise
            return
        finally:
            self.close()
        if code != 221 and not after_error:
            refused = ReplyError(code, text, f"QUIT was answered {Reply(code, text)}", phase=Phase.DONE)
            refused.outcome = Outcome.IN_DOUBT
            refused.transient = False
            raise refused


class SMTP(_Client):
    """`smtplib.SMTP` that threads can share."""


class SMTP_SSL(_Client, smtplib.SMTP_SSL):
    """`smtplib.SMTP_SSL` that threads can share: TLS from the first byte, verified by default.

    Args:
        context: None verifies the server's certificate and name.
        keyfile, certfile: a client certificate.
    """

    default_port = smtplib.SMTP_SSL_PORT

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        keyfile: str | None = None,
        certfile: str | None = None,
        timeout: float | None = UNSET,
        source_address: Any = None,
        context: ssl.SSLContext | None = None,
        *,
        timeouts: Timeouts | None = None,
        sync_root: Any = None,
    ) -> None:
        self.context: ssl.SSLContext = tls_context(context, certfile, keyfile)
        _Client.__init__(
            self, host, port, local_hostname, timeout, source_address, timeouts=timeouts, sync_root=sync_root
        )

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        wire = self._wire = self._new_wire(_Client._get_socket(self, host, port, timeout))  # abort() reaches it
        if self._abort_requested:
            wire.abort()
        return wire.shake_hands(self.context, self._host)


class LMTP(_Client, smtplib.LMTP):
    """`smtplib.LMTP` that threads can share. Each recipient's own final reply decides for it (RFC 2033 §4.2)."""

    default_port = smtplib.LMTP_PORT

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        source_address: Any = None,
        timeout: float | None = UNSET,
        *,
        timeouts: Timeouts | None = None,
        sync_root: Any = None,
    ) -> None:
        _Client.__init__(
            self, host, port, local_hostname, timeout, source_address, timeouts=timeouts, sync_root=sync_root
        )

    def _dial(self, host: str, port: int, timeout: float | None, end: Deadline) -> socket.socket:
        if not host.startswith("/"):
            return _Client._dial(self, host, port, timeout, end)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

        def reach(limit: Deadline) -> None:
            sock.settimeout(seconds_left(limit))
            sock.connect(host)

        try:
            in_time(reach, end, timeout)
        except BaseException:
            sock.close()
            raise
        return sock
