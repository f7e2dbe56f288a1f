"""TestCA: good certificates pass, and each bad one fails for its own reason."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from threadmail.testing import TestCA


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    """One handshake over a socket pair; returns the client's socket, closed, or raises what the client raised."""
    left, right = socket.socketpair()
    left.settimeout(5)
    right.settimeout(5)

    def serve() -> None:
        try:
            server.wrap_socket(left, server_side=True).close()
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=name) as secured:
            return secured
    finally:
        right.close()
        thread.join(5)
        left.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_default_certificate_is_good_for_this_machine(ca: TestCA, name: str) -> None:
    shake_hands(ca.server_context(), ca.client_context(), name)


def test_a_certificate_is_good_for_the_names_it_was_made_for_alone(ca: TestCA) -> None:
    server = ca.server_context("mail.example.test", "10.0.0.1")
    shake_hands(server, ca.client_context(), "mail.example.test")
    shake_hands(server, ca.client_context(), "10.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(server, ca.client_context(), "localhost")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (TestCA.expired_server_context, "certificate has expired"),
        (TestCA.wrong_host_server_context, "Hostname mismatch"),
        (TestCA.self_signed_server_context, "self-signed certificate|self signed certificate"),
        (TestCA.untrusted_server_context, "unable to get local issuer certificate"),
    ],
)
def test_each_bad_certificate_fails_for_its_own_reason(
    ca: TestCA, make: Callable[[TestCA], ssl.SSLContext], reason: str
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        shake_hands(make(ca), ca.client_context())


def test_two_authorities_do_not_trust_each_other(ca: TestCA) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(ca.server_context(), TestCA().client_context())


def test_the_client_context_verifies_and_wants_a_modern_protocol(ca: TestCA) -> None:
    context = ca.client_context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_the_written_file_serves_as_cafile_and_holds_no_key(ca: TestCA, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    ca.write_ca(path)
    assert "PRIVATE" not in path.read_text()
    shake_hands(ca.server_context(), ssl.create_default_context(cafile=str(path)))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ImportError, match="pip install trustme"):
        TestCA()
