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
import re
from collections.abc import Callable
from typing import TypeAlias

from .._transport.wire import Wire
from ..errors import BadReply, InvalidConfig, LoginRefused, MailError, NotSupported, Phase, detach, printable
from ..receipt import Reply

#: Called with None for the initial response (None back: there is none), then with each challenge.
Mechanism: TypeAlias = "Callable[[bytes | None], str | None]"

# With TLS the password is safe on the way, and servers that keep only hashes of passwords advertise CRAM-MD5 without
# being able to check it. Without TLS (to this machine, or by consent) not to show the password comes first.
_ORDER_TLS = ("PLAIN", "LOGIN", "CRAM-MD5")
_MAX_CHALLENGES = 5
_ORDER_PLAINTEXT = ("CRAM-MD5", "PLAIN", "LOGIN")


class Secret:
    """A password or token in a wrapper, so that the locals of a traceback, which crash reporters print, show none."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "<secret>"


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
    asked = f"{wanted} was asked for, and " if wanted else ""
    raise NotSupported(f"no mechanism to log in with: {asked}the server offers {' '.join(offered) or 'none'}")


def mechanism(name: str, user: str, secret: Secret) -> Mechanism:
    """The function that answers the challenges of mechanism `name` with these credentials.

    Raises:
        NotSupported: it is not known here.
        InvalidConfig: they hold what separates the fields of a response, and would forge another user's (RFC 4616 §2,
            RFC 7628 §3.1).
    """
    known: dict[str, Callable[[str, Secret], Mechanism]] = {
        "PLAIN": _plain,
        "LOGIN": _login,
        "CRAM-MD5": _cram_md5,
        "XOAUTH2": _xoauth2,
        "OAUTHBEARER": _oauthbearer,
    }
    if name not in known:
        raise NotSupported(f"mechanism {name} is not known; known are {', '.join(known)}")
    if any(separator in text for separator in "\0\1" for text in (user, secret.reveal())):
        raise InvalidConfig("user name, password or token holds a control character", phase=Phase.AUTH)
    return known[name](user, secret)


def _plain(user: str, secret: Secret) -> Mechanism:
    return lambda challenge: f"\0{user}\0{secret.reveal()}"  # RFC 4616


def _login(user: str, secret: Secret) -> Mechanism:
    return _in_turn(lambda: user, secret.reveal)


def _cram_md5(user: str, secret: Secret) -> Mechanism:
    def answer(challenge: bytes | None) -> str | None:
        if challenge is None:
            return None
        return f"{user} {hmac.new(utf8(secret.reveal()), challenge, 'md5').hexdigest()}"  # RFC 2195

    return answer


def _xoauth2(user: str, secret: Secret) -> Mechanism:
    # A challenge after the response is an error report, to be answered with nothing.
    return _in_turn(lambda: f"user={user}\1auth=Bearer {secret.reveal()}\1\1", lambda: "")


def _oauthbearer(user: str, secret: Secret) -> Mechanism:
    name = user.replace("=", "=3D").replace(",", "=2C")
    return _in_turn(lambda: f"n,a={name},\1auth=Bearer {secret.reveal()}\1\1", lambda: "\1")  # RFC 7628


def _in_turn(first: Callable[[], str], later: Callable[[], str]) -> Mechanism:
    """`first` answers when it is first asked, with or without a challenge; then `later` does."""
    turns = [first]
    return lambda challenge: (turns.pop() if turns else later)()


def authenticate(wire: Wire, name: str, answerer: Mechanism, secret: Secret | None, *, initial_ok: bool) -> Reply:
    """Have the AUTH dialogue.

    Args:
        secret: what the server may echo and must not be seen.
    Raises:
        LoginRefused: the server's answer was no; the connection is as good as before, unless it said 421.
        MailError: the dialogue broke down; the connection is closed.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,20}", name):  # RFC 4422 §3.1
        raise InvalidConfig(f"{name!a} is no name of a mechanism", phase=Phase.AUTH)
    try:
        reply = _converse(wire, name, answerer, secret, initial_ok)
    except MailError as error:
        wire.close()
        error.phase = Phase.AUTH
        raise detach(error) from None  # the frames below hold what was said
    except BaseException:
        wire.close()  # an answer is awaited that will not come
        raise
    if reply.code in (235, 503):  # 503: logged in already
        return reply
    if not (reply.transient or reply.permanent):
        wire.close()
        raise BadReply(f"AUTH was answered {reply}", phase=Phase.AUTH)  # which says nothing about the password
    if reply.closes:
        wire.close()
    raise LoginRefused(*reply.pair)


def _converse(wire: Wire, name: str, answerer: Mechanism, secret: Secret | None, initial_ok: bool) -> Reply:
    """The dialogue; the reply that ends it comes without the secrets it may echo, and so does all that is logged."""
    hidden = wire.secrets
    first: list[str] = []
    try:
        if secret is not None:
            hidden += [utf8(secret.reveal()), encoded(secret.reveal()).encode()]
        initial = answerer(None) if initial_ok else None
        if initial is not None:
            first.append(encoded(initial) or "=")  # RFC 4954 §4
            hidden.append(first[0].encode())
        del initial
        reply = _ask(wire, " ".join(["AUTH", name, *first]), f"AUTH {name} ***")
        for _ in range(_MAX_CHALLENGES):
            if reply.code != 334:
                break
            hidden.append(encoded(answerer(decoded(reply.raw)) or "").encode())
            reply = _ask(wire, hidden[-1].decode(), "***")
        if reply.code == 334:
            raise MailError(
                f"Server AUTH mechanism infinite loop. Last response: {printable(wire.scrubbed(reply.raw))}"
            )
        return Reply(reply.code, wire.scrubbed(reply.raw))
    finally:
        hidden.clear()
        first.clear()


def _ask(wire: Wire, line: str, shown: str) -> Reply:
    try:
        return wire.command(line, shown)
    except BaseException as exc:  # noqa: BLE001 - raised again, without the frames below, which hold the line as well
        del line
        raise exc.with_traceback(None) from exc.__cause__


def encoded(response: str) -> str:
    """A response as it goes on the wire."""
    return base64.b64encode(utf8(response)).decode("ascii")


def utf8(text: str) -> bytes:
    """`text` in UTF-8, for passwords are not bound to ASCII (RFC 4616 §2).

    Raises:
        InvalidConfig: it holds lone surrogates, as an environment variable in another encoding does.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        del text
    # Outside of "except", for that error holds the text.
    raise InvalidConfig("user name or password cannot be written in UTF-8")


def decoded(challenge: bytes) -> bytes:
    """A challenge as it came in a 334 reply.

    Raises:
        BadReply: it is not base64.
    """
    try:
        return base64.b64decode(challenge, validate=True)
    except binascii.Error as exc:
        raise BadReply("the server's login challenge is not base64") from exc


def _has_md5() -> bool:
    try:
        hmac.new(b"", b"", "md5")
    except ValueError:  # FIPS builds have none
        return False
    return True
