"""FaultProxy: what the network does to a connection, between a client and a real server, exact to the byte.

Owns a listening socket and one thread that moves every byte; guarantees that both are gone after the ``with`` block.
The faults themselves are in `_proxy_faults`, what they do to a connection in `_proxy_link`.
"""

from __future__ import annotations

import dataclasses
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ._endpoint import Endpoint
from ._proxy_faults import Cut, Delay, Fault, Garble, Hold, Passage, Plan, Trickle
from ._proxy_link import Link, reset

if TYPE_CHECKING:
    from typing_extensions import Self

    from threadmail.config import ServerConfig

DIAL_TIMEOUT = 5.0
JOIN_DEADLINE = 10.0


class FaultProxy:
    """A TCP proxy that breaks connections where it is told; a context manager.

        with CaptureServer() as server, FaultProxy(server, Plan(to_client=[Cut(200)])) as proxy:
            client = Client(proxy.reroute(server.config))
            client.send(message)            # its connection is reset behind the 200th byte that the server says

    One plan is used up by each connection, in the order they come; connections beyond them pass unharmed. What a plan
    does depends on nothing but the bytes: the same session breaks at the same place, however the system cuts the stream
    into segments. The proxy knows no protocol. With TLS it sees, counts and damages the ciphertext.

    Args:
        server: a test server that has been started, or the (host, port) of any other.
        plans: one for each connection.
        host: the address to listen on; the port is a free one.
        record: keep the bytes that come, credentials among them, for `passages`.
    """

    def __init__(
        self, server: Endpoint | tuple[str, int], *plans: Plan, host: str = "127.0.0.1", record: bool = False
    ) -> None:
        self._target = (server.host, server.port) if isinstance(server, Endpoint) else server
        self._host = host
        self._record = record
        self._port: int | None = None
        self._thread: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        # Guards the fields below, which the proxy's thread changes and others look at.
        self._changed = threading.Condition()
        self._closing = False
        self._plans = deque(plans)
        self._links: list[Link] = []
        self._refused = 0

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen and pass on; entering the ``with`` block does this. Raises RuntimeError when called twice."""
        if self._thread is not None:
            raise RuntimeError("a FaultProxy starts once: make a new one")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, 0), family=family, backlog=128)
        self._port = listener.getsockname()[1]
        self._wake = socket.socketpair()
        name = f"threadmail-proxy-{self._port}"
        self._thread = threading.Thread(target=self._run, args=(listener, self._wake[0]), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and the proxy's thread; idempotent."""
        with self._changed:
            self._closing = True
        if self._thread is None or self._wake is None:
            return
        self._wake[1].close()  # makes the other end readable
        self._thread.join(JOIN_DEADLINE)
        if self._thread.is_alive():
            raise RuntimeError(f"thread {self._thread.name} did not end within {JOIN_DEADLINE:g} s")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- where it is --------------------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The address the proxy listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port the proxy listens on. Raises RuntimeError before it has started."""
        if self._port is None:
            raise RuntimeError("the proxy has no port before it is started: use it in a with statement")
        return self._port

    def reroute(self, server: str | ServerConfig) -> ServerConfig:
        """`server`, a config or a URL, with the proxy's host and port in it."""
        from threadmail.config import ServerConfig

        return dataclasses.replace(ServerConfig.of(server), host=self.host, port=self.port)

    # -- what it does, and did ----------------------------------------------------------------------------------------

    def add(self, *plans: Plan) -> None:
        """Plans for further connections, after those that are not used up yet."""
        with self._changed:
            self._plans.extend(plans)

    @property
    def passages(self) -> list[Passage]:
        """The connections so far, oldest first, with the bytes that came and passed."""
        with self._changed:
            return [link.passage() for link in self._links]

    @property
    def connections(self) -> int:
        """How many connections were passed on so far."""
        with self._changed:
            return len(self._links)

    @property
    def connections_open(self) -> int:
        """How many of them are under way."""
        with self._changed:
            return sum(link.open for link in self._links)

    @property
    def connections_refused(self) -> int:
        """How many connections were reset at once because the server could not be reached. They use up no plan."""
        with self._changed:
            return self._refused

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """Wait until no connection is under way; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while count := sum(link.open for link in self._links):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{count} connections are still under way after {timeout:g} s")
                self._changed.wait(left)

    def __repr__(self) -> str:
        where = "not started" if self._port is None else f"{self._host}:{self._port}"
        return f"<{type(self).__name__} {where} to {self._target[0]}:{self._target[1]}>"

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, listener: socket.socket, wake: socket.socket) -> None:
        listener.setblocking(False)
        live: dict[Link, dict[socket.socket, int]] = {}  # with what is watched
        with listener, wake, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            try:
                while not self._step(selector, listener, live):
                    pass
            finally:
                with self._changed:
                    for link in live:
                        link.close()
                    self._changed.notify_all()

    def _step(
        self, selector: selectors.BaseSelector, listener: socket.socket, live: dict[Link, dict[socket.socket, int]]
    ) -> bool:
        """Wait until something can be done, and do it. Returns whether the proxy is being closed."""
        ready: dict[Link | None, dict[socket.socket, int]] = {}
        for key, events in selector.select(_seconds_until(live)):
            ready.setdefault(key.data, {})[key.fileobj] = events  # type: ignore[index]
        with self._changed:
            if self._closing:
                return True
            for link in list(live):
                due = link.due()
                if link in ready or (due is not None and due <= time.monotonic()):
                    link.work(ready.get(link, {}))
                    _watch(selector, link, live)
            self._changed.notify_all()
        if listener in ready.get(None, {}) and (new := self._accept(listener)) is not None:
            live[new] = {}
            with self._changed:
                new.work({})
                _watch(selector, new, live)
        return False

    def _accept(self, listener: socket.socket) -> Link | None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return None  # it has gone again
        try:
            server = socket.create_connection(self._target, DIAL_TIMEOUT)
        except OSError:
            with self._changed:
                self._refused += 1  # first, so that whoever was refused finds it counted
            reset(client)
            return None
        with self._changed:
            plan = self._plans.popleft() if self._plans else Plan()
            link = Link(len(self._links), client, server, plan, record=self._record)
            self._links.append(link)
        return link


def _seconds_until(links: Mapping[Link, object]) -> float | None:
    times = [due for link in links if (due := link.due()) is not None]
    return max(0.0, min(times) - time.monotonic()) if times else None


def _watch(selector: selectors.BaseSelector, link: Link, live: dict[Link, dict[socket.socket, int]]) -> None:
    """Let the selector watch what the link waits for now; forget a link that has ended."""
    wanted, watched = link.events(), live[link]
    for sock in link.sockets:
        before, after = watched.get(sock, 0), wanted.get(sock, 0)
        if before and not after:
            selector.unregister(sock)
        elif after and not before:
            selector.register(sock, after, link)
        elif after != before:
            selector.modify(sock, after, link)
    live[link] = wanted
    if not link.open:
        del live[link]


__all__ = ["Cut", "Delay", "Fault", "FaultProxy", "Garble", "Hold", "Passage", "Plan", "Trickle"]
