"""An address field as it is written: with the mailboxes that it was given, and no others.

Owns the writing of To, From and their kin where the email package cannot be relied on. Guarantees: the mailboxes on the
wire are those of the field, in order, with the ASCII form of an internationalised domain (RFC 5890); no encoded word
stands in an address (RFC 2047 §5); what cannot be written so is refused. Leaves all else of a header to the package,
whose own line is taken wherever it names the same mailboxes.

Where it does not: an encoded word hid a comma, and is written decoded and bare (all Pythons, where the name is ASCII:
up to 3.13); the quotes of a long name are lost when its line is folded (up to 3.13); `bob@bücher.example` becomes an
encoded word in the address (up to 3.14) or an error (3.15); a whole address becomes one encoded word (`Message`, the
older class, everywhere). A line that names other mailboxes is another letter: a reply goes to a stranger, and a crafted
name forges an author.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.errors import MessageError, NonASCIILocalPartDefect, ObsoleteHeaderDefect
from email.headerregistry import Address, Group, HeaderRegistry, UnstructuredHeader
from typing import Any

from .._runtime.outside import is_of_a_handler
from ..errors import InvalidAddress, InvalidEnvelope
from .address import address_list, mailbox

#: The fields that name mailboxes: those of RFC 5322 §3.6, RFC 8098 §2.1, and what mailers agree on.
NAMES = frozenset(
    (
        *(
            f"{prefix}{name}"
            for prefix in ("", "resent-")
            for name in ("from", "sender", "to", "cc", "bcc", "reply-to")
        ),
        *("disposition-notification-to", "return-receipt-to", "errors-to", "mail-followup-to", "mail-reply-to"),
    )
)

# Other defects say that something was cut: what is left is not what was given.
_HARMLESS = (ObsoleteHeaderDefect, NonASCIILocalPartDefect)
_parsed = HeaderRegistry()
# Read as a character that the grammar lets stand in a name and in no address. In full, a name in encoded words may be
# longer than it lets a mailbox be.
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=")
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_ATOMS = re.compile(r"[^\s()<>\[\]:;@\\,\".]+(?: [^\s()<>\[\]:;@\\,\".]+)*")
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
# What stands for itself in an encoded word of a display name (RFC 2047 §5).
_ITSELF = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!*+-/")
_PREFIX = "=?utf-8?q?"
_LONGEST_WORD = 75 - len(_PREFIX) - 2
_LONGEST_LINE = 998  # RFC 5322 §2.1.1


def mailboxes(value: Any) -> list[str] | None:
    """The mailboxes that the value of an address field names, domains in ASCII where they can be; None: no telling."""
    if not all(isinstance(defect, _HARMLESS) for defect in getattr(value, "defects", ())):
        return None
    text = _text(value)
    return None if text is None else _read(text)


def need_utf8(fields: Iterable[tuple[str, Any]]) -> bool:
    """Whether an address field that will be written names a mailbox that has no form in ASCII."""
    # Each header object has a class of its own, which no cache knows: its method is not looked up.
    for name, value in [field for field in fields if not (isinstance(field[1], str) and str.isascii(field[1]))]:
        if name.lower() in NAMES and not name.lower().endswith("bcc"):
            named = mailboxes(value)
            if named is not None and not all(map(str.isascii, named)):
                return True
    return False


def folded(name: str, value: Any, policy: Any, *, utf8: bool = False) -> str:
    """The field `name` with its line end, as `policy` writes it if that is right, and else as it should be.

    Args:
        utf8: it may hold UTF-8 (RFC 6532); with a policy that cannot write it, bytes of it stand there as surrogates.
    Raises:
        InvalidEnvelope: it cannot be written with the mailboxes that it names.
        MessageError, ValueError, ...: what the policy raises, where nothing better can be done.
    """
    given = mailboxes(value)
    if given is None:
        return _by_policy(name, value, policy)
    failure: Exception | None = None
    theirs = ""
    try:
        theirs = _by_policy(name, value, policy)
        right = _read(_unfolded(theirs.partition(":")[2])) == given
    except (MessageError, ValueError, LookupError, AttributeError, TypeError) as exc:
        if is_of_a_handler(exc):
            raise
        failure, right = exc, False
    if right and (utf8 or theirs.isascii()):
        return theirs
    ours = _written(name, value, given, policy, utf8)
    if ours is not None:
        return ours
    if right:
        return theirs
    raise InvalidEnvelope(f"the {name} field cannot be written so that it names the same mailboxes") from failure


class Written:
    """Stands in a message in the place of an address field's value, and writes it when the generator comes to it.

    Has the shape of both kinds of header objects: an `EmailPolicy` calls `fold`, the older policy `encode`.

    Args:
        inside: of a message that is attached to one that goes out in ASCII: what needs UTF-8 is 8-bit text there.
    """

    def __init__(self, name: str, value: Any, policy: Any, *, utf8: bool, inside: bool = False) -> None:
        self.name = name
        self._value = value
        self._policy = policy
        self._utf8 = utf8
        self._inside = inside

    def fold(self, *, policy: Any) -> str:
        if not self._inside:
            return folded(self.name, self._value, policy, utf8=self._utf8)
        policy = policy.clone(utf8=True) if hasattr(policy, "utf8") else policy
        line = folded(self.name, self._value, policy, utf8=True)
        return line.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")  # which the generator leaves

    def encode(self, *, linesep: str, maxlinelen: int) -> str:
        line = self.fold(policy=self._policy.clone(linesep=linesep, max_line_length=maxlinelen))
        return line.removeprefix(f"{self.name}: ").removesuffix(linesep)


def _by_policy(name: str, value: Any, policy: Any) -> str:
    line: bytes = policy.fold_binary(name, value)
    return line.decode("utf-8" if getattr(policy, "utf8", False) else "ascii", "surrogateescape")


def _text(value: Any) -> str | None:
    """What the field says, decoded and on one line; None for bytes that are no UTF-8."""
    try:
        text: str = str(value)
        if isinstance(value, UnstructuredHeader):
            # The registry takes the rarer fields for free text, and would show what an encoded word hid as if it had
            # been written out.
            text = _undecoded(value._parse_tree)  # type: ignore[attr-defined]
        if not text.isascii():
            text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    except (UnicodeError, LookupError, MessageError):
        return None
    return str(_FOLD.sub("", text)).replace("\t", " ")


def _undecoded(tree: Any) -> str:
    words = [[str(t)] if t.token_type != "encoded-word" else ["", *_encoded_words(str(t)), ""] for t in tree]
    return "".join(" ".join(word) for word in words)


def _read(text: str) -> list[str] | None:
    try:
        return address_list(_ENCODED_WORD.sub("]", text), "field")
    except InvalidAddress:
        return None


def _unfolded(lines: str) -> str:
    value = _FOLD.sub("", lines).rstrip("\r\n").replace("\t", " ")
    return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8")


def _written(name: str, value: Any, given: list[str], policy: Any, utf8: bool) -> str | None:
    """The field written from the names and mailboxes in it; None if that cannot be done."""
    if not (utf8 or all(map(str.isascii, given))):
        return None
    groups = value.groups if hasattr(value, "groups") else _parsed("To", _text(value)).groups  # type: ignore[attr-defined]
    try:
        words = list(_words(groups, utf8))
    except (InvalidAddress, UnicodeError):
        return None
    lines = [f"{name}:"]
    longest = policy.max_line_length or _LONGEST_LINE
    for number, word in enumerate(words):
        if number and len(lines[-1]) + 1 + len(word) > longest:
            lines.append("")
        lines[-1] += f" {word}"
    read = _read("".join(lines)[len(name) + 1 :])
    if read != given or max(map(len, lines)) > _LONGEST_LINE:
        return None
    end: str = policy.linesep
    line = end.join(lines) + end
    if line.isascii() or getattr(policy, "utf8", False):
        return line
    return line.encode("utf-8").decode("ascii", "surrogateescape")


def _words(groups: Iterable[Group], utf8: bool) -> Iterator[str]:
    """The field's words, each of which stays on one line; between two a line may end."""
    held = ""
    for group in groups:
        members = [word for address in group.addresses for word in _address(address, utf8)]
        if group.display_name is not None:
            members = [*_phrase(group.display_name, utf8, ":"), *members]
            members[-1] = members[-1].removesuffix(",") + ";,"
        for word in members:
            if held:
                yield held
            held = word
    if held:
        yield held.removesuffix(",")


