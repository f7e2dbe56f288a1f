"""The server's half of the SASL mechanisms a test server knows (RFC 4954), without any input or output.

Each mechanism is a generator: it yields challenges, is sent the client's answers, and returns the user who has proved
it, or None. A malformed answer raises ValueError. So the asynchronous server and the threaded one share them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Callable, Generator, Mapping

Exchange = Generator[bytes, bytes, "str | None"]

DEFAULT_MECHANISMS = ("PLAIN", "LOGIN")


def begin(mechanism: str, users: Mapping[str, str]) -> Exchange:
    """Start an exchange; KeyError where the mechanism is not known."""
    return _MECHANISMS[mechanism.upper()](users)


def check(mechanisms: tuple[str, ...]) -> tuple[str, ...]:
    """The names in capitals; ValueError for one that is not known."""
    names = tuple(name.upper() for name in mechanisms)
    for name in names:
        if name not in _MECHANISMS:
            raise ValueError(f"mechanism {name} is not known; known are {', '.join(_MECHANISMS)}")
    return names


def decode(line: str) -> bytes:
    """The octets of a base64 answer; ``=`` stands for an empty initial response (RFC 4954 section 4)."""
    try:
        return b"" if line == "=" else base64.b64decode(line, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def encode(challenge: bytes) -> str:
    return base64.b64encode(challenge).decode("ascii")


def _plain(users: Mapping[str, str]) -> Exchange:
    _, user, password = (yield b"").split(b"\0")  # RFC 4616
    return _who(users, user, password)


def _login(users: Mapping[str, str]) -> Exchange:
    user = yield b"Username:"
    password = yield b"Password:"
    return _who(users, user, password)


def _cram_md5(users: Mapping[str, str]) -> Exchange:
    challenge = f"<{secrets.token_hex(8)}@mail.example.test>".encode()
    name, _, digest = (yield challenge).decode().rpartition(" ")
    key = users.get(name)
    right = key is not None and hmac.new(key.encode(), challenge, "md5").hexdigest() == digest  # RFC 2195
    return name if right else None


def _xoauth2(users: Mapping[str, str]) -> Exchange:
    return (yield from _bearer(users, rb"user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01"))


def _oauthbearer(users: Mapping[str, str]) -> Exchange:
    # RFC 7628 section 3.1; the fields before auth (host, port) are left to the client.
    return (yield from _bearer(users, rb"n,a=([^,]*),\x01(?:(?!auth=)[^\x01]*\x01)*auth=Bearer ([^\x01]*)\x01\x01"))


def _bearer(users: Mapping[str, str], form: bytes) -> Exchange:
    match = re.fullmatch(form, (yield b""), re.DOTALL)
    if match is None:
        raise ValueError("not of the form the mechanism asks for")
    user = _who(users, match[1], match[2])
    if user is None:
        yield b'{"status":"invalid_token"}'  # The client answers this with nothing, and then is refused.
    return user


def _who(users: Mapping[str, str], user: bytes, password: bytes) -> str | None:
    name = user.decode("utf-8", "replace")
    return name if users.get(name) == password.decode("utf-8", "replace") else None


_MECHANISMS: dict[str, Callable[[Mapping[str, str]], Exchange]] = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
    "XOAUTH2": _xoauth2,
    "OAUTHBEARER": _oauthbearer,
}
