"""The synchronous mail sender that threads can share.

`SMTP`, `SMTP_SSL`, `LMTP` are smtplib's clients, guarded. `Client` is one connection that looks after itself,
`ClientPool` a bounded number of them, `ThreadedSender` a queue with threads to work it off. All of them send what
`Envelope.of` takes, and tell what happened in a `Receipt`.
"""

from ._connection.turn import Message
from ._dispatch.job import SendFuture
from ._dispatch.sender_stats import SenderStats
from ._pool.has import PoolStats
from ._runtime.deadline import Deadline
from .client import Client, ClientStats
from .config import Credentials, Security, ServerConfig, Timeouts
from .envelope import Envelope
from .errors import (
    Aborted,
    BadReply,
    Closed,
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    ConnectTimedOut,
    DataRefused,
    DeliveryFailed,
    GreetingRefused,
    HeloRefused,
    HostNotFound,
    InsecureLogin,
    InvalidAddress,
    InvalidConfig,
    InvalidEnvelope,
    LoginRefused,
    MailError,
    MessageTooLarge,
    NotConnected,
    NotSupported,
    Outcome,
    Phase,
    QueueFull,
    RecipientsRefused,
    Reentered,
    ReplyError,
    ReplyTimedOut,
    SenderRefused,
    StartTLSRefused,
    TimedOut,
    TLSFailed,
)
from .pool import ClientPool
from .receipt import Receipt, Reply, Report
from .retry import RetryPolicy
from .sender import ThreadedSender, Unsent
from .smtp import LMTP, SMTP, SMTP_SSL
from .throttle import Throttle

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
