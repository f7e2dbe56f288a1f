"""One client and several threads: the guarded `SMTP`, and `Client` with what may happen to it meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

from tests.detsched import Run
from tests.detsched.explore import Program
from tests.detsched.modelserver import ModelServer
from tests.detsched.scenario import PostOffice
from tests.detsched.smtpmodel import Faults
from threadmail import SMTP, Client, LoginRefused, ServerConfig, TimedOut
from threadmail._connection.waiters import Waiters
from threadmail._runtime.deadline import NEVER

from .scenario import CLIENT, CONFIG, IDLE, LOST, OWNER, Scenario, by_envelope, orders, small
from .stage import EXTENSIONS, MORE_COMMANDS, Server, Threads, on_time


def guarded(threads: int, messages: int, *extensions: str) -> Program:
    """Threads share one guarded `SMTP`."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(*extensions, bound=1, lockset=True))
        client = SMTP("model", 25, local_hostname="me")
        office.senders(threads=threads, messages=messages, sendmail=client.sendmail)

    return program


def shared_client(
    threads: int,
    messages: int,
    *extensions: str,
    faults: Faults | None = None,
    bound: int | None = 1,
    failures: tuple[str, ...] = (),
) -> Program:
    """Threads share one `Client`, which connects when the first of them needs it."""

    def program(run: Run) -> None:
        server = ModelServer(*extensions, faults=faults, bound=bound, lockset=bound is not None)
        office = PostOffice(run, server, failures=failures)
        client = Client(CONFIG, watch_idle=False)
        office.senders(threads=threads, messages=messages, sendmail=by_envelope(client.send), recipients=2)

    return program


def held_by_the_user(run: Run) -> None:
    """User code holds `sync_root` over two messages; another thread sends one: never in between."""
    office = PostOffice(run, ModelServer(bound=1, lockset=True))
    client = Client(CONFIG, watch_idle=False)
    send = by_envelope(client.send)
    pair, single = office.jobs(0, 2), office.jobs(1, 1)

    def both() -> None:
        with client.sync_root:
            for job in pair:
                office.ledger.send(job, send)

    run.thread(both, "pair")
    run.thread(lambda: office.ledger.send(single[0], send), "single")


def beside(
    act: Callable[[Client, ModelServer], object], *, failures: tuple[str, ...] = (), threads: int = 2
) -> Program:
    """Threads send one message each through one `Client` while another one does something to it."""

    def program(run: Run) -> None:
        office = PostOffice(run, ModelServer(ordered=True), failures=failures)
        client = Client(CONFIG, watch_idle=False)
        office.senders(threads=threads, messages=1, sendmail=by_envelope(client.send))
        run.thread(lambda: act(client, office.server), "other")

    return program


def idle_close(client: Client, _: ModelServer) -> None:
    time.sleep(IDLE + 1)
    client.close_idle()


def hang_up(_: Client, server: ModelServer) -> None:
    server.hang_up_idle()


def close_anyway(client: Client, _: ModelServer) -> None:
    """Close; every timed wait may time out at any moment, so that close() may say that it gave up."""
    with contextlib.suppress(TimedOut):
        client.close()


def clients(*acts: Callable[[Client], object]) -> Program:
    """Each act on a thread of its own, all on one `Client` that is not connected yet."""

    def program(run: Run) -> None:
        threads = Threads(run, Server(bound=1, lockset=True))
        client = Client(CONFIG, watch_idle=False)
        for act in acts:
            threads.add(partial(act, client))

    return program


def left_in_line(run: Run) -> None:
    """Whose thread ended where it stood in line, without a word, holds a batch up once and not at each turn."""
    threads = Threads(run, Server())
    line = Waiters()

    def turns() -> None:
        line._places[threading.Event()] = None
        line.begin("batch")
        line.let_in("batch", NEVER)
        begun = time.monotonic()
        line.let_in("batch", NEVER)
        on_time(begun, "the next turn")

    threads.add(turns)


