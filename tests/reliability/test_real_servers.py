"""Servers nobody here wrote, set to make trouble: Postfix, Exim and Nodemailer's, each started for the test.

Each message arrives exactly once and whole, whatever limit it met on its way; attempts and connections stay bounded.
Skipped, with the reason, where a server cannot be had. `stress/soak.py --server` is the long version.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.exim import GREYLISTING, Exim, slower_than
from tests.support.mail import envelope
from tests.support.nodemailer import Nodemailer
from tests.support.postfix import Postfix
from tests.support.servers import Unavailable, until
from threadmail import (
    Client,
    ClientPool,
    Envelope,
    LoginRefused,
    MailError,
    Outcome,
    Report,
    RetryPolicy,
    ServerConfig,
    ThreadedSender,
)
from threadmail._dispatch import limits as _limits
from threadmail.sender import SenderStats

RealServer: TypeAlias = Postfix | Exim | Nodemailer
QUICK = RetryPolicy(base=0.05, longest=0.4, total=60.0)
LANES = 8
SHORTEST_PAUSE = 0.1  # seconds, in the place of 1: these servers forgive sooner


@contextmanager
def started(server: RealServer) -> Iterator[RealServer]:
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "SHORTEST_PAUSE", SHORTEST_PAUSE)


def named(count: int) -> dict[str, Envelope]:
    return {name: envelope(name) for name in (f"m{number}" for number in range(count))}


def flood(config: str | ServerConfig, count: int) -> tuple[Report, SenderStats]:
    """Send from more lanes than the server likes."""
    with ThreadedSender(config, workers=LANES, retry=QUICK, rng=random.Random(1)) as sender:
        report = sender.send_all(named(count).values())
        return report, sender.stats()


def replaced(stats: SenderStats) -> int:
    """Connections that came to their end in use: one wears, or the server has had enough errors on it."""
    return sum(stats.closed.get(reason, 0) for reason in ("worn", "lost", "stale"))


def arrived_once(server: RealServer, count: int) -> None:
    if isinstance(server, Postfix):
        server.wait_for(count)  # it passes on what it has taken
    expected = named(count)
    for message in server.messages():
        mine = expected[message.sender.removeprefix("from-").partition("@")[0]]
        assert message.content == mine.content
    # By recipient: a greylist may let one of them in before the other.
    copies = Counter((message.sender, recipient) for message in server.messages() for recipient in message.recipients)
    assert copies == Counter((mine.sender, recipient) for mine in expected.values() for recipient in mine.recipients)


# ---------------------------------------------------------------- limits and greylists

Make: TypeAlias = Callable[[Path], RealServer]

CONNECTIONS = 2
CONNECTION_LIMITS: dict[str, Make] = {
    "postfix": lambda folder: Postfix(folder, settings={"smtpd_client_connection_count_limit": str(CONNECTIONS)}),
    "exim": lambda folder: Exim(settings={"smtp_accept_max_per_host": str(CONNECTIONS)}),
    "nodemailer": lambda folder: Nodemailer(max_clients=CONNECTIONS),
}


@pytest.mark.parametrize("make", CONNECTION_LIMITS.values(), ids=CONNECTION_LIMITS)
def test_a_connection_limit_means_fewer_lanes(make: Make, tmp_path: Path) -> None:
    """421 to all but two of eight: no message pays for it with an attempt, and nobody storms the server."""
    with started(make(tmp_path)) as server:
        report, stats = flood(server.url, 60)
        assert report.counts()[Outcome.SENT] == 60
        assert stats.retries == 0
        assert stats.lanes <= LANES
        assert stats.opened <= CONNECTIONS + 2  # a place may come free and be taken again
        arrived_once(server, 60)


RATE_LIMITS: dict[str, Make] = {
    # 450 4.7.1 Error: too much mail
    "postfix": lambda folder: Postfix(
        folder, settings={"smtpd_client_message_rate_limit": "20", "anvil_rate_time_unit": "1s"}
    ),
    "exim": lambda folder: Exim(mail=slower_than(20, "1s")),  # 451 4.7.0
    "nodemailer": lambda folder: Nodemailer(rate=(20, 0.5)),  # 450 4.7.1
}


@pytest.mark.parametrize("make", RATE_LIMITS.values(), ids=RATE_LIMITS)
def test_a_rate_limit_means_a_pause(make: Make, tmp_path: Path) -> None:
    """Twice as many messages as the limit lets through at once: all arrive, after few refusals."""
    with started(make(tmp_path)) as server:
        began = time.monotonic()
        report, stats = flood(server.url, 40)
        assert report.counts()[Outcome.SENT] == 40
        assert stats.retries > 0 or time.monotonic() - began > 0.5, "the limit was not met"
        assert stats.retries <= 3 * 40
        assert stats.opened <= LANES + replaced(stats)
        arrived_once(server, 40)


GREYLISTS: dict[str, Make] = {
    "exim": lambda folder: Exim(rcpt=GREYLISTING),  # at once when seen again
    "nodemailer": lambda folder: Nodemailer(greylist=0.3),
}


@pytest.mark.parametrize("make", GREYLISTS.values(), ids=GREYLISTS)
def test_a_greylist_is_outlasted(make: Make, tmp_path: Path) -> None:
    """Each recipient is put off at first sight; each message arrives, once, with all its recipients."""
    with started(make(tmp_path)) as server:
        report, stats = flood(server.url, 40)
        assert report.counts()[Outcome.SENT] == 40
        assert all(2 <= receipt.attempts <= 12 for receipt in report)
        assert stats.opened <= LANES + replaced(stats)
        arrived_once(server, 40)


def test_a_server_that_is_not_ready_yet_is_waited_for() -> None:
    """Three connections are answered 421, then three logins 454: nothing fails, and there is one dial at a time."""
    with started(Nodemailer(bad_greetings=3, bad_logins=3, users={"ada": "secret"})) as server:
        assert isinstance(server, Nodemailer)
        report, stats = flood(secured(server, "smtps", "ada:secret"), 20)
        assert report.counts()[Outcome.SENT] == 20
        assert 3 + stats.opened <= server.count("login") <= 3 + LANES
        assert server.count("connect") <= 3 + 3 + LANES
        arrived_once(server, 20)


# ---------------------------------------------------------------- idle, size

IDLERS: dict[str, Make] = {
    "exim": lambda folder: Exim(settings={"smtp_receive_timeout": "1s"}),
    "nodemailer": lambda folder: Nodemailer(idle=0.3),
}


@pytest.mark.parametrize("kind", IDLERS)
def test_an_idle_disconnect_is_invisible(kind: str, tmp_path: Path) -> None:
    """The server says 421 and hangs up on a client, a pool and a sender; the next message of each is its first try."""
    with started(IDLERS[kind](tmp_path)) as server, Client(server.url) as client, ClientPool(server.url) as pool:
        with ThreadedSender(server.url, workers=1) as sender:
            senders: tuple[Client | ClientPool | ThreadedSender, ...] = (client, pool, sender)
            for number, kept in enumerate(senders):
                assert kept.send(envelope(f"m{number}")).outcome is Outcome.SENT
            if isinstance(server, Exim):
                until(lambda: server.log().count("command timeout") == 3, 10, "three hang-ups")
            else:
                assert isinstance(server, Nodemailer)
                server.wait_for("hung up", 3)
            for number, kept in enumerate(senders, 3):
                assert kept.send(envelope(f"m{number}")).attempts == 1
            arrived_once(server, 6)


SMALL = 4000
SIZE_LIMITS: dict[str, Make] = {
    "postfix": lambda folder: Postfix(folder, settings={"message_size_limit": str(SMALL)}),
    "exim": lambda folder: Exim(settings={"message_size_limit": str(SMALL)}),
    "nodemailer": lambda folder: Nodemailer(size=SMALL),
}


@pytest.mark.parametrize("kind", SIZE_LIMITS)
def test_what_is_too_big_is_refused_and_the_next_one_sent(kind: str, tmp_path: Path) -> None:
    """Told by SIZE before a byte of it leaves, and by the server's 552 where SIZE is not looked at."""
    big = Envelope("from-m0@example.org", ["to-m0@example.net"], b"Subject: x\r\n\r\n" + b"0123456789\r\n" * SMALL)
    with started(SIZE_LIMITS[kind](tmp_path)) as server:
        for number, without in enumerate([frozenset[str](), frozenset({"size"})]):
            config = dataclasses.replace(ServerConfig.from_url(server.url), without=without)
            with Client(config) as client:
                with pytest.raises(MailError) as refused:
                    client.send(big)
                assert refused.value.outcome is Outcome.NOT_SENT
                assert not refused.value.transient
                assert client.send(envelope(f"m{number}")).outcome is Outcome.SENT
        arrived_once(server, 2)


