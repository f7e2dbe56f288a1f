"""The TLS handshake.

Owns `wrap_tls`: a connected socket goes on in TLS, or is closed. Guarantees: it is over by its deadline, and what went
wrong is said in words. Leaves to others which certificates are trusted, and what was said on the connection before.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable

from .._runtime.deadline import Deadline
from .._runtime.outside import is_of_a_handler
from ..errors import TLSFailed
from .socket import came_through, is_from_outside


def wrap_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    hostname: str,
    limit: Deadline,
    publish: Callable[[ssl.SSLSocket], None] | None = None,
    *,
    offered: bool = False,
    by_deadline: bool = False,
) -> ssl.SSLSocket:
    """Do the TLS handshake within `limit`; on any failure `sock` is closed.

    Args:
        publish: called with the TLS socket before the handshake, for whoever may want to end it.
        offered: the server has just said that it speaks TLS.
        by_deadline: whether `limit` is the caller's deadline and no time-out of the config.
    Raises:
        TLSFailed: permanent where the certificate is at fault, with the cause in words.
    """
    resting = sock.gettimeout()
    left = limit.remaining()
    try:
        sock.settimeout(0.001 if left == 0.0 else left)  # 0 would mean: do not block
        # One that was reset is found out here: wrap_socket() would take the descriptor, raise, and leave it to the
        # garbage collector to close, with a ResourceWarning.
        sock.getpeername()
        # "mail.example.com." is a name that no search list is tried with; certificates have it without (RFC 6066 3).
        name = hostname.rstrip(".") or hostname
        sock = wrapped = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        if publish is not None:
            publish(wrapped)
        wrapped.do_handshake()
        wrapped.settimeout(resting)
    except ssl.SSLCertVerificationError as exc:
        sock.close()
        raise TLSFailed(f"the certificate of {hostname} is not valid: {exc.verify_message}", transient=False) from exc
    except (OSError, ValueError) as exc:
        sock.close()
        if is_of_a_handler(exc) or (isinstance(exc, OSError) and is_from_outside(exc, sock, context)):
            raise
        # A port that does not speak TLS will not learn it; everything else may have been bad luck.
        stranger = getattr(exc, "reason", None) == "WRONG_VERSION_NUMBER" and not offered
        cause = _tls_cause(exc, stranger)
        error = TLSFailed(f"the TLS handshake with {hostname} failed: {cause}", transient=not stranger)
        error.deadline_passed = by_deadline and isinstance(exc, TimeoutError) and exc.errno is None
        raise error from exc
    except BaseException as exc:
        sock.close()
        if isinstance(exc, Exception) and type(context) is not ssl.SSLContext and _is_of(exc, context, sock):
            kind = type(exc).__name__
            raise TLSFailed(f"the TLS handshake with {hostname} failed: {kind}", transient=False) from exc
        raise
    return wrapped


def _is_of(exc: Exception, *called: object) -> bool:
    """Whether a context of the user's own raised it: in a frame of its own, or as it could not be called at all."""
    return not is_of_a_handler(exc) and (isinstance(exc, (TypeError, AttributeError)) or came_through(exc, *called))


def _tls_cause(exc: Exception, stranger: bool) -> str:
    if isinstance(exc, TimeoutError):
        return "the server did not respond in time"
    if stranger:
        return "the server does not speak TLS on this port (is it one for STARTTLS?)"
    if isinstance(exc, (ssl.SSLEOFError, ConnectionResetError)) or getattr(exc, "errno", None) == errno.ENOTCONN:
        return "the server closed the connection"
    return str(getattr(exc, "strerror", None) or exc)
