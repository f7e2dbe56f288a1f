"""The public names, each from its module: what the package imports when the first of them is asked for.

`X as X` says to type checkers that the name is for others. In the package nobody imports from here.
"""

from ._connection.batch import Message as Message
from ._dispatch.job import SendFuture as SendFuture
from ._dispatch.sender_stats import SenderStats as SenderStats
from ._pool.held import PoolStats as PoolStats
from ._runtime.deadline import Deadline as Deadline
from .client import Client as Client, ClientStats as ClientStats
from .config import Credentials as Credentials, Security as Security, ServerConfig as ServerConfig, Timeouts as Timeouts
from .envelope import Envelope as Envelope
from .errors import (
    Aborted as Aborted,
    BadReply as BadReply,
    Closed as Closed,
    ConnectFailed as ConnectFailed,
    ConnectionLost as ConnectionLost,
    ConnectionRefused as ConnectionRefused,
    ConnectTimedOut as ConnectTimedOut,
    DataRefused as DataRefused,
    DeliveryFailed as DeliveryFailed,
    GreetingRefused as GreetingRefused,
    HeloRefused as HeloRefused,
    HostNotFound as HostNotFound,
    InsecureLogin as InsecureLogin,
    InvalidAddress as InvalidAddress,
    InvalidConfig as InvalidConfig,
    InvalidEnvelope as InvalidEnvelope,
    LoginRefused as LoginRefused,
    MailError as MailError,
    MessageTooLarge as MessageTooLarge,
    NotConnected as NotConnected,
    NotSupported as NotSupported,
    Outcome as Outcome,
    Phase as Phase,
    QueueFull as QueueFull,
    RecipientsRefused as RecipientsRefused,
    Reentered as Reentered,
    ReplyError as ReplyError,
    ReplyTimedOut as ReplyTimedOut,
    SenderRefused as SenderRefused,
    StartTLSRefused as StartTLSRefused,
    TimedOut as TimedOut,
    TLSFailed as TLSFailed,
)
from .pool import ClientPool as ClientPool
from .receipt import Receipt as Receipt, Reply as Reply, Report as Report
from .retry import RetryPolicy as RetryPolicy
from .sender import ThreadedSender as ThreadedSender, Unsent as Unsent
from .smtp import LMTP as LMTP, SMTP as SMTP, SMTP_SSL as SMTP_SSL
from .throttle import Throttle as Throttle
