"""What can go wrong, in the field's own words.

Owns the vocabulary of failure: where a transaction stood (`Phase`), what became of the message (`Outcome`)
and every exception threadmail raises. Each one answers the two questions a caller has after a failure: *may I
send it again* (`may_resend`) and *what does the recipient have* (`outcome`); `receipt` has the details where a
message was under way. `transient` alone says only that another try may succeed, not that it is safe.

Guarantees: each error is a `smtplib.SMTPException`, and is smtplib's own class wherever smtplib has one, so the
`except` clauses of code written for smtplib keep working. Time-outs are also `TimeoutError`, lost connections
`ConnectionError`, bad arguments `ValueError`, use after close `RuntimeError`. Each pickles, and its text is one
line that is safe to print. None holds a secret.
"""

from __future__ import annotations

import enum
import smtplib
import socket
import ssl
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .receipt import Receipt, Report


class Phase(enum.Enum):
    """Where a transaction stood. Members are ordered as a session passes through them."""

    CONNECT = "connect"
    TLS = "tls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    FINAL = "final"  # the end of data was handed over, its reply is awaited: the only place of doubt
    DONE = "done"


#: The phases before a session is ready: a failure in one of them says something about the server, not about a message.
CONNECTING = (Phase.CONNECT, Phase.TLS, Phase.AUTH)

#: The code of a server that closes the connection, whatever it was asked (RFC 5321 §3.8, §4.2.1).
CLOSING = 421


class Outcome(enum.Enum):
    """What became of a message, as far as anybody on this side can know.

    The server takes responsibility with its reply to the end of data (RFC 5321 §4.2.5, §6.1). Lost before the end of
    data was handed over: surely not sent. Lost after it, before the whole reply: in doubt.
    """

    SENT = "sent"  # every recipient accepted
    PARTIAL = "partial"  # some accepted, the others refused
    NOT_SENT = "not sent"  # surely nobody
    IN_DOUBT = "in doubt"


