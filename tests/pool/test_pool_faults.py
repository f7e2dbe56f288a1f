"""What goes wrong with pools, each forced: lost places, locks met twice, callers that wait for themselves."""

from __future__ import annotations

import contextlib
import gc
import smtplib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.mail import envelope, in_threads, message
from threadmail import (
    Client,
    ClientPool,
    Closed,
    ConnectionRefused,
    GreetingRefused,
    LoginRefused,
    MailError,
    Outcome,
    Reentered,
    ServerConfig,
    TimedOut,
)
from threadmail._pool.held import Lease, PoolStats
from threadmail._pool.leases import LINE_OF_HOLDERS
from threadmail._runtime.deadline import Deadline
from threadmail._runtime.steps import Bell
from threadmail.testing import (
    CaptureServer,
    Drop,
    Expect,
    Pause,
    Reply,
    ScriptedServer,
    Serve,
    Signal,
    Stall,
    ehlo,
    greeting,
)


@contextlib.contextmanager
def sound(pool: ClientPool) -> Iterator[ClientPool]:
    """When all callers are gone nothing is leased and nobody waits; of a closed pool nothing is left."""
    yield pool
    stats = pool.stats()
    assert (stats.leased, stats.waiting) == (0, 0)
    assert stats.idle <= pool.max_size
    pool.close()
    stats = pool.stats()
    assert (stats.leased, stats.waiting, stats.idle) == (0, 0, 0)


def in_the_middle(pool: ClientPool, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[object]:
    """Have `act` done in the next step of the pool that makes a client: as a signal handler or the collector would.

    Returns where its result, or error, will be.
    """
    came: list[object] = []
    new = pool._keys._new

    def interrupted() -> Client:
        if not came:
            came.append(None)
            try:
                came[0] = act()
            except MailError as error:
                came[0] = error
        return new()

    monkeypatch.setattr(pool._keys, "_new", interrupted)
    return came


def within(seconds: float, act: Callable[[], object]) -> None:
    """Run `act` in a thread, and fail if that does not come back."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised again
            errors.append(error)

    thread = threading.Thread(target=work, name="within", daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- Q1: a deadline that passes


def test_what_is_granted_to_one_whose_deadline_has_just_passed_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's lease ends between the waiter's last look and its giving up."""
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool:
        has, over, ended = threading.Event(), threading.Event(), threading.Event()

        def hold() -> None:
            with pool.lease():
                has.set()
                assert over.wait(10.0)
            ended.set()

        holder = threading.Thread(target=hold, name="holder")
        holder.start()
        assert has.wait(10.0)
        give_back = ClientPool._give_back

        def too_late(self: ClientPool, lease: Lease[Client], *rest: Any) -> None:
            if threading.current_thread() is not holder and not ended.is_set():
                over.set()
                assert ended.wait(10.0)
            give_back(self, lease, *rest)

        monkeypatch.setattr(ClientPool, "_give_back", too_late)
        with pytest.raises(TimedOut) as info, pool.lease(timeout=0.01):
            pass
        assert info.value.deadline_passed
        holder.join(10.0)
        assert pool.send(message(), deadline=5.0).outcome is Outcome.SENT


def test_churn_with_deadlines_loses_no_place() -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=2)) as pool:

        def work(i: int) -> None:
            for k in range(60):
                with contextlib.suppress(TimedOut), pool.lease(timeout=0.0005 * (1 + (i + k) % 7)):
                    pass

        assert in_threads(8, work) == []


# ---------------------------------------------------------------- Q2: the collector, and signal handlers


def test_the_collector_may_end_a_lease_in_the_middle_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=2)) as pool:
        abandoned: list[Any] = []

        def letters() -> Iterator[Client]:
            with pool.lease() as client:
                while True:
                    yield client

        abandoned.append(letters())
        next(abandoned[0])

        def collect() -> None:
            abandoned.clear()
            gc.collect()

        came = in_the_middle(pool, monkeypatch, collect)

        def another() -> None:
            with pool.lease(timeout=5.0) as client:
                client.send(message())

        within(10.0, another)
        assert came


