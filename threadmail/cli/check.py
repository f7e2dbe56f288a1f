"""`threadmail check`: what a person wants to know of a server.

Owns one session that is opened step by step, each step timed, and the account of it. Guarantees: nothing is sent; what
was found before a step failed is shown, with the cause and what to try; a certificate that is not valid is shown too,
read on a connection that nothing is entrusted to. Leaves the steps themselves to the guarded clients.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import ssl
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .._connection.opening import AnySMTP, unconnected
from .._runtime.deadline import Deadline, now
from .._transport.lookup import ResolverFailed, Waiter, addresses
from ..config import Security, ServerConfig, Timeouts
from ..errors import ConnectTimedOut, GreetingRefused, HostNotFound, MailError, TLSFailed
from ..receipt import Reply
from . import exit_codes as codes
from .certificate import Certificate, inspect, speaks_tls
from .exit_codes import Exit
from .output import Fact, Output, Tone
from .server import advice, server_of

#: Seconds for a step: a person waits.
PATIENCE = 15.0
NOOPS = 5

_LOGIN_TONES = {True: Tone.GOOD, False: Tone.BAD, None: Tone.PLAIN}


@dataclass
class Findings:
    """What is known of the server so far; what is None has not been seen."""

    config: ServerConfig
    addresses: list[str] = field(default_factory=list)
    connected_to: str | None = None
    greeting: str | None = None
    tls: tuple[str, str, int] | None = None  # version, cipher, bits
    certificate: Certificate | None = None
    extensions: dict[str, str] = field(default_factory=dict)
    login: bool | None = None  # whether it was accepted; None: it was not tried
    round_trip: float | None = None
    steps: list[tuple[str, float]] = field(default_factory=list)
    error: MailError | None = None
    advice: str | None = None

    @property
    def size(self) -> int | None:
        """The octets a message may have (RFC 1870); None where the server says nothing, or 0: no fixed limit."""
        limit = self.extensions.get("size", "")
        return int(limit) or None if limit.isdecimal() else None

    @property
    def warnings(self) -> list[str]:
        """What works and still wants attention."""
        found = []
        if self.certificate is not None and self.certificate.warning is not None:
            found.append(self.certificate.warning)
        if self.config.security is Security.NONE and "starttls" in self.extensions:
            found.append("the server offers STARTTLS: smtp+starttls:// would encrypt what is sent")
        return found

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens in the block."""
        began = now()
        try:
            yield
        finally:
            self.steps.append((name, now() - began))


def run(options: argparse.Namespace, out: Output) -> Exit:
    """Check the server that the options name."""
    config = _patient(server_of(options.server, "a URL"), options.timeout)
    found = Findings(config)
    out.note(f"connecting to {config.address}")
    try:
        _examine(found)
    except MailError as error:
        found.error = error
        found.advice = _advice(found, error)
    code = codes.of_error(found.error) if found.error is not None else Exit.OK
    if options.json:
        out.raw(json.dumps({**_as_data(found), "exit_code": int(code)}))
        return code
    out.facts(_facts(found))
    for warning in found.warnings:
        out.complain(f"warning: {warning}")
    if found.error is not None:
        out.complain(str(found.error), found.advice)
    elif not out.quiet:
        out.say(f"{config.address} is ready for mail", Tone.GOOD)
    return code


def _patient(config: ServerConfig, seconds: float | None) -> ServerConfig:
    if seconds is None and config.timeouts != Timeouts():
        return config
    return dataclasses.replace(config, timeouts=Timeouts.all(seconds or PATIENCE))


# ---------------------------------------------------------------- the session


def _examine(found: Findings) -> None:
    config = found.config
    if not config.host.startswith("/"):
        _look_up(found)
    smtp = unconnected(config, threading.RLock())
    try:
        dial = "connect, TLS and greeting" if config.security is Security.TLS else "connect and greeting"
        try:
            with found.step(dial):
                greeting = Reply(*smtp.connect(config.host, config.port, config.source_address))
        except HostNotFound:
            found.steps.pop()  # nobody was dialled: the name was looked up once more
            raise
        found.greeting = str(greeting)
        found.connected_to = _peer(smtp)
        if greeting.code != 220:
            raise GreetingRefused(*greeting.pair)
        if config.security is Security.STARTTLS:
            with found.step("first EHLO"):
                smtp.ehlo_or_helo_if_needed()
            with found.step("STARTTLS"):
                smtp.starttls(context=config.make_ssl_context())
        _look_at_tls(found, smtp)
        with found.step("EHLO"):
            smtp.ehlo_or_helo_if_needed()
        found.extensions = dict(smtp.esmtp_features)
        if config.username is not None and config.password is not None:
            smtp.allow_plaintext_login = config.allow_plaintext_login
            found.login = False
            with found.step("login"):
                smtp.login(config.username, config.password, mechanism=config.auth)
            found.login = True
        _time_round_trips(found, smtp)
        smtp.quit()
    finally:
        smtp.close()


def _look_up(found: Findings) -> None:
    with found.step("name lookup"):
        limit = Deadline.after(found.config.timeouts.connect)
        try:
            places = addresses(found.config.host, found.config.port, Waiter, limit)
        except (OSError, ValueError, ResolverFailed):
            return  # connecting meets the same error, and words it
    found.addresses = [address for address, _ in places]


