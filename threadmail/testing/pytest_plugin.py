"""Fixtures for pytest: a mail server for one test, and what it caught.

pytest loads this module into every run of every project that has threadmail installed. So it needs nothing but pytest
and the package it lives in, changes nothing, and starts a server only for a test that asks for one.

    def test_welcome(threadmail_server, threadmail_outbox):
        register("ada@example.test", smtp_url=threadmail_server.url)
        [mail] = threadmail_outbox
        assert mail.recipients == ("ada@example.test",)
        assert mail.message["Subject"] == "Welcome"
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .capture import CaptureServer
    from .messages import MessageList


@pytest.fixture
def threadmail_server() -> Iterator[CaptureServer]:
    """A running `threadmail.testing.CaptureServer`: plain SMTP on a free port of 127.0.0.1, for this test alone.

    `threadmail_server.url`, `.host` and `.port` say where it is; `.wait_for(count)` waits for mail sent in the
    background. The test fails with the line to type where aiosmtpd is not installed.
    """
    from .capture import CaptureServer

    try:
        server = CaptureServer()
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture
def threadmail_outbox(threadmail_server: CaptureServer) -> MessageList:
    """The messages `threadmail_server` has caught: a live, read-only list of `threadmail.testing.CapturedMessage`.

        def test_nothing_is_sent_twice(threadmail_server, threadmail_outbox):
            send_reminders(smtp_url=threadmail_server.url)
            assert [mail.recipients for mail in threadmail_outbox] == [("ada@example.test",)]

    Mail sent in the background may still be under way: `threadmail_server.wait_for(1)` waits for it.
    """
    return threadmail_server.outbox
