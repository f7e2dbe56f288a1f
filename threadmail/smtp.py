"""smtplib's clients, safe to share.

Owns `SMTP`, `SMTP_SSL` and `LMTP`: subclasses of the standard library's that a code base gets by changing one import
line. `with client.sync_root:` makes several calls one step. Guarantees, beyond those of `_dialogue`: TLS is verified,
and had or the connection closed; credentials cross no network in the clear unasked; addresses and content are checked
before the first byte of a message. Leaves connecting again, idle connections and retries to `Client`.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.message import Message
from typing import TYPE_CHECKING, Any

from . import _delivery, _login, _message
from ._address import mailbox, sender_mailbox
from ._connecting import tls_context, why_not_connected
from ._deadline import NEVER, Deadline
from ._dialogue import UNSET, Answer, Dialogue, State
from ._flatten import flatten, message_fields
from ._lookup import CalledOff, Waiter, addresses, default_local_hostname
from ._passage import Passage
from .config import Timeouts, is_loopback
from .envelope import Envelope
from .errors import (
    Aborted,
    BadReply,
    ConnectFailed,
    ConnectionLost,
    ConnectTimedOut,
    GreetingRefused,
    InsecureLogin,
    InvalidEnvelope,
    MailError,
    NotSupported,
    Phase,
    RecipientsRefused,
    ReplyTimedOut,
    StartTLSRefused,
)
from .receipt import Receipt
from .transaction import Terms, Transaction

if TYPE_CHECKING:
    from _typeshed import SizedBuffer

_NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Client(Dialogue):
    """What the three classes have in common."""

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
        with self._step(deadline):
            self._drop()
            self._abort_requested = False
            self.helo_resp = self.ehlo_resp = None
            self.esmtp_features = {}
            self.does_esmtp = False
            if source_address:
                self.source_address = source_address
            if not port and host.count(":") == 1 and not host.startswith("/"):
                host, _, given = host.partition(":")
                if not given.isdecimal():
                    raise ConnectFailed(f"nonnumeric port {given!r}", transient=False)
                port = int(given)
            port = port or self.default_port
            self._host = host
            sys.audit("smtplib.connect", self, host, port)
            self.sock = self._get_socket(host, port, self._limits().connect)
            wire = self._connected()  # from here on abort() reaches it
            if self._abort_requested:
                wire.abort()
            try:
                answer = self.getreply()
            except ReplyTimedOut as error:
                raise ConnectTimedOut(f"{host}:{port} accepted the connection but sent no greeting") from error
            except BadReply as error:
                stranger = BadReply(f"{host}:{port} is no SMTP server: {error}", phase=Phase.CONNECT)
                stranger.transient = False
                raise stranger from error
            except MailError as error:
                error.phase = Phase.CONNECT
                raise
            if self.debuglevel > 0:
                self._debug("connect:", repr(answer[1]))
            return answer

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        end = self._deadline
        end.check("connecting")
        if self.debuglevel > 0:
            self._debug("connect: to", (host, port), self.source_address)
        try:
            sock = self._dial(host, port, timeout, end)
        except CalledOff:
            raise Aborted("the call was ended by abort()", phase=Phase.CONNECT) from None
        except (OSError, ValueError, OverflowError) as exc:
            raise why_not_connected(exc, host if host.startswith("/") else f"{host}:{port}") from exc
        sock.settimeout(socket.getdefaulttimeout() if self.timeout is UNSET else self.timeout)
        try:
            sock.setsockopt(*_NO_DELAY)  # content and lone dot in two segments cost 44 ms with Nagle's algorithm
        except OSError:
            pass  # a Unix socket has no such option
        return sock

    def _dial(self, host: str, port: int, timeout: float | None, end: Deadline) -> socket.socket:
        """A socket that is connected to the first address of `host` that answers.

        Args:
            timeout: seconds for the lookup of the name, and for each address.
            end: when all of it must be over.
        """
        places = addresses(host, port, self._new_waiter, end.within(timeout))
        while True:
            place = places.pop(0)
            left = end.within(timeout).remaining()
            if left == 0.0:
                raise TimeoutError("the deadline passed")
            try:
                # An address at a time: given the name, it would allow each address the time that is left for all.
                return socket.create_connection(place, left, self.source_address)
            except OSError:
                if not places:
                    raise
                if self._abort_requested:
                    raise CalledOff from None

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
        with self._step(deadline):
            self.ehlo_or_helo_if_needed()
            offered = "starttls" in self.esmtp_features
            with self._driving() as wire:
                try:
                    if not offered:
                        raise NotSupported("the server offers no STARTTLS", phase=Phase.TLS)
                    reply = wire.command("STARTTLS")
                    if reply.transient or reply.permanent:
                        raise StartTLSRefused(*reply.pair)
                    if reply.code != 220:
                        raise BadReply(f"STARTTLS was answered {reply}")
                    self.sock = wire.start_tls(context, self._host)
                except BaseException as exc:
                    wire.close()
                    if isinstance(exc, MailError):
                        exc.phase = Phase.TLS
                    raise
            # What was said in the clear is not to be believed (RFC 3207 §4.2).
            self.helo_resp = self.ehlo_resp = None
            self.esmtp_features = {}
            self.does_esmtp = False
            return reply.pair

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
        with self._step(deadline):
            self.ehlo_or_helo_if_needed()
            if "auth" not in self.esmtp_features:
                hint = "" if self.is_encrypted else " (many offer it only after STARTTLS)"
                raise NotSupported(f"the server offers no AUTH{hint}", phase=Phase.AUTH)
            if not (self.is_encrypted or self.allow_plaintext_login or self._peer_is_local()):
                raise InsecureLogin(f"no TLS: the credentials would cross the network to {self._host} in the clear")
            name = _login.choose(self.esmtp_features["auth"], mechanism, tls=self.is_encrypted)
            answerer = _login.mechanism(name, user, secret)
            with self._driving() as wire:
                return _login.authenticate(wire, name, answerer, secret, initial_ok=initial_response_ok).pair

    def auth(self, mechanism: str, authobject: Any, *, initial_response_ok: bool = True) -> Answer:
        """Log in by a mechanism of one's own: `authobject(challenge)` gives the answer to each challenge."""

        def answerer(challenge: bytes | None) -> str | None:
            self._auth_challenge_count += 1  # smtplib's own mechanisms count on it
            answer: str | None = authobject() if challenge is None else authobject(challenge)
            return answer

        with self._step():
            self._auth_challenge_count = 0
            with self._driving() as wire:
                return _login.authenticate(wire, mechanism.upper(), answerer, None, initial_ok=initial_response_ok).pair

    def _peer_is_local(self) -> bool:
        assert self.sock is not None
        try:
            peer = self.sock.getpeername()
        except OSError as exc:  # reset meanwhile, which says nothing about where the server is
            self._drop()
            raise ConnectionLost("the server closed the connection", phase=Phase.AUTH) from exc
        return not isinstance(peer, tuple) or is_loopback(str(peer[0]))  # the name of a Unix socket is no tuple

    # ------------------------------------------------------------ mail

    def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Sequence[str],
        msg: SizedBuffer | str,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        *,
        deadline: float | Deadline | None = None,
    ) -> dict[str, Answer]:
        """Send one message, as smtplib's `sendmail`: the refused recipients come back, each with (code, text).

        Line ends become CRLF (bytes too), addresses are checked before the first byte, and every error carries
        `outcome` and `receipt`.

        Args:
            deadline: seconds that waiting for the client and all of the transaction may take.
        Raises:
            MailError: nobody got the message, or (`outcome` IN_DOUBT) nobody knows.
        """
        given = [to_addrs] if isinstance(to_addrs, str) else list(to_addrs)
        envelope = Envelope(from_addr, given, _message.as_bytes(msg))
        with self._step(deadline):
            self._require_no_transaction()  # before the EHLO, which would end it
            self.ehlo_or_helo_if_needed()
            asked = {option.lower() for option in mail_options}
            if envelope.smtputf8 and not self.esmtp_features.keys() | asked >= {"smtputf8"}:
                # smtplib's own error here, for which callers may wait; it comes before the first byte.
                "".join([envelope.sender, *envelope.recipients]).encode("ascii")
            terms = Terms(self.esmtp_features, mail_options=mail_options, rcpt_options=rcpt_options)
            try:
                receipt = self.transact(envelope, terms)
            except RecipientsRefused as error:
                error.recipients = _as_given(error.recipients, given)
                error.args = (error.recipients,)
                raise
        return _as_given({r: reply.pair for r, reply in receipt.refused.items()}, given)

    def transact(
        self,
        envelope: Envelope,
        terms: Terms | None = None,
        *,
        deadline: float | Deadline | None = None,
        before_mail: Callable[[Transaction], None] | None = None,
        before_final: Callable[[Envelope], None] | None = None,
    ) -> Receipt:
        """Send an envelope and return its receipt.

        Args:
            terms: on which terms; None uses every extension the server offers.
            deadline: seconds that waiting for the client and all of the transaction may take.
            before_mail, before_final: as in `_delivery.send`.
        Raises:
            MailError: with a receipt.
        """
        with self._step(deadline):
            return self._transact(envelope, terms, NEVER, before_mail=before_mail, before_final=before_final)

    def _transact(
        self,
        envelope: Envelope,
        terms: Terms | None,
        end: Deadline,
        *,
        before_mail: _delivery.BeforeMail | None,
        before_final: _delivery.BeforeFinal | None,
        follow: _delivery.Follow | None = None,
    ) -> Receipt:
        """As `transact`, for who holds `sync_root` and, with `follow`, uses this client alone."""
        self._require_turn()
        self._require_no_transaction()
        self.ehlo_or_helo_if_needed()
        if terms is None or terms.lmtp != (self.ehlo_msg == "lhlo"):
            terms = replace(terms or Terms(self.esmtp_features), lmtp=self.ehlo_msg == "lhlo")
        wire = self._connected()
        if self._pipeline is None or self._pipeline.wire is not wire:
            self._pipeline = _delivery.Pipeline(wire)
        outer = wire.deadline
        self._state = State.DRIVING
        try:
            if end is not NEVER:
                wire.deadline = outer.within(end)
            return self._pipeline.send(
                envelope, terms, before_mail=before_mail, before_final=before_final, follow=follow
            )
        finally:
            self._state = State.IDLE
            wire.deadline = outer
            if not wire.is_open:
                self._drop()

    @property
    def _aboard(self) -> Passage | None:
        """The message that was begun while the last one was under way: the next call must be for it."""
        return self._pipeline.aboard[0] if self._pipeline is not None and self._pipeline.aboard else None

    def send_message(
        self,
        msg: _message.AnyMessage,
        from_addr: str | None = None,
        to_addrs: str | Sequence[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        *,
        deadline: float | Deadline | None = None,
    ) -> dict[str, Answer]:
        """Send a message object, as smtplib's `send_message`. It is written out before the client is locked.

        Raises:
            MailError: as `sendmail`; also no sender, or a header field that holds a line end.
        """
        end = Deadline.after(deadline)
        if not isinstance(msg, Message):
            raise InvalidEnvelope(f"a message must be an email.message.Message, not {type(msg).__name__}")
        fields = message_fields(msg)
        by_header = _message.sender_and_recipients(fields) if None in (from_addr, to_addrs) else None
        if by_header is not None:
            from_addr = by_header[0] if from_addr is None else from_addr
            to_addrs = by_header[1] if to_addrs is None else to_addrs
        if from_addr is None or to_addrs is None:
            raise InvalidEnvelope("the message has no sender: neither Sender nor From names one")
        given = [to_addrs] if isinstance(to_addrs, str) else list(to_addrs)
        # As they go out: a display name is not written, and a domain has its A-label.
        bare = [sender_mailbox(from_addr), *(mailbox(r, "recipient") for r in given)]
        international = not all(address.isascii() for address in bare)
        content = flatten(msg, utf8=international, fields=fields)
        with self._step(end):
            self._require_no_transaction()
            self.ehlo_or_helo_if_needed()
            if international:
                if not self.has_extn("smtputf8"):
                    raise NotSupported("an address beyond ASCII needs SMTPUTF8, which the server does not offer")
                mail_options = (*mail_options, "SMTPUTF8", "BODY=8BITMIME")
            return self.sendmail(from_addr, given, content, mail_options, rcpt_options)

    # ------------------------------------------------------------ the end

    def quit(self, *, deadline: float | Deadline | None = None) -> Answer:
        """Say goodbye and close."""
        with self._step(deadline), self.within(self._limits().quit):
            try:
                return super().quit()
            finally:
                self._drop()

    def __exit__(self, *exc: Any) -> None:
        with self._step(), self.within(self._limits().quit):
            super().__exit__(*exc)


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
        **settings: Any,
    ) -> None:
        self.context = tls_context(context, certfile, keyfile)
        _Client.__init__(self, host, port, local_hostname, timeout, source_address, **settings)

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
        **settings: Any,
    ) -> None:
        _Client.__init__(self, host, port, local_hostname, timeout, source_address, **settings)

    connect = _Client.connect

    def _dial(self, host: str, port: int, timeout: float | None, end: Deadline) -> socket.socket:
        if not host.startswith("/"):
            return _Client._dial(self, host, port, timeout, end)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(end.within(timeout).remaining() or 0.001)
            sock.connect(host)
        except BaseException:
            sock.close()
            raise
        return sock


def _as_given(replies: dict[str, Answer], given: Sequence[str]) -> dict[str, Answer]:
    """`replies` under the addresses as the caller wrote them, which is where code written for smtplib looks."""
    if not replies or all(r in given for r in replies):
        return replies
    written = {recipient: name for name in reversed(given) for recipient in Envelope("", name, b"x").recipients}
    return {written[r]: answer for r, answer in replies.items()}
