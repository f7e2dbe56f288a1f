"""Which server a command is for, and what to do when it cannot be used.

Owns the reading of the server from the command line or the environment, and the advice that goes with each way in which
a server keeps a client out. The cause stands in the error itself; here is what a person can do about it.
"""

from __future__ import annotations

import os

from ..config import Security, ServerConfig
from ..errors import (
    BadReply,
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    ConnectTimedOut,
    GreetingRefused,
    HostNotFound,
    InvalidConfig,
    LoginRefused,
    MailError,
    NotSupported,
    Phase,
    StartTLSRefused,
    TLSFailed,
)

VARIABLE = "THREADMAIL_URL"
_USUAL_PORTS = "usual are 25 (smtp://), 587 (smtp+starttls://) and 465 (smtps://)"


def server_of(url: str | None, given_by: str) -> ServerConfig:
    """The server of a URL from the command line, or else of the environment.

    Args:
        given_by: how the command line names one.
    Raises:
        InvalidConfig: there is none, or it is wrong.
    """
    if url is None and not os.environ.get(VARIABLE):
        raise InvalidConfig(f"no server: name one by {given_by}, or in {VARIABLE}, which is not set: smtp://localhost")
    return ServerConfig.from_env(VARIABLE) if url is None else ServerConfig.from_url(url)


def advice(error: MailError, config: ServerConfig) -> str | None:
    """What to try, in one line; None where the error says it all."""
    if isinstance(error, HostNotFound):
        return "check the spelling of the host name; if it is right, this machine's name resolution (DNS) fails"
    if isinstance(error, ConnectionRefused):
        return f"is the server running, and is {config.port} its port? {_USUAL_PORTS}"
    if isinstance(error, ConnectTimedOut):
        return _about_silence(error, config)
    if isinstance(error, TLSFailed):
        return _about_tls(str(error))
    if isinstance(error, NotSupported):
        return _about_missing(error, config)
    if isinstance(error, StartTLSRefused):
        return "the server's TLS is out of order just now, or switched off: ask who runs it"
    if isinstance(error, LoginRefused):
        return (
            "try again later: the server cannot check the login just now"
            if error.transient
            else "check user name and password; some providers want an app password, or a token (?auth=XOAUTH2)"
        )
    if isinstance(error, BadReply) and error.phase is Phase.CONNECT:
        return f"something else than a mail server answers on port {config.port}; {_USUAL_PORTS}"
    if isinstance(error, GreetingRefused):
        return "the server does not want mail from this address now (421: busy; 554: blocked): ask who runs it"
    if isinstance(error, ConnectionLost) and error.phase is Phase.CONNECT:
        return _about_hanging_up(config)
    if isinstance(error, ConnectFailed):
        return "check host and port, and this machine's network"
    return None


def _about_silence(error: MailError, config: ServerConfig) -> str:
    if "no greeting" not in str(error):
        return "a firewall may swallow the connection: many networks block port 25, few block 587"
    if config.security is Security.TLS:
        return "the server is overloaded, or something else than a mail server"
    return "a server that waits for TLS from the first byte is silent like this: try smtps:// (usual port: 465)"


def _about_hanging_up(config: ServerConfig) -> str:
    if config.security is Security.TLS:
        return "the server may not speak TLS here, or not want this client: try smtp+starttls://"
    return "the server may want TLS from the first byte (try smtps://), or not want this client"


def _about_tls(cause: str) -> str:
    text = cause.lower()
    if "does not speak tls" in text:
        return "try smtp+starttls:// (usual port: 587), or smtp:// where there is no TLS at all"
    if "expired" in text:
        return "the server needs a new certificate; if it is fine elsewhere, check this machine's clock"
    if "not yet valid" in text:
        return "check this machine's clock"
    if "mismatch" in text or "not valid for" in text:
        return "use the name that the certificate was made out to, as the server's documentation gives it"
    if "self-signed" in text or "self signed" in text or "local issuer" in text:
        return "if the server uses a certificate authority of its own, name its certificate: ?cafile=/path/to/ca.pem"
    return "the server may not speak TLS on this port, or only versions before 1.2"


def _about_missing(error: MailError, config: ServerConfig) -> str | None:
    if error.phase is Phase.TLS:
        return "try smtps:// (usual port: 465), or smtp:// if the way to the server is safe without TLS"
    if error.phase is Phase.AUTH and config.security is Security.NONE:
        return "most servers offer a login only under TLS: try smtp+starttls:// (usual port: 587)"
    if error.phase is Phase.AUTH:
        return "leave the user name out of the URL if the server wants no login; ?auth= names a mechanism"
    return None
