"""Exit codes of the command line.

Owns the table from what became of a message, or of a session, to the number a script sees: those of sysexits.h, and two
of our own. Guarantees: 75 (try again later) is only given where a second try can send nothing twice to anybody.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from ..errors import (
    HostNotFound,
    InsecureLogin,
    InvalidConfig,
    InvalidEnvelope,
    LoginRefused,
    MailError,
    MessageTooLarge,
    Outcome,
    RecipientsRefused,
)
from ..receipt import Receipt


class Exit(enum.IntEnum):
    """What the process says with its last word."""

    OK = 0
    USAGE = 64  # EX_USAGE
    UNFIT = 65  # EX_DATAERR
    NO_INPUT = 66  # EX_NOINPUT
    REFUSED = 67  # EX_NOUSER
    NO_HOST = 68  # EX_NOHOST
    UNAVAILABLE = 69  # EX_UNAVAILABLE
    SOFTWARE = 70  # EX_SOFTWARE
    CANNOT_CREATE = 73  # EX_CANTCREAT
    OUTPUT_LOST = 74  # EX_IOERR
    TRY_LATER = 75  # EX_TEMPFAIL
    LOGIN = 77  # EX_NOPERM
    CONFIG = 78  # EX_CONFIG
    IN_DOUBT = 80  # beyond sysexits.h, where no script takes it for something it may try again
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    TERMINATED = 143  # 128 + SIGTERM


#: In --help, worst first: what only a person can decide, then what only a person can mend, then what time may mend.
MEANINGS = {
    Exit.SOFTWARE: "a mistake in threadmail: please report it",
    Exit.IN_DOUBT: "in doubt: the server took a message and never answered; sending it again may deliver it twice",
    Exit.CONFIG: "the server URL or a setting is wrong",
    Exit.LOGIN: "the login was refused",
    Exit.NO_HOST: "no such host",
    Exit.UNAVAILABLE: "refused for good: no mail server there, no valid TLS, the sender or the content refused",
    Exit.REFUSED: "recipients were refused: all of a message's, or some, and the others have it",
    Exit.UNFIT: "a message is not fit to be sent",
    Exit.NO_INPUT: "a file cannot be read, or there is nothing to send",
    Exit.TRY_LATER: "a temporary failure: try again later",
    Exit.OK: "all is well",
}


class Failure(Exception):
    """A command cannot do what it was asked for: a line for the user, a code for the script, perhaps what to try."""

    def __init__(self, code: Exit, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.advice = advice


_BY_WEIGHT = tuple(MEANINGS)


def worst(codes: Iterable[Exit]) -> Exit:
    """The code that stands for all of `codes`: the one highest in `MEANINGS`; OK where there is none."""
    return min(codes, key=_BY_WEIGHT.index, default=Exit.OK)


def of_receipt(receipt: Receipt) -> Exit:
    """What the fate of one message comes to."""
    if receipt.outcome is Outcome.SENT:
        return Exit.OK
    if receipt.outcome is Outcome.IN_DOUBT:
        return Exit.IN_DOUBT
    if receipt.outcome is Outcome.PARTIAL:
        return Exit.REFUSED  # never 75, though some may only be deferred: a second try would reach the others twice
    return of_error(receipt.error) if receipt.error is not None else Exit.UNAVAILABLE


def of_error(error: MailError) -> Exit:
    """What an error comes to that surely left nothing sent."""
    if error.transient:
        return Exit.TRY_LATER
    for kinds, code in _BY_KIND:
        if isinstance(error, kinds):
            return code
    return Exit.UNAVAILABLE


_BY_KIND: tuple[tuple[tuple[type[MailError], ...], Exit], ...] = (
    ((InvalidConfig, InsecureLogin), Exit.CONFIG),
    ((LoginRefused,), Exit.LOGIN),
    ((HostNotFound,), Exit.NO_HOST),
    ((InvalidEnvelope, MessageTooLarge), Exit.UNFIT),
    ((RecipientsRefused,), Exit.REFUSED),
)
