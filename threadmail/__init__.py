"""The synchronous mail sender that threads can share.

`SMTP`, `SMTP_SSL`, `LMTP` are smtplib's clients, guarded. `Client` is one connection that looks after itself,
`ClientPool` a bounded number of them, `ThreadedSender` a queue with threads to work it off. All of them send what
`Envelope.of` takes, and tell what happened in a `Receipt`.

This module imports nothing of the package until a name is asked for, since pytest loads the plugin in
`threadmail.testing` into every run; then it imports everything, once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import client as client, config as config, envelope as envelope, errors as errors, pool as pool
    from . import receipt as receipt, retry as retry, sender as sender, smtp as smtp, throttle as throttle
    from ._public import *

__version__ = "0.1.0"

__all__ = [
    "LMTP",
    "SMTP",
    "SMTP_SSL",
    "Aborted",
    "BadReply",
    "Client",
    "ClientPool",
    "ClientStats",
    "Closed",
    "ConnectFailed",
    "ConnectTimedOut",
    "ConnectionLost",
    "ConnectionRefused",
    "Credentials",
    "DataRefused",
    "Deadline",
    "DeliveryFailed",
    "Envelope",
    "GreetingRefused",
    "HeloRefused",
    "HostNotFound",
    "InsecureLogin",
    "InvalidAddress",
    "InvalidConfig",
    "InvalidEnvelope",
    "LoginRefused",
    "MailError",
    "Message",
    "MessageTooLarge",
    "NotConnected",
    "NotSupported",
    "Outcome",
    "Phase",
    "PoolStats",
    "QueueFull",
    "Receipt",
    "RecipientsRefused",
    "Reentered",
    "Reply",
    "ReplyError",
    "ReplyTimedOut",
    "Report",
    "RetryPolicy",
    "Security",
    "SendFuture",
    "SenderRefused",
    "SenderStats",
    "ServerConfig",
    "StartTLSRefused",
    "TLSFailed",
    "ThreadedSender",
    "Throttle",
    "TimedOut",
    "Timeouts",
    "Unsent",
]

#: Submodules that are there without an import of their own.
_MODULES = {
    "_connection",
    "_dispatch",
    "_known",
    "_message",
    "_pool",
    "_protocol",
    "_runtime",
    "_session",
    "_transport",
    "client",
    "config",
    "envelope",
    "errors",
    "pool",
    "receipt",
    "retry",
    "sender",
    "smtp",
    "throttle",
}

if not TYPE_CHECKING:  # to a type checker, a misspelt name is an error

    def __getattr__(name: str) -> Any:
        if name not in __all__ and name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Threads that ask at once all do this, and have the same: the import system has locks of its own. An exception
        # from outside leaves nothing half done: the names are put here together, and modules are there or not.
        public = importlib.import_module(f"{__name__}._public")
        if not all(hasattr(public, each) for each in __all__):  # a signal handler, and the import goes on under it
            return _from_its_module(name, public.__loader__.get_source(public.__name__))
        # What a test has put there stays.
        globals().update({each: getattr(public, each) for each in __all__ if each not in globals()})
        return globals()[name]

    def _from_its_module(name: str, source: str | None) -> Any:
        # Of all that a handler may have interrupted, nothing but this file is sure to be there: not `re`, nor `ast`.
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        for part in (source or "").split("\nfrom ."):
            module, _, names = part.partition(" import ")
            if f"{name} as {name}" in names:
                try:
                    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
                except (ImportError, AttributeError):
                    break  # it is half imported itself, or needs what is
        raise AttributeError(f"{__name__}.{name} is not there yet: what this interrupts is importing it")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