@pytest.mark.parametrize("method", ["stats", "close", "send", "lease"])
def test_a_signal_handler_may_use_the_pool_it_interrupted(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stats()` and `close()` work; a lease is refused, with a reason."""
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=2)) as pool:

        def handler() -> object:
            if method == "lease":
                with pool.lease():
                    return None
            return pool.send(message("b")) if method == "send" else getattr(pool, method)()

        came = in_the_middle(pool, monkeypatch, handler)
        ended: list[object] = []

        def send() -> None:
            try:
                ended.append(pool.send(message(), deadline=5.0))
            except Closed as error:
                ended.append(error)

        within(10.0, send)
        if method == "close":
            assert came == [None]
            assert pool.stats() == PoolStats(opened=1, closed={"closed": 1})
            with pytest.raises(Closed), pool.lease():
                pass
        elif method == "stats":
            assert isinstance(came[0], PoolStats)
        else:
            assert isinstance(came[0], Reentered)
        assert len(server.messages) == 1


# ---------------------------------------------------------------- Q3, Q4: a client that somebody still holds


@contextlib.contextmanager
def held(client: Client) -> Iterator[None]:
    """Another thread has the client's `sync_root`."""
    has, over = threading.Event(), threading.Event()

    def hold() -> None:
        with client.sync_root:
            has.set()
            over.wait(30.0)

    holder = threading.Thread(target=hold, name="holder")
    holder.start()
    assert has.wait(10.0)
    try:
        yield
    finally:
        over.set()
        holder.join(10.0)


def test_a_client_that_another_thread_holds_is_not_handed_on_and_nobody_waits_for_it() -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool, contextlib.ExitStack() as stack:
        with pool.lease() as first:
            first.send(message("a"))
            stack.enter_context(held(first))
        within(5.0, lambda: pool.send(message("b"), deadline=4.0))
        with pool.lease() as second:
            assert second is not first
        stack.close()
        with pytest.raises(Closed):
            first.send(message("c"))
    assert len(server.messages) == 2


def test_a_kept_client_that_somebody_took_hold_of_is_passed_over() -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool:
        with pool.lease() as first:
            first.send(message("a"))
        with held(first):
            within(5.0, lambda: pool.send(message("b"), deadline=4.0))
    assert len(server.messages) == 2


def test_the_idle_watch_passes_over_whom_somebody_holds() -> None:
    with CaptureServer() as server:
        config = ServerConfig.from_url(server.url, idle_timeout=0.05)
        with sound(ClientPool(config, max_size=1)) as pool:
            with pool.lease() as client:
                client.send(message("a"))
            with held(client):
                server.wait_for_connections(0)
                end = time.monotonic() + 10.0
                while pool.stats().leased:
                    assert time.monotonic() < end, "the place is lost"
                    threading.Event().wait(0.001)
            assert pool.send(message("b"), deadline=5.0).outcome is Outcome.SENT


def test_a_call_of_this_thread_on_the_client_of_an_ended_lease_keeps_it_out() -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool:
        lease = pool.lease()
        client = lease.__enter__()
        with client.sync_root:
            lease.__exit__(None, None, None)
        with pool.lease() as other:
            assert other is not client
            other.send(message())


# ---------------------------------------------------------------- Q5, Q8: full is not dead


def test_refusals_of_a_full_server_reach_nobody() -> None:
    """Two are let in, all others refused; connections wear out after two messages, and are replaced."""
    with CaptureServer(max_connections=2) as server:
        config = ServerConfig.from_url(server.url, max_messages=2)
        with sound(ClientPool(config, max_size=4)) as pool:

            def work(i: int) -> None:
                for k in range(6):
                    assert pool.send(envelope(f"t{i}m{k}"), deadline=20.0).outcome is Outcome.SENT

            assert in_threads(4, work) == []
            assert len(server.messages) == 24


def test_an_idle_server_that_refused_one_too_many_is_asked_at_once() -> None:
    """The refusal of a third connection is forgotten when the two are gone: the next caller dials, and is let in."""
    with CaptureServer(max_connections=1) as server, sound(ClientPool(server.url, max_size=2)) as pool:
        entered, go = threading.Event(), threading.Event()

        def first() -> None:
            with pool.lease() as client:
                client.send(message("a"))
                entered.set()
                assert go.wait(10.0)
                client.close()

        thread = threading.Thread(target=first, name="first")
        thread.start()
        assert entered.wait(10.0)
        with pytest.raises(TimedOut), pool.lease(timeout=0.1):
            pass
        go.set()
        thread.join(10.0)
        server.wait_for_connections(0)
        assert pool.send(message("b"), deadline=5.0).outcome is Outcome.SENT


# ---------------------------------------------------------------- Q6: who waits for himself


def test_a_lease_inside_the_only_lease_is_refused_at_once() -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool, pool.lease() as client:
        with pytest.raises(Reentered):
            pool.send(message("inner"))
        assert client.send(message("outer")).outcome is Outcome.SENT


def test_when_all_who_have_a_client_want_another_one_of_them_is_told() -> None:
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=3)) as pool:
        barrier = threading.Barrier(3)
        refused: list[Reentered] = []

        def work(i: int) -> None:
            with pool.lease() as client:
                barrier.wait(10.0)
                try:
                    pool.send(envelope(f"inner{i}"), deadline=20.0)
                except Reentered as error:
                    refused.append(error)
                client.send(envelope(f"outer{i}"))

        assert in_threads(3, work) == []
        assert 1 <= len(refused) <= 2
        assert len(server.messages) == 6 - len(refused)


def test_a_lease_that_was_begun_in_another_context_holds_nobody_up() -> None:
    """Frameworks enter a lease in a thread of theirs, in a context of its own, and leave it in another one."""
    import contextvars

    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool:
        lease = pool.lease()
        contextvars.copy_context().run(lease.__enter__)
        leaver = threading.Thread(target=lease.__exit__, args=(None, None, None), name="leaver")
        bell = Bell.wait

        def wait(self: Bell, seconds: float | None) -> None:
            if not leaver.ident:
                leaver.start()
            bell(self, seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bell, "wait", wait)
            assert pool.send(message(), deadline=10.0).outcome is Outcome.SENT
        leaver.join(10.0)


def test_nobody_waits_for_ever_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadmail._pool.leases.LINE", 0.05)
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool, pool.lease():

        def other(i: int) -> None:
            started = time.monotonic()
            with pytest.raises(TimedOut), pool.lease():
                pass
            assert time.monotonic() - started < LINE_OF_HOLDERS

        assert in_threads(1, other) == []


def test_a_lease_that_decorates_a_function_waits_anew_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call found the line of the first one, long over, and was sent away at once."""
    lines: list[list[Deadline]] = []
    acquire = ClientPool._acquire

    def noted(self: ClientPool, lease: Lease[Client], end: Deadline, line: list[Deadline]) -> Client:
        lines.append(list(line))
        client = acquire(self, lease, end, line)
        line.append(Deadline(0.0))  # it has stood in line, for as long as there was
        return client

    monkeypatch.setattr(ClientPool, "_acquire", noted)
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=1)) as pool:
        decorate: Any = pool.lease()
        called: Callable[[], PoolStats] = decorate(lambda: pool.stats())
        assert [called().leased, called().leased] == [1, 1]
    assert lines == [[], []]


def test_who_has_a_client_already_waits_less_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may wait for it by a lock that the pool knows nothing of: here the one that they log under."""
    monkeypatch.setattr("threadmail._pool.leases.LINE_OF_HOLDERS", 0.05)
    with CaptureServer() as server, sound(ClientPool(server.url, max_size=2)) as pool:
        both, log = threading.Barrier(2), threading.Lock()
        late: list[TimedOut] = []

        def work(i: int) -> None:
            with pool.lease() as client:
                both.wait(10.0)
                with log:
                    try:
                        pool.send(envelope(f"inner{i}"))
                    except TimedOut as error:
                        late.append(error)
                client.send(envelope(f"outer{i}"))

        assert in_threads(2, work) == []
        assert len(late) >= 1


@pytest.mark.parametrize("has_one", [True, False])
def test_how_long_he_waits_whose_connection_is_lost_under_him(has_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of `send`, and the server lets nobody else in: he is in line again, with what he has besides."""
    monkeypatch.setattr("threadmail._pool.leases.LINE_OF_HOLDERS", 0.05)
    monkeypatch.setattr("threadmail._pool.leases.LINE", 1.0)
    lost, full = [Serve(until="MAIL", count=2), Drop()], [greeting("421 4.3.2 too many connections")]
    with (
        ScriptedServer(*[[Serve()]] * (1 + has_one), lost, full, last="repeat") as server,
        sound(ClientPool(server.config, max_size=4)) as pool,
        contextlib.ExitStack() as mine,
    ):
        there, over = threading.Event(), threading.Event()

        def hold() -> None:
            with pool.lease():
                there.set()
                over.wait(10.0)

        holder = threading.Thread(target=hold, name="holder")
        holder.start()
        mine.callback(holder.join, 10.0)
        mine.callback(over.set)
        assert there.wait(10.0)
        if has_one:
            mine.enter_context(pool.lease())
        pool.send(envelope("first"))
        began = time.monotonic()
        with pytest.raises(TimedOut, match="no client of the pool came free"):
            pool.send(envelope("second"))
        assert (time.monotonic() - began < 0.9) == has_one


def test_who_has_waited_in_line_before_his_connection_was_lost_has_done_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`send` waits for others for a minute at most, all tries together."""
    monkeypatch.setattr("threadmail._pool.leases.LINE", 1.0)
    lost, full = [Serve(until="MAIL", count=2), Drop()], [greeting("421 4.3.2 too many connections")]
    with (
        ScriptedServer([Serve()], lost, full, last="repeat") as server,
        sound(ClientPool(server.config, max_size=2)) as pool,
        contextlib.ExitStack() as mine,
    ):
        leases = [threading.Event(), threading.Event()]
        free, over = threading.Event(), threading.Event()

        def hold(index: int, until: threading.Event) -> None:
            with pool.lease() as client:
                if index:
                    client.send(envelope("first"))
                leases[index].set()
                until.wait(10.0)

        for index, until in enumerate((over, free)):
            holder = threading.Thread(target=hold, args=(index, until), name=f"holder {index}")
            holder.start()
            mine.callback(holder.join, 10.0)
            mine.callback(until.set)
            assert leases[index].wait(10.0)
        timer = threading.Timer(0.7, free.set)
        timer.start()
        mine.callback(timer.join)
        began = time.monotonic()
        with pytest.raises(TimedOut, match="no client of the pool came free"):
            pool.send(envelope("second"))
        assert server.connections == 3
        assert 0.7 < time.monotonic() - began < 1.5


# ---------------------------------------------------------------- Q7, S17, S18: closing


def _kept(pool: ClientPool, count: int) -> None:
    with contextlib.ExitStack() as stack:
        for client in [stack.enter_context(pool.lease()) for _ in range(count)]:
            client.send(message())


def test_stalled_farewells_are_waited_for_together_and_in_time() -> None:
    steps = [Serve(until="QUIT"), Stall()]
    with ScriptedServer(steps, last="repeat") as server:
        pool = ClientPool(server.url, max_size=4)
        _kept(pool, 4)
        started = time.monotonic()
        pool.close(timeout=0.3)
        assert time.monotonic() - started < 1.5
        assert pool.stats().leased == 0
        assert server.connections == 4


def test_an_interrupted_close_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptureServer() as server:
        pool = ClientPool(server.url, max_size=4)
        _kept(pool, 4)
        part = Client._part
        monkeypatch.setattr("threadmail.pool.start_thread", lambda *_, **__: None)

        def interrupted(self: Client, *rest: Any) -> bool:
            monkeypatch.setattr(Client, "_part", part)
            raise KeyboardInterrupt

        monkeypatch.setattr(Client, "_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.close()
        pool.close(timeout=5.0)
        assert pool.stats().leased == pool.stats().idle == 0
        server.wait_for_connections(0)
        assert server.quits >= 3


def test_a_second_close_may_shorten_the_first() -> None:
    reached = threading.Event()
    with ScriptedServer([greeting(), ehlo(), Expect("MAIL"), Signal(reached), Stall()]) as server:
        pool = ClientPool(server.url)
        sending = threading.Thread(target=lambda: in_threads(1, lambda _: pool.send(message())), name="sending")
        sending.start()
        assert reached.wait(10.0)
        first = threading.Thread(target=pool.close, name="first")
        first.start()
        started = time.monotonic()
        pool.close(timeout=0.05)
        first.join(10.0)
        assert time.monotonic() - started < 5.0
        sending.join(10.0)
        assert pool.stats().leased == 0


def test_closing_inside_a_lease_does_not_wait_for_itself() -> None:
    with CaptureServer() as server:
        pool = ClientPool(server.url)
        with pool.lease() as client:
            started = time.monotonic()
            pool.close()
            assert time.monotonic() - started < 5.0
            assert client.send(message()).outcome is Outcome.SENT
            with pytest.raises(Closed), pool.lease():
                pass
        assert pool.stats() == PoolStats(opened=1, closed={"closed": 1})
        server.wait_for_connections(0)
        assert server.quits == 1


def test_the_watch_of_idle_clients_delays_no_send() -> None:
    """Its farewell, which the server does not answer, takes the only place: who needs that ends it."""
    goodbye = threading.Event()
    first = [Serve(until="QUIT"), Signal(goodbye), Stall()]
    with ScriptedServer(first, [Serve()]) as server:
        config = ServerConfig.from_url(server.url, idle_timeout=0.05)
        with sound(ClientPool(config, max_size=1)) as pool:
            pool.send(message("a"))
            assert goodbye.wait(10.0)
            started = time.monotonic()
            assert pool.send(message("b"), deadline=10.0).outcome is Outcome.SENT
            assert time.monotonic() - started < 1.5


# ---------------------------------------------------------------- S15, S16: what callers are told


def test_the_second_caller_gets_the_class_of_the_first() -> None:
    with CaptureServer(tls="starttls", auth={"me": "right"}) as server:
        import dataclasses

        with sound(ClientPool(dataclasses.replace(server.config, password="not so"))) as pool:
            told = []
            for _ in range(2):
                with pytest.raises(LoginRefused) as info:
                    pool.send(message())
                told.append(info.value)
            assert isinstance(told[1], smtplib.SMTPAuthenticationError)
            assert told[1].smtp_code == 535
            assert told[0] is not told[1]
            assert told[0].receipt is not told[1].receipt
            assert server.connections_opened == 1
    with ScriptedServer(last="refuse") as nobody:
        config = ServerConfig.from_url(nobody.url)
    with sound(ClientPool(config)) as pool:
        for _ in range(2):
            with pytest.raises(ConnectionRefused):
                pool.send(message())


def test_a_session_that_is_taken_back_before_its_first_answer_counts_as_a_failed_dial() -> None:
    """Else a server that lets in and hangs up would be dialled by each message, as fast as they come."""
    taken_back = [greeting(), ehlo(), Expect("MAIL"), Drop()]
    with ScriptedServer(taken_back, last="repeat") as server, sound(ClientPool(server.url)) as pool:
        for _ in range(20):
            with pytest.raises(MailError):
                pool.send(message())
        assert server.connections <= 2


def test_a_dial_ended_by_its_callers_own_deadline_says_nothing_of_the_server() -> None:
    dialling = threading.Event()
    with ScriptedServer([Signal(dialling), Stall()], [Serve()]) as server, sound(ClientPool(server.url)) as pool:
        with pytest.raises(TimedOut) as info:
            pool.send(message("a"), deadline=0.1)
        assert info.value.deadline_passed
        assert pool.send(message("b"), deadline=5.0).outcome is Outcome.SENT


def test_who_waits_for_a_dial_that_fails_is_told_the_same() -> None:
    dialling, go = threading.Event(), threading.Event()
    with ScriptedServer([Signal(dialling), Pause(go), Reply("554 5.3.2 no"), Drop()], last="refuse") as server:
        with sound(ClientPool(server.url, max_size=3)) as pool:
            told: list[GreetingRefused] = []

            def send() -> None:
                try:
                    pool.send(message(), deadline=10.0)
                except GreetingRefused as error:
                    told.append(error)

            threads = [threading.Thread(target=send, name=f"sender-{i}") for i in range(3)]
            threads[0].start()
            assert dialling.wait(10.0)
            for thread in threads[1:]:
                thread.start()
            end = time.monotonic() + 10.0
            while pool.stats().waiting < 2:
                assert time.monotonic() < end
                threading.Event().wait(0.001)
            go.set()
            for thread in threads:
                thread.join(10.0)
            assert [error.smtp_code for error in told] == [554, 554, 554]
            assert server.connections + server.connections_refused == 1
