"""How a message gets over the wire.

Owns the I/O of a mail transaction: its commands one at a time, or in groups where the server offers PIPELINING
(RFC 2920), then its content, and the way back to a session that can be used again. What the replies mean, `Transaction`
knows. Guarantees: what is returned or raised has a true receipt; the connection is ready for the next message, or
closed; once a 354 has come, the content of that message follows, or the connection is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing

from ._content import SMALL, Content, stuffed_blocks
from ._content import stuffed as stuffed  # for SMTP.data() too
from ._wire import Wire
from .envelope import Envelope
from .errors import BadReply, ConnectionLost, DataRefused, MailError, Phase
from .receipt import Receipt, Reply
from .transaction import Command, Terms, Transaction

#: Commands whose replies may be outstanding. Each side must be able to keep what the other has not read yet, or both
#: wait for ever (RFC 2920 §3.1): a hundred commands have 32 KiB at most, their replies 51 KiB, and usually a tenth of
#: it. Linux keeps 128 KiB.
IN_FLIGHT = 100


def send(
    wire: Wire,
    envelope: Envelope,
    terms: Terms,
    *,
    before_mail: Callable[[Transaction], None] | None = None,
    before_final: Callable[[Envelope], None] | None = None,
) -> Receipt:
    """Send one message: in two round trips where PIPELINING is among the terms, else one for each command.

    Args:
        before_mail: called with the transaction when nothing has been written yet; if it raises, nothing is. Whoever
            keeps the transaction can ask it what is known (`receipt`), whatever ends the call.
        before_final: called before the last bytes of the content leave; if it raises, the message is surely not sent.
    Returns:
        The receipt of a message that at least one recipient was accepted for.
    Raises:
        MailError: with a receipt. The connection is ready for the next message, or closed.
    """
    transaction = Transaction(envelope, terms)
    try:
        commands = list(transaction.commands())
    except MailError as error:
        raise transaction.blame(error) from None
    if before_mail is not None:
        before_mail(transaction)
    try:
        if "pipelining" in terms.extensions:
            _in_groups(wire, transaction, commands)
        else:
            _one_by_one(wire, transaction, commands)
        if transaction.error is None:
            _send_content(wire, transaction, before_final)
    except MailError as error:
        wire.close()
        raise transaction.blame(error) from error.__cause__
    except BaseException:
        wire.close()
        raise
    if transaction.error is not None:
        _recover(wire, transaction)
        raise transaction.blame(transaction.error)
    return transaction.receipt()


def _one_by_one(wire: Wire, transaction: Transaction, commands: Sequence[Command]) -> None:
    for command in commands:
        transaction.phase = command.phase
        reply = wire.command(command.line)
        transaction.take(command, reply)
        if reply.code == 421:
            wire.close()  # the server is closing (RFC 5321 §3.8)
        if transaction.error is not None:
            return


def _in_groups(wire: Wire, transaction: Transaction, commands: Sequence[Command]) -> None:
    # After a 354 there is no way back but to hang up, so who wants all or nothing asks for it when all have answered.
    stages = [commands[:-1], commands[-1:]] if transaction.terms.all_or_nothing else [commands]
    for stage in stages:
        _group(wire, transaction, stage)
        if transaction.error is not None:
            return


def _group(wire: Wire, transaction: Transaction, commands: Sequence[Command]) -> None:
    """Write all commands at once, or overlapping groups of many, and take all replies, whatever the first one says."""
    waiting, unanswered = deque(commands), deque[Command]()
    while unanswered or (waiting and transaction.error is None):
        if waiting and transaction.error is None and len(unanswered) <= IN_FLIGHT // 2:
            if not unanswered:
                wire.require_quiet()
            group = [waiting.popleft() for _ in range(min(len(waiting), IN_FLIGHT - len(unanswered)))]
            wire.write_commands([command.line for command in group])
            unanswered.extend(group)
        if not _take_answer(wire, transaction, unanswered.popleft()):
            return


def _take_answer(wire: Wire, transaction: Transaction, command: Command) -> bool:
    """Take one reply of a group. Returns whether others may follow."""
    decided = transaction.error is not None
    if not decided:
        transaction.phase = command.phase
    try:
        reply = wire.read_reply()
        transaction.take(command, reply)
    except MailError:
        if not decided:
            raise
        wire.close()  # what was refused stays refused, however the rest of the group goes
    else:
        if reply.code == 421:
            wire.close()  # the server is closing (RFC 5321 §3.8)
    return wire.is_open


def _send_content(wire: Wire, transaction: Transaction, before_final: Callable[[Envelope], None] | None) -> None:
    wire.require_no_surplus()  # what lies there would be taken for the answer to the content
    transaction.phase = Phase.CONTENT
    content = transaction.envelope.source
    if large := not isinstance(content, bytes) or len(content) > SMALL:
        last = _write_most(wire, content)
    else:
        last = stuffed(content)
    if before_final is not None:
        before_final(transaction.envelope)
    if (large or before_final is not None) and not wire.quiet():
        raise _early(wire.read_reply())
    transaction.phase = Phase.FINAL  # first, so that an interrupt in the write below leaves the message in doubt
    try:
        wire.write(last, f"<{len(last)} octets of content, and the end>", timeout=wire.timeouts.content)
    except ConnectionLost:
        transaction.phase = Phase.CONTENT  # the kernel did not take the last byte, so the server cannot have it
        raise
    closing = False
    for recipient in transaction.awaited:
        reply = wire.read_reply(wire.timeouts.final)
        transaction.take_final(recipient, reply)
        closing = closing or reply.code == 421
    if closing:  # though others accepted it, under LMTP
        wire.close()


def _write_most(wire: Wire, content: Content) -> bytes:
    """Write all of a large content but its last block, which is returned: the end leaves in one write with it.

    A server that refuses the content and hangs up is heard. Raises InvalidEnvelope for a file that has changed.
    """
    with closing(stuffed_blocks(content)) as pieces:
        ahead = next(pieces)
        for piece in pieces:
            try:
                wire.write(ahead, f"<{len(ahead)} octets of content>", timeout=wire.timeouts.content, listen=True)
            except ConnectionLost:
                if wire.last_words is None:
                    raise
                raise _early(wire.last_words) from None
            ahead = piece
    return bytes(ahead)


def _early(reply: Reply) -> MailError:
    """What a reply means that came before the end of the content, which now never leaves.

    A refusal stands, and is reported; a consent to what the server has not seen is none.
    """
    if reply.transient or reply.permanent:
        return DataRefused(*reply.pair)
    return BadReply(f"the server answered before the content had ended: {reply}")


def _recover(wire: Wire, transaction: Transaction) -> None:
    """Bring the session back to its start after a refusal, or close it. Raises no MailError: the refusal matters more.

    Only a 250 to RSET proves that no old MAIL still stands (field: 503 nested MAIL for all later messages).
    """
    try:
        if transaction.content_due:
            if not transaction.refused_by_all or transaction.terms.lmtp:
                wire.close()  # a lone dot would deliver an empty message, or be owed no reply at all (RFC 2033 §4.2)
                return
            wire.write(b".\r\n")
            wire.read_reply()
        if wire.is_open and wire.command("rset").code != 250:
            wire.close()
    except MailError:
        wire.close()
    except BaseException:
        wire.close()
        raise
