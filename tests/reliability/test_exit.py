"""A program that ends with a queue ends in time, whatever the server does, and says what was not sent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
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


#: Python 3.12.0 to 3.12.2 start no thread when the main one has ended (CPython gh-113964): senders end with it there.
ENDS_WITH_MAIN = (3, 12) <= sys.version_info[:3] < (3, 12, 3)

outliving = pytest.mark.skipif(ENDS_WITH_MAIN, reason="this Python starts no thread when the main one has ended")


@outliving
@pytest.mark.parametrize("how", ["used", "unused", "made", "imported"])
def test_threads_that_go_on_when_the_main_one_has_ended_mail_as_before(how: str) -> None:
    """A sender was closed as the main thread ended; and a first import then ended in an error of the interpreter."""
    with ScriptedServer() as server:
        with program("outlives", "20", how, server.url) as process:
            lines = finished(process).splitlines()
        assert lines == ["sent"] * (16 if how == "used" else 15)
        names = Counter(message.sender for message in server.messages)
    assert len(names) == len(lines)
    assert max(names.values()) == 1
    # Each connection was closed as at any other end.
    assert all(lines[-1] == "quit" for lines in server.received if "data" in lines)


@outliving
def test_a_thread_that_runs_as_long_as_the_main_one_is_alive_ends_with_it() -> None:
    with ScriptedServer() as server:
        with program("outlives", "20", "polled", server.url) as process:
            assert finished(process).splitlines() == ["sent", "sent"]
        assert server.messages[-1].sender == "from-last@example.org"


@outliving
def test_jobs_that_an_executor_of_the_program_still_has_mail_as_before() -> None:
    with ScriptedServer() as server:
        with program("outlives", "20", "executor", server.url) as process:
            assert finished(process).splitlines() == ["sent"] * 6
        assert len(server.messages) == 6


@outliving
def test_a_batch_that_is_fed_after_the_end_of_the_main_thread() -> None:
    with ScriptedServer() as server:
        with program("outlives", "20", "batch", server.url) as process:
            assert finished(process) == "5 messages: 5 sent\n"
        assert len(server.messages) == 5


@outliving
def test_what_the_last_thread_leaves_in_the_queue_is_worked_off() -> None:
    with ScriptedServer() as server:
        with program("outlives", "20", "queue", server.url) as process:
            finished(process)
        assert len(server.messages) == 5


@outliving
def test_or_is_told_of_when_the_time_is_over() -> None:
    with stalling() as (server, reached), program("outlives", str(GRACE), "queue", server.url) as process:
        _, err = process.communicate(timeout=60.0)
        assert all(event.is_set() for event in reached)
    assert process.returncode == 0
    assert "the interpreter ends, and 3 messages were not sent, 2 in doubt" in err


@outliving
def test_ctrl_c_ends_the_waiting_for_the_last_thread() -> None:
    """As Python has it, that thread is left behind; what it has queued is told of."""
    with stalling() as (server, reached), program("outlives", "600", "queue", server.url) as process:
        assert all(event.wait(10.0) for event in reached)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60.0)
    assert "interrupted, and 3 messages were not sent, 2 in doubt" in err


@outliving
def test_what_a_callback_of_atexit_submits_is_worked_off() -> None:
    """Its sender had no other use before."""
    with ScriptedServer() as server:
        with program("outlives", "20", "atexit", server.url) as process:
            finished(process)
        assert len(server.messages) == 5


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="it takes no thread any more there, and says so")
def test_in_one_that_comes_later_than_ours_it_is_refused_and_not_lost() -> None:
    with ScriptedServer() as server:
        with program("outlives", "20", "late", server.url) as process:
            assert "this sender is closed, for the interpreter is ending" in finished(process)
        assert server.messages == []