class MailError(smtplib.SMTPException):
    """Base of every error of threadmail.

    Attributes:
        phase: where the transaction stood, or None where there was none.
        transient: whether a later try of the same thing may succeed. It does not say that one is safe: where the
            outcome is IN_DOUBT, another try may send twice. `may_resend` says both.
        outcome: what became of the message; NOT_SENT unless said otherwise.
        receipt: the receipt of the message under way, or None.
        deadline_passed: only the caller's own deadline ended it, which says nothing about the server.
    """

    phase: Phase | None = None
    transient: bool = False
    outcome: Outcome = Outcome.NOT_SENT
    receipt: Receipt | None = None
    deadline_passed: bool = False
    _of_hook: bool = False  # a hook of the caller raised it, so it tells nothing about the connection under way

    @property
    def may_resend(self) -> bool:
        """Whether to send the message again is safe (surely nobody has it) and of use (it may succeed).

        The message as it was given. Whose recipients may be tried by themselves, `Receipt.deferred` says: also those
        whom the server put off where it refused the content for the others.
        """
        return self.transient and self.outcome is Outcome.NOT_SENT

    def __init__(self, message: str, *, phase: Phase | None = None, transient: bool | None = None) -> None:
        # Not super(): smtplib's classes, which come later in the order of bases, take other arguments.
        message = printable(message)  # it may quote a server, an address or a host name
        smtplib.SMTPException.__init__(self, message)
        self.message = message
        if phase is not None:
            self.phase = phase
        if transient is not None:
            self.transient = transient

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def to_dict(self) -> dict[str, Any]:
        """The error as data that JSON can hold, without its receipt, report and cause. `from_dict` reads it back."""
        data: dict[str, Any] = {
            "class": next(cls.__name__ for cls in type(self).__mro__ if _of_this_module(cls.__name__) is cls),
            "message": self.message,
            "phase": self.phase.value if self.phase else None,
            "transient": self.transient,
            "outcome": self.outcome.value,
            "deadline_passed": self.deadline_passed,
        }
        if isinstance(self, ReplyError):
            text = self.smtp_error
            # Octet by octet; a caller may have put text there, as smtplib's class allows.
            data["reply"] = [self.smtp_code, text.decode("latin-1") if isinstance(text, bytes) else text]
        if isinstance(self, SenderRefused):
            data["sender"] = self.sender
        if isinstance(self, LoginRefused):
            data["pair_is_fixed"] = self.pair_is_fixed
        if isinstance(self, RecipientsRefused):
            data["recipients"] = {r: [code, text.decode("latin-1")] for r, (code, text) in self.recipients.items()}
        if isinstance(self, OSError) and self.errno is not None:
            data["errno"] = self.errno
        return data

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> MailError:
        """The error that `to_dict` wrote: of the same class, or, where a later version knows that, a MailError.

        Raises:
            KeyError, TypeError, ValueError: the data is not what `to_dict` writes.
        """
        cls = _of_this_module(data["class"]) or MailError
        args: tuple[Any, ...] = (data["message"],)
        state: dict[str, Any] = {"message": data["message"], "transient": bool(data["transient"])}
        if issubclass(cls, ReplyError):
            code, text = data["reply"]
            args = (code, text.encode("latin-1"))
            state.update(smtp_code=code, smtp_error=args[1])
        if issubclass(cls, SenderRefused):
            args = (*args, data["sender"])
            state["sender"] = data["sender"]
        if issubclass(cls, LoginRefused):
            state["pair_is_fixed"] = bool(data.get("pair_is_fixed", True))  # earlier versions wrote none
        if issubclass(cls, RecipientsRefused):
            refused = {r: (code, text.encode("latin-1")) for r, (code, text) in data["recipients"].items()}
            args, state["recipients"] = (refused,), refused
        if data.get("errno") is not None and issubclass(cls, OSError):
            state["errno"] = data["errno"]
        error = _rebuild(cls, args)
        for name, value in state.items():
            setattr(error, name, value)
        error.phase = Phase(data["phase"]) if data["phase"] else None
        error.outcome = Outcome(data["outcome"])
        error.deadline_passed = bool(data["deadline_passed"])
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError's own __reduce__ calls the class with `args`, which fits none of the signatures below.
        # The state travels apart from the arguments, so that an error and its receipt may point at each other.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[MailError], args: tuple[object, ...]) -> MailError:
    error = cls.__new__(cls, *args)
    error.args = args
    return error


def _of_this_module(name: str) -> type[MailError] | None:
    cls = globals().get(name)
    return cls if isinstance(cls, type) and issubclass(cls, MailError) and cls is not DeliveryFailed else None


def of_hook(error: MailError) -> MailError:
    """What a hook raised, as it is told of a message that is surely not sent: a copy.

    The hook's own object is none of ours: it may be that of another message, with its receipt, or be raised once more.
    What it says of a connection, it says of none of ours.
    """
    told = kept_copy(error)
    told._of_hook = True
    told.outcome = Outcome.NOT_SENT
    return told.with_traceback(error.__traceback__)


def call_hook(hook: Callable[..., object], *args: object) -> None:
    """Call a hook that can stop a message. A MailError that it raises comes out as `of_hook` has it."""
    try:
        hook(*args)
    except MailError as error:
        raise of_hook(error) from error.__cause__


def mark_as_of_hook(exc: Exception) -> None:
    """Note that a hook raised it, for whoever must tell that from what comes from outside. It stays what it is."""
    exc.__dict__["_of_hook"] = True


def is_of_hook(exc: Exception) -> bool:
    return bool(exc.__dict__.get("_of_hook"))


