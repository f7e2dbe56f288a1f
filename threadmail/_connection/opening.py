"""From a config to a session that is ready for mail.

Owns the steps between dialling and the first message: greeting, TLS, EHLO, login. Guarantees: what comes out is as
secure and as logged in as the config asks for, or there is an error of ours that says in which phase it failed, also
where the user's own raised: a callable for credentials, a TLS context, a resolver. What comes from outside, a time
limit of a job queue say, stays what it is, and is no failure of the server. No pair of user name and password that the
server refused is offered to it again for a while, and by one thread first: as long as somebody offers a pair, the
others wait for the answer, each in its own dial and no longer than a command may take.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from .._known.refused_logins import mark
from .._protocol.transaction import Terms
from .._runtime.deadline import NEVER, Deadline, now
from .._runtime.guard import holding
from .._runtime.outside import is_of_a_handler
from .._session.login import Secret
from .._transport.lookup import Waiter, default_local_hostname
from ..config import Security, ServerConfig
from ..errors import (
    CONNECTING,
    Aborted,
    ConnectFailed,
    GreetingRefused,
    InvalidConfig,
    LoginRefused,
    MailError,
    Phase,
    Reentered,
    TimedOut,
    call_hook,
    mark_as_of_hook,
)
from ..retry import LOGIN_PAUSE
from ..smtp import LMTP, SMTP, SMTP_SSL

AnySMTP: TypeAlias = SMTP | SMTP_SSL | LMTP

#: Seconds after which whoever waits for another one's login looks whether his own call was called off.
LOOK = 0.5

#: Descriptors and memory; any other number may be that of somebody's time limit.
_LACKING = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])


class Pair(NamedTuple):
    """A user name, and a password or token in its wrapper."""

    user: str
    secret: Secret

    @property
    def mark(self) -> bytes:
        return mark(self.user, self.secret.reveal())


def unconnected(
    config: ServerConfig, sync_root: object, end: Deadline = NEVER, waiter: Callable[[], Waiter] = Waiter
) -> AnySMTP:
    """The client that `config` asks for, not connected yet, guarded by the lock of its owner.

    Args:
        end: when the name of this machine must be known, where `config` has none.
        waiter: makes what waits for that; who knows it can call it off.
    Raises:
        CalledOff: somebody did.
    """
    smtp = _made(config, sync_root, config.local_hostname or default_local_hostname(end, waiter))
    smtp._for_one_dial = True
    return smtp


def _made(config: ServerConfig, sync_root: object, name: str) -> AnySMTP:
    if config.lmtp:
        return LMTP("", 0, name, timeouts=config.timeouts, sync_root=sync_root)
    if config.security is Security.TLS:
        context = config.make_ssl_context()
        return SMTP_SSL("", 0, name, timeouts=config.timeouts, sync_root=sync_root, context=context)
    return SMTP("", 0, name, timeouts=config.timeouts, sync_root=sync_root)


def pair_to_offer(config: ServerConfig) -> Pair | None:
    """The credentials, if they have to be had before the server is dialled: where it refused some not long ago.

    Raises:
        LoginRefused: they are what it refused. Nobody was dialled.
        MailError: there are none.
    """
    if not config.needs_login or not config._refused_logins.any(now()):
        return None
    pair = _credentials(config)
    refusal = config._refused_logins.refusal(pair.mark, now())
    if refusal is not None:
        refusal.pair_is_fixed = config.credentials is None
        raise refusal
    return pair


def open_session(smtp: AnySMTP, config: ServerConfig, end: Deadline, pair: Pair | None = None) -> None:
    """Connect, secure the connection and log in, as `config` says.

    Args:
        pair: the credentials, if they have been had already.
    Raises:
        MailError: with the phase; what the machine lacked, or the user's own code raised, is its cause.
        Exception: what comes from outside, as it is.
    """
    phase = Phase.CONNECT

    def opened() -> None:
        nonlocal phase
        greeting = smtp.connect(config.host, config.port, config.source_address)
        if greeting[0] != 220:
            raise GreetingRefused(*greeting)
        if config.security is Security.STARTTLS:
            phase = Phase.TLS
            smtp.starttls(context=config.make_ssl_context())
            phase = Phase.CONNECT
        smtp.ehlo_or_helo_if_needed()
        if config.needs_login:
            phase = Phase.AUTH
            _log_in(smtp, config, pair or _credentials(config), end)

    try:
        smtp._together(opened, deadline=end)
    except MailError as error:
        error.phase = error.phase or phase
        raise
    except Exception as exc:
        if not is_lack(exc):
            raise
        raise as_ours(exc, config, phase) from exc


def terms_of(smtp: AnySMTP, config: ServerConfig) -> Terms:
    """What is agreed with the server, now that the session is open."""
    offered = {name: v for name, v in smtp.esmtp_features.items() if name not in config.without}
    chunked = config.window > 1 and offered.keys() >= {"pipelining", "chunking"}
    return Terms(
        extensions=offered,
        lmtp=config.lmtp,
        server=config.address,
        window=config.window if chunked and not config.lmtp else 1,
        riding=config._riding,
    )


def ask(hook: Callable[..., None], *args: object) -> None:
    """Call a hook of a dial. Whatever it raises was met before the message, and is not heard once more."""
    try:
        call_hook(hook, *args)
    except MailError as error:
        if error.phase not in (None, *CONNECTING, Phase.MAIL):
            error.phase = Phase.CONNECT  # no MAIL was answered here
        raise
    except Exception as exc:
        if not is_of_a_handler(exc):
            mark_as_of_hook(exc)
        raise


def is_lack(exc: Exception) -> bool:
    """Whether it says what the machine has not got. Else it comes from outside, a time limit say, and stays itself.

    It says nothing about the server then. What the user's own code raises is told as such where that is called.
    """
    if is_of_a_handler(exc):
        return False
    return isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno in _LACKING)


def as_ours(exc: Exception, config: ServerConfig, phase: Phase) -> ConnectFailed:
    """The error of ours for what the machine lacks while a server is dialled; it may have it later.

    Of the exception only its class is told: its text may hold anything.
    """
    return ConnectFailed(f"cannot connect to {config.address}: {type(exc).__name__}", phase=phase, transient=True)


def _log_in(smtp: AnySMTP, config: ServerConfig, pair: Pair, end: Deadline) -> None:
    smtp.allow_plaintext_login = config.allow_plaintext_login
    try:
        _offer_in_turn(smtp, config, pair, end)
    except LoginRefused as error:
        if config.credentials is None or error.transient or smtp.sock is None:
            raise
        another = _credentials(config)  # the token may just have expired
        if another.mark == pair.mark:
            raise
        _offer_in_turn(smtp, config, another, end)


def _offer_in_turn(smtp: AnySMTP, config: ServerConfig, pair: Pair, end: Deadline) -> None:
    """Offer the pair; with nobody beside who offers it as well, if the server has not taken it a moment ago."""
    known, marked = config._refused_logins, pair.mark
    turn = known.turn(marked)
    patience = Deadline.after(config.timeouts.command)
    wire = smtp._wire
    while not (known.is_proven(marked, now()) or patience.passed):
        end.check("another thread logged in")
        if wire is not None and wire.aborted:
            raise Aborted("the call was ended by abort()")
        if turn._is_owned():  # a log handler that mails, in the middle of what is said to the same pair
            raise Reentered("this thread is in the middle of a login with the same credentials", phase=Phase.AUTH)
        is_mine = False
        try:
            with holding(turn, end.within(patience).within(LOOK)):
                is_mine = True
                if not known.is_proven(marked, now()):
                    _offer(smtp, config, pair)
                    return
        except TimedOut:
            if is_mine:
                raise
    _offer(smtp, config, pair)


def _offer(smtp: AnySMTP, config: ServerConfig, pair: Pair) -> None:
    known, marked = config._refused_logins, pair.mark
    refusal = known.refusal(marked, now())  # it may have come since this dial began
    if refusal is not None:
        refusal.pair_is_fixed = config.credentials is None
        raise refusal
    try:
        smtp.login(pair.user, pair.secret.reveal(), mechanism=config.auth)
    except LoginRefused as error:
        error.pair_is_fixed = config.credentials is None
        if not error.transient:
            known.bar(marked, error, now() + LOGIN_PAUSE, now())
        raise
    known.took(marked, now())


def _credentials(config: ServerConfig) -> Pair:
    if config.credentials is None:
        assert config.username is not None
        assert config.password is not None
        return Pair(config.username, Secret(config.password))
    try:
        given: object = config.credentials()
    except Exception as exc:
        if is_of_a_handler(exc):
            raise
        transient = not isinstance(exc, MailError) or exc.transient
        raise MailError(
            f"the credentials could not be had: {type(exc).__name__}", phase=Phase.AUTH, transient=transient
        ) from exc
    if isinstance(given, (tuple, list)) and len(given) == 2:
        user, password = given
        if isinstance(user, str) and isinstance(password, str):
            return Pair(user, Secret(password))
        kinds = f"{type(user).__name__} and {type(password).__name__}"
        del user, password
    else:
        kinds = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
    del given  # no traceback shows it
    raise InvalidConfig(
        f"credentials() is to give a user name and a password or token, both str; it gave {kinds}", phase=Phase.AUTH
    )