def _peer(smtp: AnySMTP) -> str | None:
    try:
        peer = smtp.sock.getpeername() if smtp.sock is not None else None
    except OSError:
        return None
    return str(peer[0]) if isinstance(peer, tuple) else peer or None


def _look_at_tls(found: Findings, smtp: AnySMTP) -> None:
    sock = smtp.sock
    if isinstance(sock, ssl.SSLSocket):
        name, _, bits = sock.cipher() or ("", "", 0)
        found.tls = (sock.version() or "", name, bits)
        found.certificate = Certificate.of(sock)


def _time_round_trips(found: Findings, smtp: AnySMTP) -> None:
    times = []
    for _ in range(NOOPS):
        began = now()
        smtp.noop()
        times.append(now() - began)
    found.round_trip = statistics.median(times)


def _advice(found: Findings, error: MailError) -> str | None:
    """What to try; may ask the server once more, to be sure."""
    config = found.config
    if isinstance(error, TLSFailed) and "certificate" in str(error):
        found.certificate = inspect(config)
    silent = isinstance(error, ConnectTimedOut) and "no greeting" in str(error)
    if silent and config.security is not Security.TLS and speaks_tls(config):
        return f"the server speaks TLS from the first byte on port {config.port}: use smtps:// instead"
    return advice(error, config)


# ---------------------------------------------------------------- the account


def _facts(found: Findings) -> list[Fact]:
    facts: list[Fact] = [("server", found.config.url, Tone.PLAIN)]
    if found.connected_to is not None:
        others = [address for address in found.addresses if address != found.connected_to]
        facts.append(("address", found.connected_to + (f" (also {', '.join(others)})" if others else ""), Tone.PLAIN))
    elif found.addresses:
        facts.append(("addresses", ", ".join(found.addresses), Tone.PLAIN))
    if found.greeting is not None:
        facts.append(("greeting", found.greeting, Tone.PLAIN))
    if found.tls is not None:
        version, cipher, bits = found.tls
        facts.append(("TLS", f"{version}, {cipher} ({bits} bits)", Tone.GOOD))
    elif found.extensions and found.error is None:
        local = found.config.is_local
        clear = "none; the way stays on this machine" if local else "none: everything crosses the network in the clear"
        facts.append(("TLS", clear, Tone.PLAIN if local else Tone.WARN))
    if found.certificate is not None:
        facts += found.certificate.facts()
    if found.extensions:
        facts += _extension_facts(found)
    if found.round_trip is not None:
        facts.append(("round trip", f"{_milliseconds(found.round_trip)} (median of {NOOPS} NOOPs)", Tone.PLAIN))
    facts.append(("time", ", ".join(f"{name} {_milliseconds(seconds)}" for name, seconds in found.steps), Tone.PLAIN))
    return facts


def _extension_facts(found: Findings) -> list[Fact]:
    has = found.extensions
    good = [name.upper() for name in ("pipelining", "chunking", "8bitmime", "smtputf8") if name in has]
    missing = [name.upper() for name in ("pipelining", "chunking", "8bitmime", "smtputf8") if name not in has]
    others = [name.upper() for name in has if name not in ("size", "auth", *(n.lower() for n in good))]
    size = f"{found.size:,} octets ({_human(found.size)}) at most" if found.size else "no limit announced"
    mechanisms = " ".join(has.get("auth", "").split()) or "none offered"
    login = {True: "; accepted", False: "; not accepted", None: ""}[found.login]
    if found.login is None and "auth" in has and not found.config.needs_login:
        login = " (not tried: the URL names no user)"
    facts: list[Fact] = [
        ("offers", " ".join(good) or "none of the extensions that matter here", Tone.PLAIN),
        ("lacks", " ".join(missing), Tone.FAINT),
        ("also offers", " ".join(others), Tone.FAINT),
        ("message size", size, Tone.PLAIN),
        ("login", f"{mechanisms}{login}", _LOGIN_TONES[found.login]),
    ]
    return [fact for fact in facts if fact[1]]


def _as_data(found: Findings) -> dict[str, Any]:
    version, cipher, bits = found.tls or (None, None, None)
    return {
        "server": found.config.url,
        "ok": found.error is None,
        "address": found.connected_to,
        "addresses": found.addresses,
        "greeting": found.greeting,
        "tls": {"version": version, "cipher": cipher, "bits": bits} if found.tls else None,
        "certificate": found.certificate.as_data() if found.certificate else None,
        "extensions": found.extensions,
        "size": found.size,
        "auth": found.extensions.get("auth", "").split(),
        "login": found.login,
        "round_trip_ms": round(found.round_trip * 1000, 3) if found.round_trip is not None else None,
        "steps": [{"step": name, "ms": round(seconds * 1000, 3)} for name, seconds in found.steps],
        "warnings": found.warnings,
        "error": str(found.error) if found.error else None,
        "advice": found.advice,
    }


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1000:,.{1 if seconds < 0.1 else 0}f} ms"


def _human(octets: int) -> str:
    size = float(octets)
    for unit in ("octets", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