def wrong_password(run: Run) -> None:
    """Two clients with one config dial at once: the password is offered once, and both are told what came of it."""
    offered: list[object] = []

    def refuse(*_: object) -> str:
        offered.append(None)
        return "535 5.7.8 no"

    run.context.enter_context(mock.patch.dict(MORE_COMMANDS, {"AUTH": refuse}))
    threads = Threads(run, Server(*EXTENSIONS))
    dialled = [threading.Event(), threading.Event()]
    asked: list[object] = []

    def credentials() -> tuple[str, str]:
        """Asked when both are let in and nobody has offered it yet, and once more by whoever was refused."""
        mine = len(asked)
        asked.append(None)
        if mine < 2:
            dialled[mine].set()
            dialled[1 - mine].wait()
        return "user", "secret"

    config = ServerConfig("127.0.0.1", 25, credentials=credentials, local_hostname="me", max_age=None)

    def act() -> None:
        with contextlib.suppress(LoginRefused):
            Client(config, watch_idle=False).connect()
        assert len(offered) == 1, "one login"

    threads.add(act)
    threads.add(act)


def _client(name: str, program: Program, schedules: int | None = None, *, formula: bool = False) -> Scenario:
    return Scenario(name, program, schedules, formula, CLIENT, OWNER)


_BOUNDS = [(2, 1), (2, 2), (3, 1), (3, 2)]
_REFUSED = Faults(refuse=frozenset(["r1.T0m0@there.test"]))
_DROPS = Faults(drop={0: 4})
_HANGS_UP = Faults(hang_up_after={0: 1})
_ENDED = ("Closed", "Aborted")


SCENARIOS = [
    *(_client(f"SMTP shared, {t}x{m}", guarded(t, m), orders(t, m), formula=True) for t, m in _BOUNDS),
    *(_client(f"Client shared, {t}x{m}", shared_client(t, m), orders(t, m), formula=True) for t, m in _BOUNDS),
    # MAIL, RCPT and DATA in one write: the same orders, for a group is written and read under the one lock.
    *(
        _client(f"SMTP shared, in groups, {t}x{m}", guarded(t, m, "PIPELINING"), orders(t, m), formula=True)
        for t, m in _BOUNDS
    ),
    *(
        _client(f"Client shared, in groups, {t}x{m}", shared_client(t, m, "PIPELINING"), orders(t, m), formula=True)
        for t, m in _BOUNDS
    ),
    _client("Client, sync_root held over two messages", held_by_the_user, 2, formula=True),
    _client("Client, a recipient refused, 2x1", shared_client(2, 1, faults=_REFUSED), 2, formula=True),
    _client(
        "Client, a recipient refused in a group, 2x1",
        shared_client(2, 1, "PIPELINING", faults=_REFUSED),
        2,
        formula=True,
    ),
    _client(
        "Client, dropped at the 4th command, 2x1", shared_client(2, 1, faults=_DROPS, bound=None, failures=LOST), 2
    ),
    _client("Client, hung up on after a message, 2x1", shared_client(2, 1, faults=_HANGS_UP, bound=None), 2),
    _client("Client, 2x1 beside idle close", beside(idle_close), 18),
    _client("Client, 2x1 beside a server that hangs up", beside(hang_up, failures=LOST), 58),
    _client("Client, 1x1 beside close()", beside(close_anyway, failures=_ENDED, threads=1), 146),
    _client("Client, 2x1 beside abort()", beside(lambda client, _: client.abort(), failures=_ENDED), 546),
]

SMALL = [
    _client("Client, connect() from two threads", clients(Client.connect, Client.connect)),
    _client("Client, noop() from two threads", clients(Client.noop, Client.noop)),
    small("Client, a wrong password in two dials", wrong_password, *CLIENT),
    _client("Client, somebody is left in line", left_in_line),
]