def detach(error: MailError) -> MailError:
    """Cut `error` off from the frames it passed through, so that keeping it keeps no content and no secret alive."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        exc = todo.pop()
        if exc is None or id(exc) in seen:
            continue
        seen.add(id(exc))
        exc.__traceback__ = None
        todo += [exc.__cause__, exc.__context__]
    return error


def kept_copy(error: MailError) -> MailError:
    """For others to be told, without what hangs on the one that its caller gets: frames, a receipt."""
    kept = copy(error)
    kept.receipt = None
    return kept


# ---------------------------------------------------------------- arguments


class InvalidEnvelope(MailError, ValueError):
    """An address, a header or the content is not fit to be sent. Raised before a byte is written.

    Or before the end of data, of a file that changes while it is sent.
    """


class InvalidAddress(InvalidEnvelope):
    """A sender or recipient is no mailbox (RFC 5321 §4.1.2), or would smuggle something past one."""


class InvalidConfig(MailError, ValueError):
    """A server URL or a setting is wrong. The message never quotes a password."""


class Closed(MailError, RuntimeError):
    """The client, pool or sender was closed; nothing was written."""


class Reentered(MailError, RuntimeError):
    """This very thread is in the middle of a dialogue on this client, or of a login with the same credentials.

    An RLock lets its owner pass. Without this error a log handler that mails through the client whose command it logs
    would write into the open transaction, and both messages would be lost. Nothing was written.
    """


#: What to do instead of using a client in the middle of a call on it.
INSTEAD = "a log handler or callback must use a client of its own, or ThreadedSender.submit()"


class QueueFull(MailError, RuntimeError):
    """The queue has no place, and a callback of the sender asked for one: it would wait for itself."""

    transient = True


# ---------------------------------------------------------------- time


class TimedOut(MailError, TimeoutError):
    """A deadline passed: waiting for a lock, a lease, a place in the queue, or for the peer."""

    transient = True


# ---------------------------------------------------------------- connecting


class ConnectFailed(MailError, ConnectionError):
    """No session could be opened: the cause stands in the message, and `errno` where the system gave one."""

    phase: Phase | None = Phase.CONNECT
    transient = True

    def __init__(
        self, message: str, *, errno: int | None = None, phase: Phase | None = None, transient: bool | None = None
    ) -> None:
        super().__init__(message, phase=phase, transient=transient)
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), {**self.__dict__, "errno": self.errno}


class ConnectionRefused(ConnectFailed, ConnectionRefusedError):
    """Nobody listens on that port."""


class ConnectTimedOut(ConnectFailed, TimedOut):
    """No connection, or no greeting, within the time allowed."""


class HostNotFound(ConnectFailed, socket.gaierror):
    """The name of the server cannot be resolved."""


class TLSFailed(ConnectFailed, ssl.SSLError):
    """The TLS handshake failed. Permanent where the certificate is at fault."""

    phase: Phase | None = Phase.TLS


# ---------------------------------------------------------------- the connection under way


class ConnectionLost(MailError, smtplib.SMTPServerDisconnected, ConnectionError):
    """The connection ended before the reply was whole. It is closed."""

    transient = True


class NotConnected(ConnectionLost):
    """There is no connection: `connect()` was not called, or the last dialogue ended it. Nothing was written."""


class Aborted(ConnectionLost):
    """`abort()` or `close()` dropped the connection under the call. Nobody retries on its own what was called off."""

    transient = False


class ReplyTimedOut(ConnectionLost, TimedOut):
    """The peer did not read or answer in time. The connection is closed: a late reply would answer another command."""


# ---------------------------------------------------------------- replies


class ReplyError(MailError, smtplib.SMTPResponseException):
    """The server answered with a refusal. `smtp_code` and `smtp_error` (bytes) as in smtplib.

    `transient` follows the first digit (RFC 5321 §4.2.1): 4yz may succeed later, 5yz will not.
    """

    def __init__(self, code: int, text: bytes | str, message: str | None = None, *, phase: Phase | None = None) -> None:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        MailError.__init__(self, message or f"the server answered {code} {printable(raw)}", phase=phase)
        self.args: tuple[int, bytes] | tuple[int, bytes, str] = (code, raw)
        self.smtp_code = code
        self.smtp_error: bytes = raw
        self.transient: bool = 400 <= code <= 499


class BadReply(ReplyError, smtplib.SMTPServerDisconnected):
    """What came is no SMTP reply, or nobody asked for it. The connection is closed, for its order is lost."""

    def __init__(self, message: str, *, phase: Phase | None = None) -> None:
        super().__init__(500, message, message, phase=phase)
        self.transient: bool = True


class GreetingRefused(ReplyError, smtplib.SMTPConnectError):
    """The server does not want this client, now (4yz) or at all (5yz)."""

    phase: Phase | None = Phase.CONNECT


class HeloRefused(ReplyError, smtplib.SMTPHeloError):
    """EHLO and HELO were both refused; or LHLO, under LMTP, where nothing else is said."""

    phase: Phase | None = Phase.CONNECT


class StartTLSRefused(ReplyError):
    """STARTTLS was answered with a refusal; the connection is closed, for plaintext was not asked for."""

    phase: Phase | None = Phase.TLS


class NotSupported(MailError, smtplib.SMTPNotSupportedError):
    """The message or the settings need an extension that the server does not offer."""


class LoginRefused(ReplyError, smtplib.SMTPAuthenticationError):
    """The server refused the login. One refusal is one attempt: nothing else is tried with the same credentials.

    Attributes:
        pair_is_fixed: the credentials are those of the config; False: a callable gave them, and may give others.
    """

    phase: Phase | None = Phase.AUTH
    pair_is_fixed: bool = True


class InsecureLogin(MailError):
    """Credentials would cross the network in the clear. Nothing was written."""

    phase: Phase | None = Phase.AUTH


class SenderRefused(ReplyError, smtplib.SMTPSenderRefused):
    """MAIL was refused. `sender` is the address."""

    phase: Phase | None = Phase.MAIL

    def __init__(self, code: int, text: bytes | str, sender: str, message: str | None = None) -> None:
        super().__init__(code, text, message)
        self.args: tuple[int, bytes, str] = (code, self.smtp_error, sender)
        self.sender = sender


class MessageTooLarge(SenderRefused):
    """The message is larger than the SIZE the server announced (RFC 1870). Nothing of it was written."""


class DataRefused(ReplyError, smtplib.SMTPDataError):
    """DATA, or the message itself, was refused."""

    phase: Phase | None = Phase.DATA


class RecipientsRefused(MailError, smtplib.SMTPRecipientsRefused):
    """No recipient was accepted. `recipients` maps each refused address to smtplib's (code, text) pair."""

    phase: Phase | None = Phase.RCPT

    def __init__(self, recipients: Mapping[str, tuple[int, bytes]]) -> None:
        first = "; ".join(f"{addr}: {code} {printable(text)}" for addr, (code, text) in list(recipients.items())[:3])
        more = f" and {len(recipients) - 3} more" if len(recipients) > 3 else ""
        MailError.__init__(self, f"no recipient was accepted: {first}{more}")
        self.recipients: dict[str, tuple[int, bytes]] = dict(recipients)
        self.args: tuple[dict[str, tuple[int, bytes]]] = (self.recipients,)
        self.transient: bool = any(400 <= code <= 499 for code, _ in recipients.values())


