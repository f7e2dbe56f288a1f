"""As `test_interrupts`, where more than one message is under way, and where a refused one is cleaned up after.

What an interrupted call leaves behind on a connection is replies that are still to come. Whoever uses that connection
next must not take them for its own. So the server holds back, here, what answers the message behind, until somebody
waits for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.reliability.injection import Injected, Injector
from tests.reliability.test_interrupts import one, passages, pytestmark, traced  # noqa: F401
from tests.support.mail import envelope, intact
from threadmail import SMTP, Client, MailError, Outcome, ServerConfig, Timeouts
from threadmail._session.delivery import Pipeline
from threadmail._transport.wire import Wire
from threadmail.testing import Peer, ScriptedServer, Serve


class Refusing(Serve):
    """Serves, but for recipients whose address says what is the matter."""

    def _usual(self, peer: Peer, verb: str, command: str) -> str:
        if verb == "RCPT" and "nobody" in command:
            return "550 5.1.1 no such user"
        if verb == "DATA" and "later@example.net" in peer.dialogue.recipients:
            return "451 4.3.0 not now"
        return super()._usual(peer, verb, command)


class HoldsBack(Refusing):
    """Answers one of the RSETs of each connection only once the gate is open."""

    def __init__(self, gate: threading.Event, held: int, *extensions: str) -> None:
        super().__init__(extensions=extensions)
        object.__setattr__(self, "gate", gate)
        object.__setattr__(self, "held", held)
        object.__setattr__(self, "resets", Counter[Peer]())

    def _answer(self, peer: Peer, command: str) -> None:
        here: Any = self
        if command.upper() == "RSET":
            here.resets[peer] += 1
            if here.resets[peer] == here.held:
                peer.wait(here.gate, 10.0)
        super()._answer(peer, command)


class Gate(threading.Event):
    """Opens when the second message, or one that has taken its place, waits for what answers it."""

    sends = 0

    def shut(self) -> None:
        self.clear()
        self.sends = 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    send, receive = Pipeline.send, Wire._receive

    def sending(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        gate.sends += 1
        return send(self, *args, **kwargs)

    def receiving(self: Wire, seconds: float | None) -> None:
        if gate.sends > 1:
            gate.set()
        receive(self, seconds)

    monkeypatch.setattr(Pipeline, "send", sending)
    monkeypatch.setattr(Wire, "_receive", receiving)
    return gate


@pytest.mark.parametrize(
    ("held", "window", "recipients"),
    [
        (1, 1, ["carol@example.net", "dave@example.net"]),
        (2, 4, ["nobody@example.net"]),
    ],
    ids=["riding", "window"],
)
def test_what_was_interrupted_lends_its_replies_to_no_other_message(
    gate: Gate, held: int, window: int, recipients: list[str]
) -> None:
    """As many replies are due for the message behind as the next one waits for: none must be taken for another."""

    def batch(number: object, injector: Injector) -> None:
        """Two messages, of which one rides or is in a window; then another one, with its own fate."""
        gate.shut()
        with Client(ServerConfig("127.0.0.1", server.port, window=window)) as client:
            client.noop()
            try:
                with traced(injector):
                    client.send_all([one(f"n{number}a"), one(f"n{number}b")])
            except Injected:
                pass
            gate.sends = max(gate.sends, 1)  # what comes now is another one, also where none had begun
            name, said = f"n{number}s", "no such user"
            try:
                told = client.send(envelope(name).for_recipients(recipients), deadline=5.0).outcome
            except MailError as error:
                told, said = error.outcome, str(error)
            finally:
                gate.set()
        expected = Outcome.NOT_SENT if "nobody" in recipients[0] else Outcome.SENT
        assert told is expected, (injector.where, told)
        assert "no such user" in said, (injector.where, said)
        arrived = [m for m in server.messages if m.sender == f"from-{name}@example.org"]
        assert len(arrived) == (told is Outcome.SENT), injector.where
        server_side = [m.recipients for m in server.messages if f"This is {name}.".encode() in m.content]
        assert server_side == [tuple(recipients)] * len(arrived), injector.where

    step = HoldsBack(gate, held, "PIPELINING", "CHUNKING")
    with ScriptedServer([step], last="repeat") as server:
        batch("warm", Injector())
        dry = Injector()
        batch("dry", dry)
        numbers = passages(dry.places)
        for number in numbers:
            batch(number, Injector(number))
        found = intact(m for m in server.messages if not m.sender.endswith("s@example.org"))
    assert len(numbers) > 150
    assert {name: count for name, count in found.items() if count > 1} == {}, "sent twice"


def by_client(server: ScriptedServer) -> tuple[Any, Callable[[str, str], object]]:
    config = ServerConfig("127.0.0.1", server.port, timeouts=Timeouts(command=5.0, final=5.0))
    client = Client(config)
    return client, lambda name, to: client.send(envelope(name).for_recipients(to))


def by_smtp(server: ScriptedServer) -> tuple[Any, Callable[[str, str], object]]:
    smtp = SMTP("127.0.0.1", server.port, timeout=5.0)

    def sent(name: str, to: str) -> object:
        if smtp.sock is None:
            smtp.connect("127.0.0.1", server.port)
        return smtp.sendmail(f"from-{name}@example.org", [to], envelope(name).content)

    return smtp, sent


@pytest.mark.parametrize("make", [by_client, by_smtp])
@pytest.mark.parametrize("to", ["nobody@example.net", "later@example.net"])
@pytest.mark.parametrize("step", [Refusing(), Refusing(extensions=())], ids=["grouped", "one by one"])
def test_an_exception_while_a_refused_message_is_cleaned_up_after(
    make: Callable[[ScriptedServer], tuple[Any, Callable[[str, str], object]]], step: Serve, to: str
) -> None:
    """No transaction is left open, and no content due: the next message is sent at once."""
    with ScriptedServer([step], last="repeat") as server:

        def refused(name: str, injector: Injector) -> None:
            try:
                with traced(injector):
                    send(f"{name}r", to)
            except (MailError, Injected):
                pass

        client, send = make(server)
        with client:
            send("first", "somebody@example.net")
            refused("warm", Injector())
            dry = Injector()
            refused("dry", dry)
            numbers = passages(dry.places)
            for number in numbers:
                injector = Injector(number)
                refused(f"n{number}", injector)
                try:
                    send(f"n{number}g", "somebody@example.net")
                except MailError as error:
                    if isinstance(client, Client) or client.sock is not None:
                        pytest.fail(f"at {injector.where}: the next message: {error!r}")
        arrived = Counter(m.sender.removeprefix("from-").partition("@")[0] for m in server.messages)
    assert len(numbers) > 100
    assert [name for name in arrived if name.endswith("r")] == []
    assert [name for name, count in arrived.items() if count > 1] == []
