"""A program that ends with a queue ends in time, whatever the server does, and says what was not sent."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.reliability.programs import finished, program
from threadmail.testing import ScriptedServer, Serve, Signal, Stall

#: Seconds that the programs here give their senders, in the place of ten.
GRACE = 1.0

#: Seconds more for the rest: farewells, and an interpreter that ends on a loaded machine.
REST = 4.0


def left(process: subprocess.Popen[str]) -> tuple[float, str]:
    """Let the program leave. Returns how long that took, and what it wrote to standard error."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("leave\n")
    process.stdin.flush()
    while (line := process.stdout.readline()) != "leaving\n":
        assert line == "sent\n"  # they come meanwhile
    started = time.monotonic()
    _, err = process.communicate(timeout=30.0)
    return time.monotonic() - started, err


@contextmanager
def stalling(at: str = ".") -> Iterator[tuple[ScriptedServer, list[threading.Event]]]:
    """A server that takes two messages and says no more; the events tell that it has them."""
    reached = [threading.Event(), threading.Event()]
    with ScriptedServer(*([Serve(until=at), Signal(event), Stall()] for event in reached)) as server:
        yield server, reached


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("sys.exit", 3), ("raise", 1), ("daemon", 0)])
def test_a_stalled_server_and_a_full_queue(how: str, status: int) -> None:
    """Two messages are with the server, which does not answer: nobody knows. Three never left."""
    with stalling() as (server, reached), program("leaves_early", str(GRACE), how, server.url) as process:
        assert all(event.wait(10.0) for event in reached)
        seconds, err = left(process)
    assert process.returncode == status
    assert "the interpreter ends, and 3 messages were not sent, 2 in doubt" in err
    assert ("LookupError" in err) is (how == "raise")
    assert err.count("Traceback") == (how == "raise")
    assert GRACE - 0.2 <= seconds < GRACE + REST, f"it took {seconds:.1f} s"


def test_several_senders_share_the_time() -> None:
    """And the one whose server works has sent its mail when the process ends."""
    with ExitStack() as stack:
        stalled = [stack.enter_context(stalling()) for _ in range(2)]
        good = stack.enter_context(ScriptedServer())
        urls = [*(server.url for server, _ in stalled), good.url]
        process = stack.enter_context(program("leaves_early", str(GRACE), "end", *urls))
        assert all(event.wait(10.0) for _, reached in stalled for event in reached)
        seconds, err = left(process)
        assert len(good.wait_for(5)) == 5
    assert process.returncode == 0
    assert err.count("the interpreter ends, and 3 messages were not sent, 2 in doubt") == 2
    assert seconds < GRACE + REST, f"it took {seconds:.1f} s"


def test_a_server_that_cannot_be_reached() -> None:
    """Its queue of connections is full, so a dial hangs: the one thing that only its own time-out ends."""
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            knock = stack.enter_context(socket.socket())
            knock.setblocking(False)
            knock.connect_ex(full.getsockname())
        url = f"smtp://127.0.0.1:{full.getsockname()[1]}?timeout=2"
        with program("leaves_early", str(GRACE), "end", url) as process:
            seconds, err = left(process)
    assert process.returncode == 0
    assert "5 messages were not sent" in err
    assert seconds < 2.0 + REST, f"it took {seconds:.1f} s"


def test_nothing_is_said_where_everything_was_sent() -> None:
    with ScriptedServer() as server:
        with program("leaves_early", "20", "end", server.url) as process:
            assert process.stdin is not None
            process.stdin.write("leave\n")
            assert sorted(finished(process).splitlines()) == ["leaving", *["sent"] * 5]
    assert len(server.messages) == 5
    # A lane that was still dialling when everything had been sent is hung up on, before it has said much.
    used = [lines for lines in server.received if "data" in lines]
    assert used
    assert all(lines[-1] == "quit" for lines in used)
