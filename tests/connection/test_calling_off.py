"""What `close()` and `abort()` end, ends: the whole of a batch, and nothing is told falsely by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.naming import NamingServer
from threadmail import Aborted, Client, Closed, Envelope, MailError, Outcome, Receipt, Reentered, Report, ServerConfig
from threadmail._protocol.transaction import Transaction

SENT, DOUBT, NOT_SENT = Outcome.SENT, Outcome.IN_DOUBT, Outcome.NOT_SENT


def letter(name: str) -> Envelope:
    return Envelope("a@here.test", [f"{name}@there.test"], f"Message-ID: <{name}>\r\n\r\nx\r\n".encode())


@pytest.fixture
def gate() -> threading.Event:
    """Closed, it holds up the server's answer to the second message."""
    return threading.Event()


@pytest.fixture
def reached() -> threading.Event:
    """Set when the server has the content of the second message."""
    return threading.Event()


@pytest.fixture
def server(gate: threading.Event, reached: threading.Event) -> Iterator[NamingServer]:
    def answer(message: object) -> None:
        if len(naming.taken) == 1:
            reached.set()
            gate.wait(10.0)

    with NamingServer(on_message=answer) as naming:
        yield naming
        gate.set()


def close(client: Client) -> None:
    client.close(timeout=0.0)


@pytest.mark.parametrize("end", [close, Client.abort])
@pytest.mark.parametrize("window", [1, 4])
def test_a_batch_ends_as_a_whole(
    server: NamingServer,
    gate: threading.Event,
    reached: threading.Event,
    end: Callable[[Client], None],
    window: int,
) -> None:
    """It went on with the next message, on a new connection, and `close()` waited for all of them."""
    client = Client(ServerConfig.from_url(server.url, window=window))
    reports: list[Report] = []
    batch = threading.Thread(target=lambda: reports.append(client.send_all([letter(f"m{n}") for n in range(120)])))
    batch.start()
    assert reached.wait(10.0)
    end(client)
    batch.join(10.0)
    assert not batch.is_alive(), "it ends though the server never answers"
    gate.set()
    outcomes = [receipt.outcome for receipt in reports[0]]
    assert outcomes[:2] == [SENT, DOUBT]
    assert set(outcomes[2:]) <= {NOT_SENT, DOUBT}
    assert outcomes.count(DOUBT) <= window
    assert set(outcomes[60:]) == {NOT_SENT}, "the turns behind it as well"
    assert isinstance(reports[0][-1].error, Aborted)
    assert client.stats().opened == 1, "nobody dialled again"
    if end is close:
        with pytest.raises(Closed):
            client.send(letter("late"))
    else:
        assert client.send(letter("later")).outcome is SENT
    client.close()


def test_a_client_that_could_not_be_closed_in_time_makes_no_further_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds `sync_root`, and goes on with it after `close()` gave up."""
    monkeypatch.setattr("threadmail._connection.kept_connection.LAST_WAIT", 0.01)
    with NamingServer() as server:
        client = Client(server.url)
        client.send(letter("first"))
        held, given_up = threading.Event(), threading.Event()
        told: list[MailError] = []

        def hold() -> None:
            with client.sync_root:
                held.set()
                given_up.wait(10.0)
                try:
                    client.send(letter("second"))
                except MailError as error:
                    told.append(error)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10.0)
        with pytest.raises(MailError):
            client.close(timeout=0.01)
        given_up.set()
        holder.join(10.0)
        assert isinstance(told[0], Closed)
        client.close()
        assert not client.is_connected
        assert len(server.taken) == 1


def test_an_abort_between_two_messages_of_a_batch_is_not_forgotten(gate: threading.Event) -> None:
    with NamingServer() as server:
        client = Client(server.url)

        def messages() -> Iterator[Envelope]:
            for number in range(120):
                if number == 60:
                    client.abort()  # no message is under way while the second turn is put together
                yield letter(f"m{number}")

        report = client.send_all(messages())
        outcomes = [receipt.outcome for receipt in report]
        assert set(outcomes[60:]) == {NOT_SENT}
        assert len(server.taken) == outcomes.count(SENT)
        client.close()


# ---------------------------------------------------------------- whose receipt, and what hangs on it


def test_one_error_of_a_hook_for_many_messages_is_told_of_each() -> None:
    """The hook raises one object again and again; the first message's receipt hung on it."""
    paused = MailError("no dials now", transient=True)

    def no() -> None:
        raise paused

    with Client("smtp://127.0.0.1:9", before_dial=no) as client:
        letters = [letter(name) for name in "abc"]
        report = client.send_all(letters)
        assert [receipt.recipients for receipt in report] == [each.recipients for each in letters]
        for each in letters:
            with pytest.raises(MailError) as info:
                client.send(each)
            assert info.value.receipt is not None
            assert info.value.receipt.recipients == each.recipients
            assert info.value.receipt.error is info.value
    assert paused.receipt is None, "the hook's own object is left alone"


def test_the_receipts_of_a_batch_that_did_not_get_the_lock_hold_no_frame() -> None:
    with Client("smtp://127.0.0.1:9") as client:
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with client.sync_root:
                held.set()
                over.wait(10.0)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10.0)
        report = client.send_all([letter("a"), letter("b")], deadline=0.01)
        over.set()
        holder.join(10.0)
        assert [receipt.error is not None and receipt.error.__traceback__ is None for receipt in report] == [True, True]


def test_a_batch_inside_a_hook_is_told_that_and_not_that_the_client_is_closed(server: NamingServer) -> None:
    """Also where its first message was none."""
    inner: list[Receipt] = []

    def hook(_: Transaction) -> None:
        inner.extend(client.send_all([b"\0 no message", letter("x")]))

    with Client(server.url) as client:
        client.transmit(letter("outer"), before_mail=hook)
    assert isinstance(inner[1].error, Reentered)