def _address(address: Address, utf8: bool) -> Iterator[str]:
    found = mailbox(address.addr_spec)
    if address.display_name:
        yield from _phrase(address.display_name, utf8)
        yield f"<{found}>,"
    else:
        yield f"{found},"


def _phrase(name: str, utf8: bool, end: str = "") -> list[str]:
    """A display name: as it is if it may be, quoted if that is enough, else in encoded words."""
    if not (name.isprintable() and (name.isascii() or utf8)) or "=?" in name:
        words = _encoded_words(name)
    elif _ATOMS.fullmatch(name):
        words = name.split(" ")
    else:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        words = _BETWEEN_WORDS.split(f'"{escaped}"')
    if any(len(word) > _LONGEST_LINE // 2 for word in words):
        words = _encoded_words(name)
    words[-1] += end
    return words


def _encoded_words(text: str) -> list[str]:
    """`text` in encoded words of whole characters; readers put neighbours together without a space (RFC 2047 §6.2)."""
    words = [""]
    for char in text:
        octets = char.encode("utf-8")
        coded = "_" if char == " " else "".join(chr(o) if o in _ITSELF else f"={o:02X}" for o in octets)
        if len(words[-1]) + len(coded) > _LONGEST_WORD:
            words.append("")
        words[-1] += coded
    return [f"{_PREFIX}{word}?=" for word in words]
