"""The options of the command line.

Owns what may stand behind `threadmail`, and the help. Guarantees: a wrong option gets the exit code of sysexits.h, and
no complaint repeats an argument that may hold a password.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import threadmail

from ..config import Timeouts
from ..errors import InvalidConfig
from ..throttle import Throttle
from .exit_codes import MEANINGS, Exit
from .output import safe


class _Parser(argparse.ArgumentParser):
    """argparse's, with the exit code of sysexits.h, and without arguments in its complaints: they may hold secrets."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """As `parse_args`; who gave a command an option that it has not is sent to the help of that command."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            self.prog: str = f"{self.prog} {options.command}"
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def error(self, message: str) -> NoReturn:
        kind, colon, words = message.partition("unrecognized arguments: ")
        if colon:
            names = [word.partition("=")[0] if word.startswith("-") else "..." for word in words.split()]
            message = f"{kind}{colon}{' '.join(names)}"
        self.exit(Exit.USAGE, f"threadmail: {safe(message)}\nTry '{self.prog} --help'.\n")


_CODES = "exit codes; of several that apply, the one that stands highest here:\n" + "\n".join(
    textwrap.fill(meaning, 79, initial_indent=f"{code:>5}  ", subsequent_indent=" " * 7)
    for code, meaning in MEANINGS.items()
)

_SERVER = """\
server URLs:
  smtp://host:25  smtp+starttls://user@host:587  smtps://user@host:465
  lmtp://host:24  lmtp:///path/of/a/socket
  Special characters in user and password are percent-encoded: @ is %40.
  Options follow a question mark: cafile=PATH, timeout=SECONDS, auth=MECHANISM,
  local_hostname=NAME. THREADMAIL_URL in the environment names the server;
  THREADMAIL_PASSWORD keeps a password out of sight: give the URL with the user
  alone."""


def parser() -> _Parser:
    top = _Parser(prog="threadmail", description="Send mail, from as many threads as you like.")
    top.add_argument("--version", action="version", version=f"threadmail {threadmail.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    common.add_argument("--debug", action="store_true", help="write the protocol to standard error, credentials masked")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_send(commands, common)
    _add_check(commands, common)
    _add_demo(commands, common)
    _add_sandbox(commands, common)
    return top


def _add_send(commands: Any, common: argparse.ArgumentParser) -> None:
    send = commands.add_parser(
        "send",
        parents=[common],
        help="send files, folders, mbox files or standard input",
        description="Send messages: .eml files, folders of them, Maildirs, mbox files, standard input.",
        epilog=f"""\
examples:
  threadmail send --server smtp://localhost report.eml
  threadmail send --server smtp+starttls://ada@mail.example.com --rate 100/m outbox/
  generate-report | threadmail send --server smtp://localhost
  threadmail send --json outbox/ | jq -r 'select(.outcome == "not sent").file'

{_SERVER}

{_CODES}
   64  wrong options (74: standard output is gone)
  130  interrupted: the first Ctrl-C lets what is on the wire be finished, the
       second drops it

After 75 send again only what is named: the others have been delivered. After 80
ask the server first.""",
    )
    send.add_argument("path", nargs="*", metavar="PATH", help="file or folder; - is standard input")
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
        epilog=f"example:\n  threadmail check smtp+starttls://ada@mail.example.com\n\n{_SERVER}\n\n{_CODES}",
    )
    check.add_argument("server", nargs="?", metavar="URL", help="the server (default: $THREADMAIL_URL)")
    check.add_argument("--timeout", type=_patience, metavar="SECONDS", help="patience for each step (default: 15)")
    check.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="send 1,000 messages to a server of its own and compare each one",
        description="Start a mail server on this machine, send to it from many threads, compare what arrived.",
    )
    demo.add_argument("--messages", type=_count, default=1000, metavar="N", help="how many (default: 1000)")
    demo.add_argument(
        "--workers", type=_count, default=8, metavar="N", help="threads, each with a connection of its own (default: 8)"
    )


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


def _patience(text: str) -> float:
    seconds = _seconds(text)
    try:
        Timeouts.all(seconds)
    except InvalidConfig as error:  # longer than a socket can wait
        raise argparse.ArgumentTypeError("a number of seconds above 0, of at most 23 days, is wanted") from error
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
