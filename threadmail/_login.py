"""How to prove who we are.

Owns the SASL mechanisms (RFC 4954), which one is used, and the AUTH dialogue. Guarantees: one mechanism is tried, for a
refused password that is offered again under another name counts as several wrong ones to a server that locks
accounts; no error and no traceback holds what was said. A mechanism is a function from the server's challenge to the
answer.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import TypeAlias

from ._wire import Wire
from .errors import BadReply, LoginRefused, MailError, NotSupported, Phase, detach
from .receipt import Reply

#: Called with None for the initial response (None back: there is none), then with each challenge.
Mechanism: TypeAlias = "Callable[[bytes | None], str | None]"

# With TLS the password is safe on the way, and servers that keep only hashes of passwords advertise CRAM-MD5 without
# being able to check it. Without TLS (to this machine, or by consent) not to show the password comes first.
_ORDER_TLS = ("PLAIN", "LOGIN", "CRAM-MD5")
_MAX_CHALLENGES = 5
_ORDER_PLAINTEXT = ("CRAM-MD5", "PLAIN", "LOGIN")


def choose(advertised: str, wanted: str | None, *, tls: bool) -> str:
    """The mechanism to use.

    Args:
        advertised: the parameters of the server's AUTH extension.
        wanted: the one the caller insists on, or None.
    Raises:
        NotSupported: there is none that both sides know.
    """
    offered = advertised.upper().split()
    candidates = (wanted.upper(),) if wanted else (_ORDER_TLS if tls else _ORDER_PLAINTEXT)
    for name in candidates:
        if name in offered and (name != "CRAM-MD5" or _has_md5()):
            return name
    raise NotSupported(f"no mechanism to log in with: the server offers {' '.join(offered) or 'none'}")


def mechanism(name: str, user: str, secret: str) -> Mechanism:
    """The function that answers the challenges of mechanism `name` with these credentials."""
    known: dict[str, Callable[[str, str], Mechanism]] = {
        "PLAIN": _plain,
        "LOGIN": _login,
        "CRAM-MD5": _cram_md5,
        "XOAUTH2": _xoauth2,
        "OAUTHBEARER": _oauthbearer,
    }
    if name not in known:
        raise NotSupported(f"mechanism {name} is not known; known are {', '.join(known)}")
    return known[name](user, secret)


def _plain(user: str, password: str) -> Mechanism:
    return lambda challenge: f"\0{user}\0{password}"  # RFC 4616


def _login(user: str, password: str) -> Mechanism:
    answers = [user, password]
    return lambda challenge: answers.pop(0) if len(answers) > 1 else password


def _cram_md5(user: str, password: str) -> Mechanism:
    def answer(challenge: bytes | None) -> str | None:
        if challenge is None:
            return None
        return f"{user} {hmac.new(password.encode(), challenge, 'md5').hexdigest()}"  # RFC 2195

    return answer


def _xoauth2(user: str, token: str) -> Mechanism:
    # A challenge after the initial response is an error report, to be answered with nothing.
    return lambda challenge: f"user={user}\1auth=Bearer {token}\1\1" if challenge is None else ""


def _oauthbearer(user: str, token: str) -> Mechanism:
    name = user.replace("=", "=3D").replace(",", "=2C")
    return lambda challenge: f"n,a={name},\1auth=Bearer {token}\1\1" if challenge is None else "\1"  # RFC 7628


def authenticate(wire: Wire, name: str, answerer: Mechanism, secrets: list[str], *, initial_ok: bool) -> Reply:
    """Have the AUTH dialogue.

    Args:
        secrets: what the server may echo and must not be seen; emptied.
    Raises:
        LoginRefused: the server's answer was no; the connection is as good as before.
        MailError: the dialogue broke down; the connection is closed.
    """
    initial = answerer(None) if initial_ok else None
    said = [] if initial is None else [encoded(initial)]
    del initial
    challenges = 0
    try:
        reply = wire.command(" ".join(["AUTH", name, *said]), f"AUTH {name} ***")
        while reply.code == 334:
            challenges += 1
            if challenges > _MAX_CHALLENGES:
                raise MailError(f"Server AUTH mechanism infinite loop. Last response: {reply}")
            said.append(encoded(answerer(decoded(reply.raw)) or ""))
            reply = wire.command(said[-1], "***")
    except MailError as error:
        wire.close()
        error.phase = Phase.AUTH
        raise detach(error) from None  # the frames below hold what was said
    except BaseException:
        wire.close()  # an answer is awaited that will not come
        raise
    text = scrubbed(reply.raw, secrets + said)
    said.clear()
    secrets.clear()
    if reply.code in (235, 503):  # 503: logged in already
        return Reply(reply.code, text)
    raise LoginRefused(reply.code, text)


def encoded(response: str) -> str:
    """A response as it goes on the wire. UTF-8, for passwords are not bound to ASCII (RFC 4616 §2)."""
    return base64.b64encode(response.encode()).decode("ascii")


def decoded(challenge: bytes) -> bytes:
    """A challenge as it came in a 334 reply.

    Raises:
        BadReply: it is not base64.
    """
    try:
        return base64.b64decode(challenge, validate=True)
    except binascii.Error as exc:
        raise BadReply("the server's login challenge is not base64") from exc


def scrubbed(text: bytes, secrets: list[str]) -> bytes:
    """`text` of a server without the secrets it may have echoed."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret.encode(), b"***")
    return text


def _has_md5() -> bool:
    try:
        hmac.new(b"", b"", "md5")
    except ValueError:  # FIPS builds have none
        return False
    return True
