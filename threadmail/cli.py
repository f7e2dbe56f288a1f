"""The command line: `threadmail send`, `check`, `demo`, `sandbox`.

Owns the options, the choice of the command, and the last line of defence: whatever happens, the user reads one clear
line and a script gets an exit code of sysexits.h. Guarantees: no traceback unless `--debug` asks for one; no password
in anything that is printed. Leaves each command to `_cli_<command>`, looks to `_cli_output`, codes to `_cli_exit`.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import threadmail

from . import _cli_check, _cli_demo, _cli_exit, _cli_sandbox, _cli_send
from ._cli_exit import MEANINGS, Exit, Failure
from ._cli_output import Output, safe
from .errors import MailError
from .throttle import Throttle

COMMANDS: dict[str, Callable[[argparse.Namespace, Output], Exit]] = {
    "send": _cli_send.run,
    "check": _cli_check.run,
    "demo": _cli_demo.run,
    "sandbox": _cli_sandbox.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as end:  # --help, --version, or a wrong option
        return int(end.code or 0)
    out = Output(sys.stdout, sys.stderr, quiet=options.quiet)
    try:
        with _logged(out, options):
            return int(COMMANDS[options.command](options, out))
    except MailError as error:
        out.complain(str(error))
        return int(_cli_exit.of_error(error))
    except Failure as failure:
        out.complain(str(failure))
        return int(failure.code)
    except KeyboardInterrupt:
        out.complain("interrupted")
        return int(Exit.INTERRUPTED)
    except OSError as error:
        # Files and sockets have been dealt with: this is a closed pipe or a full disk behind standard output.
        _forget_stdout()
        if not isinstance(error, BrokenPipeError):
            out.complain(f"the result cannot be written: {error.strerror or error}")
        return int(Exit.OUTPUT_LOST)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        if options.debug:
            traceback.print_exc()
        out.complain(f"internal error: {type(error).__name__}: {error} (--debug shows where)")
        return int(Exit.SOFTWARE)


def _forget_stdout() -> None:
    """Keep the interpreter from complaining, at exit, about what it cannot flush."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


# ---------------------------------------------------------------- the log


class _LogLines(logging.Handler):
    """The package's log as notes: without tracebacks, and without what the result tells anyway."""

    def __init__(self, out: Output, *, everything: bool) -> None:
        super().__init__()
        self._out, self._everything = out, everything

    def emit(self, record: logging.LogRecord) -> None:
        if self._everything or not str(record.msg).startswith("message "):
            self._out.note(record.getMessage())


@contextmanager
def _logged(out: Output, options: argparse.Namespace) -> Iterator[None]:
    logger = logging.getLogger("threadmail")
    handler = _LogLines(out, everything=options.debug)
    before = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG if options.debug else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


# ---------------------------------------------------------------- options


