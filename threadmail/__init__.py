"""The synchronous mail sender that threads can share."""

from .config import Security, ServerConfig, Timeouts
from .envelope import Envelope
from .errors import (
    Aborted,
    Closed,
    ConnectFailed,
    ConnectionLost,
    DeliveryFailed,
    InvalidConfig,
    InvalidEnvelope,
    LoginRefused,
    MailError,
    Outcome,
    Phase,
    Reentered,
    TimedOut,
)
from .receipt import Receipt, Reply, Report
from .retry import RetryPolicy
from .smtp import LMTP, SMTP, SMTP_SSL
from .throttle import Throttle

__version__ = "0.1.0"
