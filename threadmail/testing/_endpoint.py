"""Where a test server listens and how to reach it: address, URL, TLS contexts, ready-made settings.

Owns the listening socket's address and the choice of certificates; both servers inherit it. Opens no connection.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from .certificates import TestCA

if TYPE_CHECKING:
    from threadmail.config import ServerConfig

TLSMode = Literal["none", "starttls", "tls"]

HOSTNAME = "mail.example.test"
"""The name the test servers go by; none of them asks a resolver for one."""

_SCHEMES = {"none": "smtp", "starttls": "smtp+starttls", "tls": "smtps"}


class Endpoint:
    """The part of a test server that its clients need to know."""

    def __init__(
        self,
        *,
        tls: TLSMode,
        ssl_context: ssl.SSLContext | None,
        ca: TestCA | None,
        auth: Mapping[str, str] | None,
        host: str,
        port: int = 0,
        lmtp: bool,
    ) -> None:
        if tls not in ("none", "starttls", "tls"):
            raise ValueError(f'tls must be "none", "starttls" or "tls", not {tls!r}')
        if tls == "none" and (ssl_context is not None or ca is not None):
            raise ValueError('a server with tls="none" has no use for ssl_context or ca')
        if lmtp and tls == "tls":
            raise ValueError("LMTP knows no implicit TLS: use starttls")
        self._tls: TLSMode = tls
        self._lmtp = lmtp
        self._auth = dict(auth) if auth is not None else None
        self._ca = ca
        if tls != "none" and ca is None and ssl_context is None:
            self._ca = TestCA()
        self._ssl_context = ssl_context
        if ssl_context is None and self._ca is not None:
            self._ssl_context = self._ca.server_context(*dict.fromkeys((host, "localhost", "127.0.0.1")))
        self._host = host
        self._wanted_port = port
        self._port: int | None = None

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._wanted_port), family=family, backlog=128)
        self._port = listener.getsockname()[1]
        return listener

    @property
    def host(self) -> str:
        """The address the server listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port the server listens on. Raises RuntimeError before the server has started."""
        if self._port is None:
            raise RuntimeError("the server has no port before it is started: use it in a with statement")
        return self._port

    @property
    def url(self) -> str:
        """The server's URL, e.g. ``smtp+starttls://127.0.0.1:40123``.

        Where exactly one user is configured it holds that user's name and password, percent-encoded. (For LMTP it
        cannot tell whether STARTTLS is wanted; `config` does.)
        """
        credentials = ""
        if self._auth is not None and len(self._auth) == 1:
            [(user, password)] = self._auth.items()
            credentials = f"{quote(user, safe='')}:{quote(password, safe='')}@"
        return self._plain_url(credentials)

    def _plain_url(self, credentials: str = "") -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        scheme = "lmtp" if self._lmtp else _SCHEMES[self._tls]
        return f"{scheme}://{credentials}{host}:{self.port}"

    @property
    def ca(self) -> TestCA | None:
        """The authority behind the server's certificate: the one given, or else one made for this server."""
        return self._ca

    @property
    def client_context(self) -> ssl.SSLContext | None:
        """A verifying client context that trusts this server's authority; None where the server knows no authority."""
        return self._ca.client_context() if self._ca is not None else None

    @property
    def config(self) -> ServerConfig:
        """`url` as a `threadmail.ServerConfig`, with `client_context` put in where there is one."""
        from threadmail.config import Security, ServerConfig

        config = ServerConfig.from_url(self.url)
        if self._tls == "starttls":
            config = dataclasses.replace(config, security=Security.STARTTLS)
        return dataclasses.replace(config, ssl_context=self.client_context)

    def __repr__(self) -> str:
        where = "not started" if self._port is None else self._plain_url()
        return f"<{type(self).__name__} {where}>"
