"""A certificate authority for tests: server certificates that are good, and each of the usual ways to be bad.

Uses trustme (an extra), imported when a `TestCA` is made. Keys live in memory; only `write_ca` writes a file, and
that holds the public certificate alone.
"""

from __future__ import annotations

import os
import ssl
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme

DEFAULT_NAMES = ("localhost", "127.0.0.1", "::1")


class TestCA:
    """A certificate authority of your own, trusted by nobody but the contexts it makes.

        ca = TestCA()
        with CaptureServer(tls="starttls", ca=ca) as server:
            client = smtplib.SMTP(server.host, server.port)
            client.starttls(context=ca.client_context())

    Raises ImportError with the line to type where trustme is not installed.
    """

    __test__ = False  # The name begins with "Test": pytest must not collect it.

    def __init__(self) -> None:
        self._authority = _new_authority()

    def server_context(self, *names: str) -> ssl.SSLContext:
        """A server context whose certificate is valid for `names` (host names or IP addresses).

        Without names it is valid for localhost, 127.0.0.1 and ::1.
        """
        return _context_of(self._authority.issue_cert(*(names or DEFAULT_NAMES)))

    def expired_server_context(self, *names: str) -> ssl.SSLContext:
        """As `server_context`, but the certificate ran out yesterday."""
        yesterday = datetime.now(timezone.utc) - timedelta(days=1)
        return _context_of(self._authority.issue_cert(*(names or DEFAULT_NAMES), not_after=yesterday))

    def wrong_host_server_context(self) -> ssl.SSLContext:
        """A good certificate of this authority, made out to ``wrong-host.example`` alone."""
        return self.server_context("wrong-host.example")

    def self_signed_server_context(self) -> ssl.SSLContext:
        """A certificate that signed itself, with no relation to this authority."""
        stranger = _new_authority()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with stranger.cert_pem.tempfile() as certificate, stranger.private_key_pem.tempfile() as key:
            context.load_cert_chain(certificate, key)
        return context

    def untrusted_server_context(self, *names: str) -> ssl.SSLContext:
        """A certificate for the right names, signed by an authority that `client_context` does not know."""
        return _context_of(_new_authority().issue_cert(*(names or DEFAULT_NAMES)))

    def client_context(self) -> ssl.SSLContext:
        """A client context that verifies chain and host name and trusts this authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._authority.configure_trust(context)
        return context

    def write_ca(self, path: str | os.PathLike[str]) -> None:
        """Write the authority's public certificate to `path` (PEM), for settings that name a CA file."""
        self._authority.cert_pem.write_to_path(path)


def _new_authority() -> trustme.CA:
    try:
        import trustme
    except ImportError as error:
        raise ImportError("threadmail.testing.TestCA needs trustme: pip install trustme") from error
    return trustme.CA()


def _context_of(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context
