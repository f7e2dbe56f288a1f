"""A password is known to its owner and the server it is for: to no log, repr, error, pickle or frame of a traceback.

And it is offered once: what a server refused is not tried again by another thread, mechanism or message.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any
from urllib.parse import quote

import pytest

import threadmail
from tests.support.mail import envelope, in_threads
from threadmail import (
    SMTP,
    Client,
    ClientPool,
    ConnectFailed,
    LoginRefused,
    MailError,
    Outcome,
    ServerConfig,
    ThreadedSender,
    Timeouts,
)
from threadmail.testing import (
    Drip,
    Drop,
    Expect,
    Peer,
    Reply,
    Reset,
    Script,
    ScriptedServer,
    Send,
    Serve,
    Stall,
    Step,
    ehlo,
    greeting,
)

USER, SECRET = "ann@example.org", "tr0ub4dor&3 € ünïcode"
PACKAGE = str(Path(threadmail.__file__).parent)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


#: What would give it away: itself, percent-encoded, and the responses that hold it.
TRACES = [
    SECRET,
    "tr0ub4dor",
    quote(SECRET, safe=""),
    in_base64(SECRET),
    in_base64(f"\0{USER}\0{SECRET}"),
    in_base64(f"user={USER}\1auth=Bearer {SECRET}\1\1"),
]


def gives_away(text: str) -> list[str]:
    return [trace for trace in TRACES if trace in text]


def config_of(server: ScriptedServer, **values: Any) -> ServerConfig:
    values = {"username": USER, "password": SECRET, "local_hostname": "test", **values}
    return ServerConfig(server.host, server.port, **values)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that the package's loggers say, formatted, tracebacks included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    logger = logging.getLogger("threadmail")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def frames(error: BaseException) -> Iterator[FrameType]:
    """Every frame of the package in the tracebacks of an error and of all that it is chained to."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        exc = todo.pop()
        if exc is None or id(exc) in seen:
            continue
        seen.add(id(exc))
        todo += [exc.__cause__, exc.__context__]
        trace: TracebackType | None = exc.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
                yield trace.tb_frame
            trace = trace.tb_next


def shown_by(error: BaseException) -> str:
    """All that a crash reporter would send home: error, arguments, attributes, chain, and every local by its repr."""
    text = [str(error), repr(error), repr(error.args), repr(vars(error)), repr(getattr(error, "receipt", None))]
    for frame in frames(error):
        text += [f"{frame.f_code.co_qualname if hasattr(frame.f_code, 'co_qualname') else frame.f_code.co_name}:"]
        text += [f"{name}={value!r}" for name, value in frame.f_locals.items()]
    chained = [exc for exc in (error.__cause__, error.__context__) if exc is not None]
    return "\n".join(text + [repr(exc) + repr(exc.args) for exc in chained])


# ---------------------------------------------------------------- how a login goes wrong


class Echo(Step):
    """Shout what the client just said, and the password as it is and in base64."""

    def __init__(self, before: str) -> None:
        self.before = before

    def play(self, peer: Peer) -> None:
        shouted = " ".join([peer.lines[-1], SECRET, in_base64(SECRET)])
        peer.reply(f"{self.before}{shouted}")


OFFER: Script = [greeting(), ehlo("AUTH PLAIN LOGIN XOAUTH2")]
FAILURES: dict[str, Script] = {
    "refused": [Expect("AUTH"), Reply("535 5.7.8 no"), Serve()],
    "refused, echoing it": [Expect("AUTH"), Echo("535 5.7.8 no: "), Serve()],
    "not now": [Expect("AUTH"), Reply("454 4.7.0 later"), Serve()],
    "421": [Expect("AUTH"), Reply("421 4.3.2 closing"), Drop()],
    "hung up": [Expect("AUTH"), Drop()],
    "reset": [Expect("AUTH"), Reset()],
    "silence": [Expect("AUTH"), Stall()],
    "drip": [Expect("AUTH"), Drip(b"235-" + b"x" * 200, 0.02)],
    "garbage": [Expect("AUTH"), Send(b"\xff\x00 what?\r\n"), Stall()],
    "garbage, echoing it": [Expect("AUTH"), Echo(""), Stall()],
    "a challenge, echoing it": [Expect("AUTH"), Echo("334 "), Stall()],
    "endless challenges": [Expect("AUTH"), *[Reply("334 "), Expect("")] * 5, Reply("334 "), Stall()],
    "a challenge that is none": [Expect("AUTH"), Reply("334 §§§"), Stall()],
}


