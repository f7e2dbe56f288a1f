"""Riding on a real server that minds it: Dovecot's submission server, started for the test.

Its 2.3 crashes when a bare MAIL and RCPT are read behind the end of data: the message ahead has been passed on, and its
reply is lost, in every session (field; with commands that rode bare 19 of 20 were in doubt, and resending made
duplicates). With RSET at their head nothing is lost. Skipped, with the reason, where it cannot be had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.dovecot import Dovecot
from tests.support.mail import envelope, intact
from tests.support.servers import Unavailable
from threadmail import Client, Outcome, RetryPolicy, ServerConfig, ThreadedSender
from threadmail.testing import CaptureServer

MESSAGES = 200
WORKERS = 8


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[CaptureServer, Dovecot]]:
    with ExitStack() as stack:
        relay = stack.enter_context(CaptureServer())
        try:
            dovecot = stack.enter_context(Dovecot(relay.port))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield relay, dovecot


def by_sender(config: ServerConfig, names: list[str], *, resend: bool) -> Counter[Outcome]:
    with ThreadedSender(config, workers=WORKERS, retry=RetryPolicy(base=0.01, resend_in_doubt=resend)) as sender:
        return Counter(receipt.outcome for receipt in sender.send_all(envelope(name) for name in names))


def by_client(config: ServerConfig, names: list[str]) -> Counter[Outcome]:
    with Client(config) as client:
        found = Counter(receipt.outcome for receipt in client.send_all(envelope(name) for name in names))
        # Else the test would show nothing: riding went on to the end, over as few connections as there may be.
        assert client.offers_riding
        assert client.stats().closed == ({"worn": 1} if config.max_messages else {})
    return found


@pytest.mark.parametrize("way", ["sender", "sender that resends", "client", "client that says QUIT behind the last"])
def test_what_rides_costs_this_server_no_message(servers: tuple[CaptureServer, Dovecot], way: str) -> None:
    relay, dovecot = servers
    relay.clear()
    names = [f"m{number}" for number in range(MESSAGES)]
    if way.startswith("sender"):
        outcomes = by_sender(dovecot.config(), names, resend=way.endswith("resends"))
    else:
        outcomes = by_client(dovecot.config(max_messages=MESSAGES // 2 if "QUIT" in way else None), names)
    assert outcomes == {Outcome.SENT: MESSAGES}
    found = Counter(message.sender for message in relay.messages)
    assert found == Counter(envelope(name).sender for name in names)
    assert "Panic" not in dovecot.log()


def test_what_arrives_is_what_was_sent(servers: tuple[CaptureServer, Dovecot]) -> None:
    relay, dovecot = servers
    relay.clear()
    by_client(dovecot.config(max_messages=None), ["a", "b", "c"])
    assert intact(relay.messages) == Counter("abc")


def test_nothing_is_left_running() -> None:
    with CaptureServer() as relay:
        try:
            with Dovecot(relay.port) as dovecot:
                assert dovecot.processes()
        except Unavailable as reason:
            pytest.skip(str(reason))
    assert dovecot.processes() == []
