"""From a config to a session that is ready for mail.

Owns the steps between dialling and the first message: greeting, TLS, EHLO, login. Guarantees: what comes out is as
secure and as logged in as the config asks for, or there is an error that says in which phase it failed.
"""

from __future__ import annotations

from typing import TypeAlias

from ._deadline import NEVER, Deadline
from ._lookup import default_local_hostname
from .config import Security, ServerConfig
from .errors import GreetingRefused, LoginRefused, MailError, Phase
from .smtp import LMTP, SMTP, SMTP_SSL

AnySMTP: TypeAlias = SMTP | SMTP_SSL | LMTP


def unconnected(config: ServerConfig, sync_root: object, end: Deadline = NEVER) -> AnySMTP:
    """The client that `config` asks for, not connected yet, guarded by the lock of its owner.

    Args:
        end: when the name of this machine must be known, where `config` has none.
    """
    name = config.local_hostname or default_local_hostname(end)
    if config.lmtp:
        return LMTP("", 0, name, timeouts=config.timeouts, sync_root=sync_root)
    if config.security is Security.TLS:
        context = config.make_ssl_context()
        return SMTP_SSL("", 0, name, timeouts=config.timeouts, sync_root=sync_root, context=context)
    return SMTP("", 0, name, timeouts=config.timeouts, sync_root=sync_root)


def open_session(smtp: AnySMTP, config: ServerConfig, end: Deadline) -> None:
    """Connect, secure the connection and log in, as `config` says."""
    try:
        with smtp.within(end):
            greeting = smtp.connect(config.host, config.port, config.source_address)
            if greeting[0] != 220:
                raise GreetingRefused(*greeting)
            if config.security is Security.STARTTLS:
                smtp.starttls(context=config.make_ssl_context())
            smtp.ehlo_or_helo_if_needed()
            if config.needs_login:
                _log_in(smtp, config)
    except MailError as error:
        error.phase = error.phase or Phase.CONNECT
        raise


def _log_in(smtp: AnySMTP, config: ServerConfig) -> None:
    smtp.allow_plaintext_login = config.allow_plaintext_login
    try:
        smtp.login(*_credentials(config), mechanism=config.auth)
    except LoginRefused as error:
        if config.credentials is None or error.transient or smtp.sock is None:
            raise
        smtp.login(*_credentials(config), mechanism=config.auth)  # the token may just have expired


def _credentials(config: ServerConfig) -> tuple[str, str]:
    if config.credentials is None:
        assert config.username is not None
        assert config.password is not None
        return config.username, config.password
    try:
        return config.credentials()
    except Exception as exc:
        raise MailError(
            f"the credentials could not be had: {type(exc).__name__}", phase=Phase.AUTH, transient=True
        ) from exc
