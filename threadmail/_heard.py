"""What the end of a message says of the server.

Owns two questions about an error, which pure functions answer: did the server answer the MAIL, in whatever way, or did
it take the session back before? Leaves to whoever counts dials what follows.
"""

from __future__ import annotations

from .errors import CONNECTING, Aborted, BadReply, ConnectionLost, MailError, Phase, ReplyError


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


def _is_reply(error: MailError) -> bool:
    return isinstance(error, ReplyError) and not isinstance(error, BadReply) and not error._of_hook


def _is_closing(error: MailError) -> bool:
    return isinstance(error, ReplyError) and error.smtp_code == 421
