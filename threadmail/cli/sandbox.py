"""`threadmail sandbox`: a mail server that shows, or stores, what it is given.

Owns a capture server on a port of the user's choice and the account of what arrives. Guarantees: a message is stored
before its sender is told so; memory does not grow with the messages; the password of `--auth` is not shown. Leaves
the server itself to `threadmail.testing`.
"""

from __future__ import annotations

import argparse
import email.errors
import errno
import queue
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._message import message as _message
from ..testing.capture import CaptureServer
from ..testing.messages import CapturedMessage
from .exit_codes import Exit, Failure
from .output import Output, Tone
from .signals import Signals

SCHEMES = {"none": "smtp", "starttls": "smtp+starttls", "tls": "smtps"}

#: Seconds for the last clients to say goodbye.
FAREWELL = 2.0
_TICK = 0.5

#: What comes from the server's thread: a message with the name of its file, or a problem; None is a signal.
_News = tuple[CapturedMessage, str] | str | None


def capture_server(**settings: Any) -> CaptureServer:
    """A server of that kind, not started yet.

    Raises:
        Failure: what it is made of is not installed.
    """
    try:
        return CaptureServer(**settings)
    except ImportError as error:
        package = "trustme" if "trustme" in str(error) else "'threadmail[cli,sandbox]'"
        missing = "trustme" if "trustme" in str(error) else "aiosmtpd"
        raise Failure(Exit.UNAVAILABLE, f"{missing} is not installed: pip install {package}") from error


def run(options: argparse.Namespace, out: Output) -> Exit:
    """Serve until Ctrl-C, or until there are enough messages."""
    news: queue.SimpleQueue[_News] = queue.SimpleQueue()
    catcher = _Catcher(news, _folder(options.store), options.max_messages)
    server = capture_server(
        host=options.host,
        port=options.port,
        tls=options.tls,
        auth=dict([options.auth]) if options.auth else None,
        require_auth=options.auth is not None,
        on_message=catcher,
    )
    try:
        server.start()
    except OSError as error:
        where = f"{options.host}:{options.port}"
        taken = "is another sandbox running? --port 0 takes a free one" if error.errno == errno.EADDRINUSE else None
        raise Failure(Exit.UNAVAILABLE, f"cannot listen on {where}: {error.strerror or error}", taken) from error
    with Signals(lambda: news.put(None)) as signals, _closing(server), _trust(server) as cafile:
        out.say(f"listening on {_url(server, options, cafile)}", Tone.GOOD)
        out.note("Ctrl-C ends it")
        count = 0
        while not signals.count and count != options.max_messages:
            try:
                arrived = news.get(timeout=_TICK)
            except queue.Empty:
                continue
            if isinstance(arrived, str):
                out.complain(arrived)
            elif arrived is not None:
                count += 1
                server.clear()
                _show(count, *arrived, options, out)
        if not signals.count:
            _let_go(server)
    out.note(f"{count:,} message{'' if count == 1 else 's'} received")
    return signals.exit if signals.count else Exit.OK


class _Catcher:
    """Takes each message on the server's thread; the client gets its answer when this returns."""

    def __init__(self, news: queue.SimpleQueue[_News], folder: Path | None, most: int | None) -> None:
        self._news, self._folder, self._most = news, folder, most
        self._count = 0

    def __call__(self, message: CapturedMessage) -> str | None:
        if self._count == self._most:
            return "452 4.3.2 this sandbox has all the messages it was to take"
        name = ""
        if self._folder is not None:
            # Sorted by name is sorted by arrival, also over several runs.
            name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{self._count + 1:06}.eml"
            try:
                with open(self._folder / name, "xb") as file:
                    file.write(message.content)
            except OSError as error:
                self._news.put(f"{self._folder / name} cannot be written: {error.strerror or error}")
                return "452 4.3.1 the message cannot be stored"
        self._count += 1
        self._news.put((message, name))
        return None


def _folder(path: str | None) -> Path | None:
    if path is None:
        return None
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(Exit.CANNOT_CREATE, f"{path} is no folder to write to: {error.strerror or error}") from error
    return folder


@contextmanager
def _closing(server: CaptureServer) -> Iterator[None]:
    try:
        yield
    finally:
        server.close()


@contextmanager
def _trust(server: CaptureServer) -> Iterator[str | None]:
    """A file with the certificate that clients need to trust the server's; None where there is no TLS."""
    if server.ca is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="threadmail-sandbox-") as folder:
        path = f"{folder}/ca.pem"
        server.ca.write_ca(path)
        yield path


def _url(server: CaptureServer, options: argparse.Namespace, cafile: str | None) -> str:
    user = f"{quote(options.auth[0], safe='')}@" if options.auth else ""
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{SCHEMES[options.tls]}://{user}{host}:{server.port}" + (f"?cafile={quote(cafile)}" if cafile else "")


def _show(number: int, message: CapturedMessage, name: str, options: argparse.Namespace, out: Output) -> None:
    if out.quiet:
        return
    shown = ", ".join(message.recipients[:3]) + (", ..." if len(message.recipients) > 3 else "")
    marks = [f"{len(message.content):,} octets", *(["TLS"] if message.tls else [])]
    marks += [f"user {message.username}"] if message.username else []
    subject = _subject(message.content)
    line = f"{number:>4}  {message.sender or '<>'} -> {shown}  {subject!r}  ({', '.join(marks)})"
    out.say(f"{line}  {name}".rstrip())
    if options.full:
        for content in message.content.decode("utf-8", "backslashreplace").split("\r\n"):
            out.say(f"      | {content}".rstrip(), Tone.FAINT)


def _subject(content: bytes) -> str:
    value = next((str(v) for name, v in _message.header_fields(content) if name.lower() == "subject"), "")
    try:
        return str(make_header(decode_header(value)))
    except (LookupError, ValueError, email.errors.MessageError):
        return value


def _let_go(server: CaptureServer) -> None:
    try:
        server.wait_for_connections(0, FAREWELL)
    except TimeoutError:
        pass  # somebody keeps a connection: it is closed
