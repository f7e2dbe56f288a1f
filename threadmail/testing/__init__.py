"""Servers to test mail code against: real sockets on the loopback interface, no network, no mocks.

Four tools, from the plain to the wicked:

* `CaptureServer`: a well-behaved SMTP or LMTP server that keeps every message (needs ``threadmail[sandbox]``);
* `ScriptedServer`: plays exactly the replies, silences and breakdowns it is told (standard library only);
* `FaultProxy`: stands before any server, real ones too, and cuts, stalls, garbles, delays or slows down a connection
  at an exact byte (standard library only);
* `TestCA`: certificates that are good, expired, made out to another host or signed by nobody (needs trustme).

    with CaptureServer() as server:
        application.send_welcome_mail(smtp_url=server.url)
        [mail] = server.wait_for(1)
    assert mail.recipients == ("ada@example.test",)
    assert mail.message["Subject"] == "Welcome"

This module imports nothing until a name is asked for, since pytest loads the plugin beside it into every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import CaptureServer
    from .certificates import TestCA
    from .messages import CapturedMessage, MessageList, TranscriptEntry
    from .phrases import answer, ehlo, goodbye, greeting, transaction
    from .proxy import Cut, Delay, Fault, FaultProxy, Garble, Hold, Passage, Plan, Trickle
    from .scripted import ScriptedServer
    from .steps import (
        Drip,
        Drop,
        Expect,
        Pause,
        Peer,
        ReadBytes,
        ReadData,
        Reply,
        Reset,
        Script,
        Send,
        Serve,
        Signal,
        Stall,
        StartTLS,
        Step,
        Steps,
    )

__all__ = [
    "CaptureServer",
    "CapturedMessage",
    "Cut",
    "Delay",
    "Drip",
    "Drop",
    "Expect",
    "Fault",
    "FaultProxy",
    "Garble",
    "Hold",
    "MessageList",
    "Passage",
    "Pause",
    "Peer",
    "Plan",
    "ReadBytes",
    "ReadData",
    "Reply",
    "Reset",
    "Script",
    "ScriptedServer",
    "Send",
    "Serve",
    "Signal",
    "Stall",
    "StartTLS",
    "Step",
    "Steps",
    "TestCA",
    "TranscriptEntry",
    "Trickle",
    "answer",
    "ehlo",
    "goodbye",
    "greeting",
    "transaction",
]

_HOMES = {
    "capture": ("CaptureServer",),
    "certificates": ("TestCA",),
    "messages": ("CapturedMessage", "MessageList", "TranscriptEntry"),
    "phrases": ("answer", "ehlo", "goodbye", "greeting", "transaction"),
    "proxy": ("Cut", "Delay", "Fault", "FaultProxy", "Garble", "Hold", "Passage", "Plan", "Trickle"),
    "scripted": ("ScriptedServer",),
}


if not TYPE_CHECKING:  # to a type checker, a misspelt name is an error

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = next((module for module, names in _HOMES.items() if name in names), "steps")
        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