# ---------------------------------------------------------------- TLS and AUTH

USERS = {"ada": "correct horse"}
SECURE: dict[str, Make] = {
    "exim": lambda folder: Exim(users=USERS),
    "nodemailer": lambda folder: Nodemailer(users=USERS),
}


def secured(server: RealServer, scheme: str, login: str = "") -> ServerConfig:
    assert isinstance(server, (Exim, Nodemailer))
    port = server.tls_port if scheme == "smtps" else server.port
    url = f"{scheme}://{login}{'@' if login else ''}localhost:{port}"
    return ServerConfig.from_url(url, ssl_context=server.tls_context())


@pytest.mark.parametrize("scheme", ["smtp+starttls", "smtps"])
@pytest.mark.parametrize("make", SECURE.values(), ids=SECURE)
def test_logged_in_over_tls(make: Make, scheme: str, tmp_path: Path) -> None:
    """AUTH PLAIN after STARTTLS, and with TLS from the first byte; the certificate is verified."""
    with started(make(tmp_path)) as server:
        report, _ = flood(secured(server, scheme, "ada:correct%20horse"), 20)
        assert report.counts()[Outcome.SENT] == 20
        arrived_once(server, 20)
        if isinstance(server, Exim):
            assert all(b"with esmtpsa" in message.received for message in server.messages())
        with (
            pytest.raises(MailError, match="certificate"),
            Client(dataclasses.replace(secured(server, scheme), ssl_context=None)) as stranger,
        ):
            stranger.connect()