# ---------------------------------------------------------------- batches


class DeliveryFailed(MailError):
    """Not every message of a batch was sent. `report` has the receipts.

    Its answers are those of the whole batch. `outcome`: IN_DOUBT where any message is in doubt, else PARTIAL where
    somebody has any of them, else NOT_SENT. `transient`: whether each of those that failed may succeed later. So
    `may_resend` says whether the batch may be sent again as it was; which of its messages may, each receipt says.
    `phase`, `deadline_passed` and `receipt` are those of one message, and stay as for none.
    """

    def __init__(self, message: str, report: Report) -> None:
        # A copy keeps what the report says now; nothing is computed later, when an error may be told of elsewhere.
        failed = [receipt.error for receipt in report if receipt.outcome is not Outcome.SENT]
        super().__init__(message, transient=bool(failed) and all(error and error.transient for error in failed))
        self.report = report
        self.outcome: Outcome = _of_all({receipt.outcome for receipt in report})


def _of_all(outcomes: set[Outcome]) -> Outcome:
    """What became of several messages, as one: what is not surely so for each is not told of all."""
    if Outcome.IN_DOUBT in outcomes:
        return Outcome.IN_DOUBT
    return Outcome.PARTIAL if outcomes & {Outcome.SENT, Outcome.PARTIAL} else Outcome.NOT_SENT


def printable(text: bytes | str) -> str:
    """One line that is safe to print: server text may hold control characters that drive a terminal."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else " " if c in "\r\n\t" else c.encode("unicode_escape").decode() for c in text
    )