def by_client(config: ServerConfig) -> None:
    with Client(config) as client:
        client.send(envelope(), deadline=5.0)


def by_pool(config: ServerConfig) -> None:
    with ClientPool(config) as pool:
        pool.send(envelope(), deadline=5.0)


def by_sender(config: ServerConfig) -> None:
    retry = threadmail.RetryPolicy(attempts=1)
    with ThreadedSender(config, workers=1, retry=retry) as sender:
        try:
            sender.submit(envelope()).result(10.0)
        finally:
            sender.close(drain=False, timeout=0.0)


def by_smtp(config: ServerConfig) -> None:
    smtp = SMTP(config.host, config.port, "test", timeouts=config.timeouts)
    try:
        # Not a literal: the frames of the caller are the caller's.
        smtp.login(config.username or "", config.password or "", mechanism=config.auth)
    finally:
        smtp.close()


WAYS: list[Callable[[ServerConfig], None]] = [by_client, by_pool, by_sender, by_smtp]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2"])
def test_no_failed_login_shows_the_password(failure: str, mechanism: str, log: io.StringIO) -> None:
    """Not the error, nor what it is chained to, nor any local of any frame, nor the log at DEBUG; nor its pickle."""
    steps = FAILURES[failure]
    with ScriptedServer([*OFFER, *steps]) as server:
        seconds = 0.6 if failure in ("silence", "drip") else 5.0
        config = config_of(server, auth=mechanism, timeouts=Timeouts.all(seconds))
        with pytest.raises(MailError) as info:
            by_client(config)
        shown = shown_by(info.value)
        kept = pickle.dumps(info.value)
        receipt = info.value.receipt
    assert gives_away(shown) == []
    assert gives_away(log.getvalue()) == []
    assert "AUTH" in log.getvalue(), "the dialogue is there to be read, but for the secret"
    assert gives_away(kept.decode("latin-1")) == []
    assert receipt is not None
    assert gives_away(json.dumps(receipt.to_dict()) + repr(receipt)) == []


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda f: f.__name__)
@pytest.mark.parametrize("failure", ["refused, echoing it", "hung up", "garbage, echoing it"])
def test_nor_does_it_at_any_level(failure: str, way: Callable[[ServerConfig], None], log: io.StringIO) -> None:
    with ScriptedServer([*OFFER, *FAILURES[failure]], last="repeat") as server:
        with pytest.raises(MailError) as info:
            way(config_of(server, timeouts=Timeouts.all(2.0)))
    assert gives_away(shown_by(info.value)) == []
    assert gives_away(log.getvalue()) == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
