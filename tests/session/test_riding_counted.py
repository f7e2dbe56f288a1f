"""RSET heads each message that rides, and real servers count it: not against the session that sends a message with it.

Postfix counts what is no mail (`smtpd_junk_command_limit`) anew after each message; Exim counts one RSET for each
message as mail (`smtp_accept_max_nonmail`). Both here with limits that a session of many messages would meet at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.exim import Exim
from tests.support.mail import envelope
from tests.support.postfix import Postfix
from tests.support.servers import Unavailable
from threadmail import Client, Outcome, ServerConfig

MESSAGES = 40


@pytest.mark.parametrize("name", ["postfix", "exim"])
def test_a_reset_for_each_message_is_no_misuse(name: str, tmp_path: Path) -> None:
    server = (
        Postfix(tmp_path, settings={"smtpd_junk_command_limit": "1", "smtpd_soft_error_limit": "2"})
        if name == "postfix"
        else Exim(settings={"smtp_accept_max_nonmail": "1"})
    )
    try:
        server.__enter__()
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        config = ServerConfig.from_url(server.url, max_messages=None)
        with Client(config) as client:
            report = client.send_all(envelope(f"m{number}") for number in range(MESSAGES))
            assert report.counts()[Outcome.SENT] == MESSAGES
            assert client.stats().opened == 1
            assert client.offers_riding
    finally:
        server.__exit__(None, None, None)