class _Parser(argparse.ArgumentParser):
    """argparse's, with the exit code of sysexits.h, and without arguments in its complaints: they may hold secrets."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        kind, colon, words = message.partition("unrecognized arguments: ")
        if colon:
            names = [word.partition("=")[0] if word.startswith("-") else "..." for word in words.split()]
            message = f"{kind}{colon}{' '.join(names)}"
        self.exit(Exit.USAGE, f"threadmail: {safe(message)}\nTry '{self.prog} --help'.\n")


_CODES = "exit codes, the highest of this list that applies:\n" + "\n".join(
    f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items()
)

_SERVER = """\
server URLs: smtp://host:25, smtp+starttls://user@host:587, smtps://user@host:465, lmtp:///path/of/socket.
  Special characters in user and password are percent-encoded (@ is %40). Options follow a question mark:
  cafile=PATH, timeout=SECONDS, local_hostname=NAME, auth=MECHANISM.
  The environment variable THREADMAIL_URL names the server; THREADMAIL_PASSWORD keeps the password out of
  process listings: give the URL with the user alone."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="threadmail", description="Send mail, from as many threads as you like.")
    parser.add_argument("--version", action="version", version=f"threadmail {threadmail.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    common.add_argument("--debug", action="store_true", help="write the protocol to standard error, credentials masked")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_send(commands, common)
    _add_check(commands, common)
    _add_demo(commands, common)
    _add_sandbox(commands, common)
    return parser


def _add_send(commands: Any, common: argparse.ArgumentParser) -> None:
    send = commands.add_parser(
        "send",
        parents=[common],
        help="send files, folders, mbox files or standard input",
        description="Send messages: .eml files, folders (their *.eml files, or a Maildir), mbox files, standard input.",
        epilog=f"""\
examples:
  threadmail send --server smtp://localhost report.eml
  threadmail send --server smtp+starttls://ada@mail.example.com outbox/ --workers 8 --rate 100/m
  generate-report | threadmail send --server smtp://localhost -
  threadmail send outbox/ --json | jq -r 'select(.outcome == "not sent") | .file'

{_SERVER}

{_CODES}
  130  interrupted: Ctrl-C lets what is on the wire be finished, and again drops it

After 75 send only the files that are named: the others have been delivered. Never repeat after 80 without asking
the server first.""",
    )
    send.add_argument("path", nargs="*", metavar="PATH", help="file or folder; - is standard input (also without PATH)")
    send.add_argument("--server", metavar="URL", help="the server (default: $THREADMAIL_URL)")
    send.add_argument("--workers", type=_count, default=4, metavar="N", help="connections at once (default: 4)")
    send.add_argument("--rate", type=_rate, metavar="N[/s|/m|/h]", help="messages a second (minute, hour), at most")
    send.add_argument("--from", dest="sender", metavar="ADDR", help="the envelope's sender (default: by the header)")
    send.add_argument(
        "--to", action="append", metavar="ADDR", help="a recipient instead of those in the header; repeatable"
    )
    send.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="be done by then")
    send.add_argument("--attempts", type=_count, default=5, metavar="N", help="tries for a message (default: 5)")
    send.add_argument("--dry-run", action="store_true", help="check every message, send none")
    send.add_argument("--json", action="store_true", help="one JSON object a line for each message, then a summary")
    send.add_argument("-v", "--verbose", action="store_true", help="a line for each message as it is settled")


def _add_check(commands: Any, common: argparse.ArgumentParser) -> None:
    check = commands.add_parser(
        "check",
        parents=[common],
        help="connect to a server and show what it is like",
        description="Connect to a server, log in if the URL names a user, and show what it is like. Sends nothing.",
        epilog=f"examples:\n  threadmail check smtp+starttls://ada@mail.example.com\n\n{_SERVER}\n\n{_CODES}",
    )
    check.add_argument("server", nargs="?", metavar="URL", help="the server (default: $THREADMAIL_URL)")
    check.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="patience for each step (default: 15)")
    check.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="send 1,000 messages to a server of its own and compare each one",
        description="Start a mail server on this machine, send to it from many threads, compare what arrived.",
    )
    demo.add_argument("--messages", type=_count, default=1000, metavar="N", help="default: 1000")
    demo.add_argument("--workers", type=_count, default=8, metavar="N", help="threads, each with a connection; 8")


def _add_sandbox(commands: Any, common: argparse.ArgumentParser) -> None:
    sandbox = commands.add_parser(
        "sandbox",
        parents=[common],
        help="a mail server that shows, or stores, what it is given",
        description="A mail server for development: it takes everything and delivers nothing. Ctrl-C ends it.",
        epilog="""\
examples:
  threadmail sandbox --full
  threadmail sandbox --tls starttls --auth ada:secret --store caught/
  threadmail sandbox --port 0 --max-messages 1""",
    )
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    sandbox.add_argument("--port", type=_port, default=2525, help="port to listen on; 0 takes any (default: 2525)")
    sandbox.add_argument(
        "--tls", choices=("none", "starttls", "tls"), default="none", help="with a certificate of its own"
    )
    sandbox.add_argument("--auth", type=_credentials, metavar="USER:PASSWORD", help="want this login")
    sandbox.add_argument("--full", action="store_true", help="print the messages themselves as well")
    sandbox.add_argument("--store", metavar="DIR", help="write each message to a file in DIR")
    sandbox.add_argument("--max-messages", type=_count, metavar="N", help="end after N messages")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 up is wanted")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a number from 0 to 65535 is wanted")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError("a number of seconds above 0 is wanted")
    return seconds


def _rate(text: str) -> Throttle:
    number, _, unit = text.partition("/")
    per = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}.get(unit)
    try:
        if not math.isfinite(float(number)):
            raise ValueError
        return Throttle(float(number), per or 0.0)
    except ValueError:  # InvalidConfig is one
        raise argparse.ArgumentTypeError("a number is wanted, with /s, /m or /h behind it: 100/m") from None


def _credentials(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("user and password are wanted, with a colon between them")
    return user, password
