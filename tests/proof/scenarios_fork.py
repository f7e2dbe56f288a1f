"""What a forked child finds: threads that come first to what their parent has left them.

The fork is one without Python's hooks, as some servers do it: the objects find out for themselves, by their first use.
"""

from __future__ import annotations

import os
from unittest import mock

from tests.detsched import Run
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice
from threadmail import SMTP, Client

from .scenario import CONFIG, Scenario, by_envelope


def forked(run: Run) -> None:
    """Two threads are the first to use a client in a forked child (without Python's hooks, as some servers fork)."""
    office = PostOffice(run, ModelServer(bound=1))
    pid = [1]
    run.context.enter_context(mock.patch.object(os, "getpid", side_effect=lambda: pid[0]))
    client = Client(CONFIG, watch_idle=False)
    pid[0] = 2
    office.senders(threads=2, messages=1, sendmail=by_envelope(client.send))


SMALL = [Scenario("fork, two threads come first", forked, classes=(SMTP, Client))]
