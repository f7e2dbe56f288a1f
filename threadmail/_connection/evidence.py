"""What the end of a message says of the server.

Owns three questions about an error, which pure functions answer: did the server answer the MAIL, in whatever way, or
did it take the session back before; is it what a connection ends with that the server had hung up on? Leaves to whoever
counts dials, or keeps connections, what follows.
"""

from __future__ import annotations

from ..errors import (
    CLOSING,
    CONNECTING,
    Aborted,
    BadReply,
    ConnectionLost,
    MailError,
    MessageTooLarge,
    Phase,
    RecipientsRefused,
    ReplyError,
)


def mail_was_answered(error: MailError) -> bool:
    """Whether the message that it ended had its MAIL answered: the server is there for mail."""
    if error.phase is None or error.phase in CONNECTING:
        return False
    return error.phase is not Phase.MAIL or (_is_reply(error) and not _is_closing(error))


def was_taken_back(error: MailError) -> bool:
    """Whether the server ended the session instead. Of one on which it answered before, it says that it was idle."""
    if error.phase is not Phase.MAIL or error._of_hook or error.deadline_passed or isinstance(error, Aborted):
        return False
    return isinstance(error, (ConnectionLost, BadReply)) or _is_closing(error)


def was_stale(error: MailError) -> bool:
    """Whether it is what a hung-up connection looks like, with nothing of the content handed over."""
    if error._of_hook or isinstance(error, Aborted) or error.phase not in (None, Phase.MAIL, Phase.RCPT, Phase.DATA):
        return False
    if isinstance(error, RecipientsRefused):
        return any(code == CLOSING for code, _ in error.recipients.values())
    if isinstance(error, ReplyError) and not isinstance(error, BadReply):
        return error.smtp_code == CLOSING
    return isinstance(error, (ConnectionLost, BadReply))


def _is_reply(error: MailError) -> bool:
    if isinstance(error, (BadReply, MessageTooLarge)):  # the one is none, the other was never asked for
        return False
    return isinstance(error, ReplyError) and not error._of_hook


def _is_closing(error: MailError) -> bool:
    return isinstance(error, ReplyError) and error.smtp_code == CLOSING