def test_no_login_that_works_shows_it_either(
    mechanism: str, log: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """The protocol log, smtplib's debug output, and the repr of all that lives while the session does."""
    with ScriptedServer([Serve(auth={USER: SECRET}, mechanisms=(mechanism,))], last="repeat") as server:
        config = config_of(server, auth=mechanism)
        smtp = SMTP(server.host, server.port, "test", timeout=10.0)
        smtp.set_debuglevel(2)
        smtp.login(config.username or "", config.password or "", mechanism=mechanism)
        with Client(config) as client, ClientPool(config) as pool, ThreadedSender(config, workers=1) as sender:
            receipts = [client.send(envelope("a")), pool.send(envelope("b")), sender.send(envelope("c"))]
            reprs = [repr(thing) for thing in (config, client, pool, sender, smtp, *receipts)]
            reprs += [repr(vars(thing)) for thing in (client, pool, sender, smtp)]
            reprs += [str(thing) for thing in (config, config.url, *receipts, client.stats(), pool.stats())]
        smtp.quit()
    assert gives_away("\n".join(reprs)) == []
    assert gives_away(log.getvalue()) == []
    assert "***" in log.getvalue()
    out, err = capsys.readouterr()
    assert gives_away(out + err) == []
    assert "AUTH" in err


def test_a_receipt_and_its_error_keep_no_secret_alive() -> None:
    """A report of a million failures holds neither frames nor, through them, what was said."""
    with ScriptedServer([*OFFER, *FAILURES["refused"]]) as server:
        with ThreadedSender(config_of(server), workers=1) as sender:
            (receipt,) = sender.send_all([envelope()])
    assert receipt.error is not None
    assert list(frames(receipt.error)) == []
    gc.collect()


def test_credentials_that_cannot_be_had_say_no_more_than_that(log: io.StringIO) -> None:
    """What a token endpoint answered may be a secret too: its error is chained, and not quoted."""

    def token() -> tuple[str, str]:
        raise RuntimeError(f"the endpoint said {SECRET}")

    with ScriptedServer(OFFER) as server:
        config = ServerConfig(server.host, server.port, local_hostname="test", credentials=token)
        with Client(config) as client, pytest.raises(MailError, match="could not be had: RuntimeError") as info:
            client.send(envelope())
    assert gives_away(str(info.value) + repr(info.value) + log.getvalue()) == []
    assert info.value.transient


# ---------------------------------------------------------------- one attempt


def logins(server: ScriptedServer) -> int:
    return sum(line.upper().startswith("AUTH") for lines in server.received for line in lines)


REFUSING = [Serve(auth={USER: "another"}, mechanisms=("PLAIN", "LOGIN", "CRAM-MD5"))]


@contextlib.contextmanager
def shared(kind: str, config: ServerConfig) -> Iterator[Callable[[str], object]]:
    """A way to send that threads share."""
    if kind == "client":
        with Client(config) as client:
            yield lambda name: client.send(envelope(name), deadline=10.0)
    elif kind == "pool":
        with ClientPool(config, max_size=8) as pool:
            yield lambda name: pool.send(envelope(name), deadline=10.0)
    else:
        with ThreadedSender(config, workers=8) as sender:
            yield lambda name: sender.send(envelope(name), deadline=10.0)


@pytest.mark.parametrize("kind", ["client", "pool", "sender"])
def test_one_535_is_one_attempt_whatever_the_number_of_threads(kind: str) -> None:
    """smtplib tries every mechanism with it, and eight threads would make two dozen: enough to lock an account."""
    with ScriptedServer(REFUSING, last="repeat") as server, shared(kind, config_of(server)) as send:

        def work(i: int) -> None:
            for k in range(3):
                with pytest.raises((LoginRefused, ConnectFailed)) as info:
                    send(f"t{i}m{k}")
                assert info.value.outcome is Outcome.NOT_SENT

        assert in_threads(8, work) == []
        assert logins(server) == 1
        with pytest.raises((LoginRefused, ConnectFailed)):
            send("later")
        assert logins(server) == 1


def test_a_batch_asks_once_too() -> None:
    """Each of a hundred messages has the reason, and the server was asked once."""
    with ScriptedServer(REFUSING, last="repeat") as server:
        with ThreadedSender(config_of(server), workers=4) as sender:
            began = time.monotonic()
            report = sender.send_all(envelope(f"m{i}") for i in range(100))
            assert time.monotonic() - began < 20.0
    assert report.counts()[Outcome.NOT_SENT] == 100
    assert {type(r.error) for r in report} == {LoginRefused}
    assert logins(server) == 1


@pytest.mark.parametrize(("fresh", "offered"), [(True, 2), (False, 1)])
def test_a_token_is_made_anew_once_and_no_more(fresh: bool, offered: int) -> None:
    """The first may just have expired; but the same one is not offered a second time."""
    asked: list[str] = []

    def token() -> tuple[str, str]:
        asked.append(f"{SECRET}{len(asked)}" if fresh else SECRET)
        return USER, asked[-1]

    with ScriptedServer(REFUSING, last="repeat") as server:
        config = ServerConfig(server.host, server.port, local_hostname="test", credentials=token)
        with Client(config) as client, pytest.raises(LoginRefused):
            client.send(envelope())
    assert logins(server) == offered
    assert len(asked) == 2


# ---------------------------------------------------------------- passwords of all kinds


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("password", ["пароль", "密码🔑", "e\u0301 and é", "with @ : / # ? % & +", " spaces "])
def test_any_password_goes_from_a_url_to_the_server(password: str, mechanism: str) -> None:
    """Percent-encoded UTF-8 in the URL, UTF-8 on the wire (RFC 4616), not normalised: the server compares octets."""
    with ScriptedServer([Serve(auth={USER: password}, mechanisms=(mechanism,))]) as server:
        url = f"smtp://{quote(USER, safe='')}:{quote(password, safe='')}@{server.host}:{server.port}"
        with Client(f"{url}?auth={mechanism}&local_hostname=test") as client:
            client.send(envelope())
    assert server.messages[0].username == USER


def test_the_walk_through_the_frames_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that "nothing found" above means something."""

    def careless() -> None:
        password = SECRET
        raise ValueError(len(password))

    monkeypatch.setitem(globals(), "PACKAGE", __file__)
    with pytest.raises(ValueError, match="21") as info:
        careless()
    assert gives_away(shown_by(info.value)) != []
