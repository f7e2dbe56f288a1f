"""A server's certificate, as a person wants to read it.

Owns the reading of certificates, those included that do not pass verification: the `ssl` module parses only what it has
verified, so such a certificate is fetched first and then verified against itself. Guarantees: the connections made for
this carry nothing but a greeting, EHLO and STARTTLS.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from .._connection.opening import unconnected
from ..config import Security, ServerConfig, Timeouts
from ..errors import MailError
from .output import Fact, Tone

#: Days before its end from which on a certificate is a worry: renewal that works is done by then.
SOON = 14
_DAY = 86400.0

_PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN: a certificate that is trusted itself needs no authority above it
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
#: Seconds for a second look; nobody waits longer for it than for the first.
_PATIENCE = 5.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Certificate:
    """What a certificate says. Times are seconds since 1970."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    valid_from: float
    valid_until: float

    @classmethod
    def of(cls, sock: ssl.SSLSocket) -> Certificate | None:
        """That of the peer; None where it was not verified."""
        told: Any = sock.getpeercert()
        if not told:
            return None
        return cls(
            subject=_name(told.get("subject", ())),
            issuer=_name(told.get("issuer", ())),
            names=tuple(str(value) for _, value in told.get("subjectAltName", ())),
            valid_from=ssl.cert_time_to_seconds(told["notBefore"]),
            valid_until=ssl.cert_time_to_seconds(told["notAfter"]),
        )

    @property
    def days_left(self) -> int:
        """Whole days until it expires; negative: since it did."""
        return int((self.valid_until - time.time()) / _DAY)

    @property
    def has_expired(self) -> bool:
        return self.valid_until < time.time()

    @property
    def warning(self) -> str | None:
        soon = self.days_left < SOON and not self.has_expired
        return f"the certificate expires in {_days(self.days_left)}" if soon else None

    def facts(self) -> list[Fact]:
        """What to show of it."""
        days = self.days_left
        left = f"expired {_days(-days)} ago" if self.has_expired else f"{_days(days)} left"
        tone = Tone.BAD if self.has_expired else Tone.WARN if days < SOON else Tone.GOOD
        return [
            ("certificate", self.subject or "(no subject)", Tone.PLAIN),
            ("  issued by", self.issuer or "(no issuer)", Tone.PLAIN),
            ("  valid for", ", ".join(self.names) or "(no names)", Tone.PLAIN),
            ("  valid", f"{_date(self.valid_from)} to {_date(self.valid_until)}, {left}", tone),
        ]

    def as_data(self) -> dict[str, Any]:
        """The same as data that JSON can hold."""
        return {
            "subject": self.subject,
            "issuer": self.issuer,
            "names": list(self.names),
            "valid_from": _date(self.valid_from),
            "valid_until": _date(self.valid_until),
            "days_left": self.days_left,
        }


def inspect(config: ServerConfig) -> Certificate | None:
    """The certificate that the server of `config` shows, valid or not; None where it cannot be had."""
    der = _look(config, _trusting(None), lambda sock: sock.getpeercert(binary_form=True))
    return None if der is None else _look(config, _trusting(ssl.DER_cert_to_PEM_cert(der)), Certificate.of)


def speaks_tls(config: ServerConfig) -> bool:
    """Whether the server expects TLS from the first byte."""
    try:
        with socket.create_connection((config.host, config.port), _patience(config), config.source_address) as sock:
            _trusting(None).wrap_socket(sock, server_hostname=config.host).close()
    except (OSError, ValueError):
        return False
    return True


def _trusting(pem: str | None) -> ssl.SSLContext:
    """A context that takes any certificate, or that of `pem` alone whatever is wrong with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if pem is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=pem)
        context.verify_flags |= _PARTIAL_CHAIN | _NO_CHECK_TIME
    return context


def _look(config: ServerConfig, context: ssl.SSLContext, at: Callable[[ssl.SSLSocket], _T | None]) -> _T | None:
    """What `at` sees on a connection to the server, in TLS as far as `context` is concerned."""
    config = dataclasses.replace(config, ssl_context=context, timeouts=Timeouts.all(_patience(config)))
    smtp = unconnected(config, threading.RLock())
    try:
        smtp.connect(config.host, config.port, config.source_address)
        if config.security is Security.STARTTLS:
            smtp.starttls(context=context)
        return at(smtp.sock) if isinstance(smtp.sock, ssl.SSLSocket) else None
    except (MailError, OSError):
        return None
    finally:
        smtp.close()


def _patience(config: ServerConfig) -> float:
    return min(_PATIENCE, config.timeouts.connect or _PATIENCE)


def _name(parts: Any) -> str:
    """A distinguished name, as `CN=..., O=...`."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    return ", ".join(f"{short.get(key, key)}={value}" for part in parts for key, value in part)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _days(count: int) -> str:
    return f"{count:,} day{'' if count == 1 else 's'}"
