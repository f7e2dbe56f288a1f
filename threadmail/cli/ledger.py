"""What became of the messages of `threadmail send`.

Owns the account of a run: how many ended how, which ones want attention, the exit code. Guarantees: constant memory
however many messages there are, and every message that was not fully sent is named, in the table or in a line of its
own. Leaves sending to `cli.send` and looks to `cli.output`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .._runtime.deadline import now
from ..config import ServerConfig
from ..envelope import Envelope
from ..errors import CONNECTING, Closed, MailError, Outcome
from ..receipt import Receipt
from . import exit_codes as codes
from .exit_codes import Exit
from .output import Meter, Output, Tone
from .server import advice

#: Rows of the table; what goes beyond is told at once, in lines.
MOST_ROWS = 100

_TONES = {"sent": Tone.GOOD, "fit": Tone.GOOD, "partial": Tone.WARN, "in doubt": Tone.WARN, "not tried": Tone.FAINT}
_ORDER = ("sent", "fit", "partial", "in doubt", "not sent", "unfit", "not read", "not tried")


class Ledger:
    """The account of one run.

    Args:
        config: the server; None where nothing is sent.
        as_json: write one JSON object a line instead of tables.
        verbose: note each message as it is settled.
    """

    def __init__(self, out: Output, config: ServerConfig | None, *, as_json: bool, verbose: bool) -> None:
        self._out, self._config = out, config
        self._json, self._verbose = as_json, verbose
        self._counts: Counter[str] = Counter()
        self._codes: set[Exit] = set()
        self._rows: list[tuple[str, str, str]] = []
        self._kept_out: Counter[str] = Counter()  # messages by the reason why the server let nobody in
        self._advice: dict[str, str | None] = {}
        self._started = now()
        self.meter: Meter | None = None

    # ------------------------------------------------------------ one message

    def settled(self, name: str, receipt: Receipt) -> None:
        """A message ended as `receipt` says."""
        error = receipt.error
        if isinstance(error, Closed):
            self.not_tried(name, receipt)
            return
        self._write(name, receipt.to_dict())
        self._codes.add(codes.of_receipt(receipt))
        self._count(receipt.outcome.value)
        if self._verbose:
            self._out.note(f"{name}: {receipt}")
        if receipt.outcome is Outcome.NOT_SENT and error is not None and error.phase in CONNECTING:
            # One fault of the server's, not one of each message.
            self._kept_out[str(error)] += 1
            self._advice[str(error)] = advice(error, self._config) if self._config is not None else None
        elif receipt.outcome is not Outcome.SENT:
            self._remark(name, receipt.outcome.value, _cause(receipt))

    def not_tried(self, name: str, receipt: Receipt) -> None:
        """The run was called off before it was this message's turn."""
        self._write(name, receipt.to_dict())
        self._count("not tried")

    def unfit(self, name: str, error: MailError) -> None:
        """A message is not fit to be sent."""
        self._failed(name, "unfit", error, Exit.UNFIT)

    def broken(self, name: str, error: Exception) -> None:
        """A mistake of ours, which this message brought to light."""
        self._failed(name, "unfit", MailError(f"internal error: {type(error).__name__}: {error}"), Exit.SOFTWARE)

    def unread(self, name: str, problem: str) -> None:
        """There is no message where one was to be."""
        self._failed(name, "not read", MailError(problem), Exit.NO_INPUT)

    def fit(self, name: str, envelope: Envelope) -> None:
        """A message could be sent; nobody wants it sent."""
        size = envelope.size
        shown = {"outcome": "fit", "sender": envelope.sender, "recipients": list(envelope.recipients), "size": size}
        self._write(name, shown)
        if self._verbose:
            self._out.note(f"{name}: from <{envelope.sender}> to {', '.join(envelope.recipients)}, {size:,} octets")
        self._count("fit")

    def _failed(self, name: str, what: str, error: MailError, code: Exit) -> None:
        self._codes.add(code)
        self._write(name, Receipt.not_sent(None, error).to_dict())
        if self._verbose:
            self._out.note(f"{name}: {what}: {error}")
        self._count(what)
        self._remark(name, what, str(error))

    def _count(self, what: str) -> None:
        self._counts[what] += 1
        if self.meter is not None:
            self.meter.advance()

    def _remark(self, name: str, what: str, cause: str) -> None:
        if self._json:
            return
        if self._out.quiet or len(self._rows) >= MOST_ROWS:
            self._out.complain(f"{name}: {what}: {cause}")
        else:
            self._rows.append((name, what, cause))

    def _write(self, name: str, told: Mapping[str, Any]) -> None:
        if self._json:
            self._out.raw(json.dumps({"file": name, **told}))

    # ------------------------------------------------------------ all of them

    def finish(self, stopped: str | None = None, stopped_with: Exit | None = None) -> Exit:
        """Tell what happened in all.

        Args:
            stopped: why not all messages were tried.
            stopped_with: the exit code that this means.
        """
        total = sum(self._counts.values())
        if total == 0 and stopped is None:
            self._codes.add(Exit.NO_INPUT)
        code = stopped_with or codes.worst(self._codes)
        seconds = now() - self._started
        if self._json:
            counts = {what: self._counts[what] for what in _ORDER if self._counts[what] or what in ("sent", "in doubt")}
            summary = {"messages": total, **counts, "seconds": round(seconds, 3), "stopped": stopped}
            self._out.raw(json.dumps({"summary": {**summary, "exit_code": int(code)}}))
            return code
        if self._rows:
            self._out.table(("message", "outcome", "cause"), self._rows, [_tone(what) for _, what, _ in self._rows])
            self._out.say()
        for cause, count in self._kept_out.items():
            self._out.complain(f"{_messages(count)} not sent: {cause}", self._advice[cause])
        if not self._out.quiet:
            self._tell_counts(total, seconds)
        if stopped is not None:
            self._out.complain(f"{stopped}; what came after was not tried")
        return code

    def _tell_counts(self, total: int, seconds: float) -> None:
        good = self._counts["sent"] + self._counts["fit"]
        if len(self._counts) > 1:
            counted = [what for what in _ORDER if self._counts[what]]
            rows = [(f"{self._counts[what]:,}", what) for what in counted]
            self._out.table(("messages", "outcome"), rows, [_tone(what) for what in counted])
            self._out.say()
        if self._counts["in doubt"]:
            self._out.say(
                "In doubt: the server took the message and its answer was lost. Ask there before you send it again.",
                Tone.WARN,
            )
        if self._config is None:
            told = f"{good:,} of {_messages(total)} fit to be sent; nothing was sent (dry run)"
        else:
            pace = f" ({good / seconds:,.0f} a second)" if good > 1 and seconds > 0 else ""
            told = f"{good:,} of {_messages(total)} sent in {seconds:.2f} s{pace}"
        self._out.say(told, Tone.GOOD if good == total else Tone.BAD)


def _cause(receipt: Receipt) -> str:
    refused = "; ".join(f"{recipient}: {reply}" for recipient, reply in receipt.refused.items())
    if receipt.outcome is Outcome.PARTIAL and refused:
        reached = f"{len(receipt.accepted)} of {len(receipt.recipients)} recipients have it"
        return f"{reached}; {refused}"
    return str(receipt.error or refused or receipt.reply or "no reason given")


def _messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


def _tone(what: str) -> Tone:
    return _TONES.get(what, Tone.BAD)