@pytest.mark.parametrize("make", SECURE.values(), ids=SECURE)
def test_one_wrong_password_is_one_attempt(make: Make, tmp_path: Path) -> None:
    """Eight lanes with twenty messages do not hammer: servers lock accounts for less."""
    with started(make(tmp_path)) as server:
        report, _ = flood(secured(server, "smtps", "ada:wrong"), 20)
        assert {type(receipt.error) for receipt in report} == {LoginRefused}
        if isinstance(server, Exim):
            until(lambda: "authenticator failed" in server.log(), 10, "the failure in the log")
            assert server.log().count("authenticator failed") == 1
        else:
            assert isinstance(server, Nodemailer)
            assert server.count("login") == 1
        assert server.messages() == []


# ---------------------------------------------------------------- the set-up


def test_nothing_is_left_running() -> None:
    with started(Exim()) as server:
        assert isinstance(server, Exim)
        assert server.processes()
    assert server.processes() == []


def test_settings_that_exim_refuses_are_named() -> None:
    with pytest.raises(ValueError, match="no_such_setting"), started(Exim(settings={"no_such_setting": "1"})):
        pass


def test_says_why_a_server_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at once, when asked again."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, server in (("EXIM", Exim()), ("NODEMAILER", Nodemailer())):
        monkeypatch.setenv(f"THREADMAIL_{name}_CACHE", str(tmp_path / name))
        for _ in range(2):
            with pytest.raises(Unavailable, match="there is no"):
                server.__enter__()
