"""The command line: `threadmail send`, `check`, `demo`, `sandbox`.

Owns the choice of the command and the last line of defence: whatever happens, the user reads one clear line and a
script gets an exit code of sysexits.h. Guarantees: no traceback unless `--debug` asks for one. Leaves the options to
`cli.options`, each command to `_cli_<command>`, how things look to `cli.output`, what codes mean to `cli.exit_codes`.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import MailError
from . import check as _cli_check
from . import demo as _cli_demo
from . import exit_codes as _cli_exit
from . import sandbox as _cli_sandbox
from . import send as _cli_send
from .exit_codes import Exit, Failure
from .options import parser
from .output import Output

COMMANDS: dict[str, Callable[[argparse.Namespace, Output], Exit]] = {
    "send": _cli_send.run,
    "check": _cli_check.run,
    "demo": _cli_demo.run,
    "sandbox": _cli_sandbox.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        options = parser().parse(argv)
    except SystemExit as end:  # --help, --version, or a wrong option
        return int(end.code or 0)
    # A stream that the shell closed (`>&-`) is None.
    out = Output(sys.stdout or io.StringIO(), sys.stderr or io.StringIO(), quiet=options.quiet)
    try:
        with _logged(out, options):
            return int(COMMANDS[options.command](options, out))
    except MailError as error:
        out.complain(str(error))
        return int(_cli_exit.of_error(error))
    except Failure as failure:
        out.complain(str(failure), failure.advice)
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
    except (OSError, ValueError, AttributeError):
        pass  # no such stream, or not a real one


# ---------------------------------------------------------------- the log


class _LogLines(logging.Handler):
    """The log as notes, each a safe line: without tracebacks, and without what the result tells anyway."""

    def __init__(self, out: Output, *, everything: bool) -> None:
        super().__init__()
        self._out, self._everything = out, everything

    def emit(self, record: logging.LogRecord) -> None:
        if self._everything or not str(record.msg).startswith("message "):
            self._out.note(record.getMessage())


@contextmanager
def _logged(out: Output, options: argparse.Namespace) -> Iterator[None]:
    # aiosmtpd's as well, under sandbox and demo: it quotes what a client said, which may hold what drives a terminal.
    levels = {"threadmail": logging.DEBUG if options.debug else logging.WARNING, "mail.log": logging.WARNING}
    handler = _LogLines(out, everything=options.debug)
    before = [(logger, logger.level, logger.propagate) for logger in map(logging.getLogger, levels)]
    try:
        for logger, _, _ in before:
            logger.setLevel(levels[logger.name])
            logger.propagate = False
            logger.addHandler(handler)
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
