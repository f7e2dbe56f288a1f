"""What a mailbox is.

Owns the grammar of addresses: `mailbox` turns what a caller wrote (`a@b.example`, `Name <a@b.example>`) into the bare
mailbox that may stand between the brackets of MAIL and RCPT, `address_list` splits the value of an address header.
Guarantees: what comes out holds no space outside quotes, no bracket, no control character and no line end, so nothing
can be smuggled past it into a command (RFC 5321 §4.1.2); what cannot be read is refused, never guessed or cut.

The standard library's parsers are of no use here: they drop what they do not understand (`a@b; c@d` loses a recipient)
and 3.13 still lets `<a@b> SIZE=1` through.
"""

from __future__ import annotations

import re
import unicodedata

from ..errors import InvalidAddress

# Dots at odd places are let through: `first..last@` and `name.@` are live mailboxes of Japanese mobile carriers, and
# they can do no harm.
_ATOMS = r"[^\s()<>\[\]:;@\\,\"]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_LABEL = r"[A-Za-z0-9_\u0080-\U0010ffff](?:[A-Za-z0-9_\-\u0080-\U0010ffff]*[A-Za-z0-9_\u0080-\U0010ffff])?"
_ASCII_DOMAIN = re.compile(rb"[A-Za-z0-9_\-.]+")
_LITERAL = r"\[(?:\d{1,3}(?:\.\d{1,3}){3}|IPv6:[0-9A-Fa-f:.]+)\]"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAILBOX = re.compile(rf"(?P<local>{_ATOMS}|{_QUOTED})(?:@(?P<domain>{_DOMAIN.pattern}|{_LITERAL}))?")
_NAMED = re.compile(rf"(?:[^<>\"]|{_QUOTED})*<(?P<inner>{_QUOTED}@[^<>]*|[^<>\"]*)>")

# Nearly all addresses, alone and behind a name without quotes: what these match, the grammar reads as they do.
_PLAIN_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9_])?"
_PLAIN = rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,128}}@(?:{_PLAIN_LABEL}\.){{0,4}}{_PLAIN_LABEL}"
_IS_PLAIN = re.compile(_PLAIN).fullmatch
_PLAIN_ITEM = re.compile(rf" {{0,4}}(?:({_PLAIN})|[A-Za-z0-9 .!#$%&'*+/=?^_`{{|}}~-]{{0,200}}<({_PLAIN})>) ?").fullmatch

# A command line holds 512 octets (RFC 5321 §4.5.3.1.4). The shorter limits for local part and domain are left to
# servers: addresses with return-path encoding pass them daily.
_LONGEST = 480
_LONGEST_NAMED = 998  # a display name and an address fit in one header line (RFC 5322 §2.1.1)


def mailbox(text: str, what: str = "address") -> str:
    """The bare mailbox in `text`, ready for the wire.

    A domain beyond ASCII becomes its A-label where the way back gives the same name, and stays as it is (for SMTPUTF8)
    where IDNA 2003 would change it into another domain: "ß" is not "ss". Characters that are written for others, such
    as the full stop and the letters of full width, are refused: in no domain of IDNA 2008 can they be (RFC 5892 §2.2),
    and where somebody on the way takes "。" for "." the mail is another domain's.

    Args:
        text: `local@domain`, `Name <local@domain>`, or a local part alone (mail to `root` on the same machine).
        what: what the address is called in the error.
    Raises:
        InvalidAddress: it is no mailbox.
    """
    if type(text) is str and _IS_PLAIN(text):
        return text
    if not isinstance(text, str):
        raise InvalidAddress(f"{what} must be a string, not {type(text).__name__}")
    if not text.isprintable():
        raise InvalidAddress(f"{what} {_shown(text)} holds a line end or another control character")
    if len(text) > _LONGEST_NAMED:
        raise InvalidAddress(f"{what} {_shown(text)} is too long: {len(text)} characters")
    bare = text.strip()
    if bare.endswith(">"):
        named = _NAMED.fullmatch(bare)
        if named is None:
            raise InvalidAddress(f"{what} {_shown(text)} is no mailbox: its angle brackets do not match")
        bare = named["inner"]
    match = _MAILBOX.fullmatch(bare)
    if match is None:
        raise InvalidAddress(f"{what} {_shown(text)} is no mailbox{_why(bare)}")
    local, domain = match["local"], match["domain"]
    if domain is None:
        if local.startswith(('"', "=?")):  # a phrase, or an encoded word that may hide an address
            raise InvalidAddress(f"{what} {_shown(text)} is no mailbox: it has no domain")
        found = local
    else:
        if not (domain.isascii() or _is_stable(domain)):
            raise InvalidAddress(f"{what} {_shown(text)} is no mailbox: its domain holds characters written for others")
        found = f"{local}@{a_label(domain) if local.isascii() else domain}"
    if len(found.encode()) > _LONGEST:
        raise InvalidAddress(f"{what} {_shown(text)} is too long: {len(found.encode())} octets")
    return found


def sender_mailbox(text: str) -> str:
    """As `mailbox`, but `""` and `"<>"` are the null reverse-path of RFC 5321 §4.5.5 and give `""`."""
    return "" if text in ("", "<>") else mailbox(text, "sender")


def address_list(text: str, what: str) -> list[str]:
    """The mailboxes in the value of an address header (RFC 5322 §3.4), groups dissolved, comments dropped.

    Raises:
        InvalidAddress: one of them is none. Nothing is skipped: a recipient left out in silence is a mail lost.
    """
    plain = [_PLAIN_ITEM(item) for item in text.split(",")]
    if all(plain):
        return [match[1] or match[2] for match in plain if match]
    items: list[str] = []
    item: list[str] = []
    closing = ""  # what ends the quoted string, bracket or comment we are in
    depth = 0  # comments nest
    in_group = False
    chars = iter(text)
    for char in chars:
        if char == "\\" and closing in ('"', ")"):
            pair = char + next(chars, "")
            if closing == '"':
                item.append(pair)
        elif closing == ")":
            depth += (char == "(") - (char == ")")
            if not depth:
                closing = ""
                item.append(" ")  # a comment counts as a space: what stands before and behind it is not one word
        elif closing:
            item.append(char)
            closing = "" if char == closing else closing
        elif char == "(":
            closing, depth = ")", 1
        elif char == "," or (char == ";" and in_group):
            items.append("".join(item))
            item.clear()
            in_group = in_group and char == ","
        elif char == ":" and not in_group:
            if "@" in item:
                raise InvalidAddress(f"{what}: {_shown(text)} has a colon behind an address")
            item.clear()  # what came before was the name of a group
            in_group = True
        else:
            item.append(char)
            closing = {'"': '"', "<": ">", "[": "]"}.get(char, "")
    if closing:
        raise InvalidAddress(f"{what}: {_shown(text)} ends inside {'a comment' if closing == ')' else closing!r}")
    if in_group:
        raise InvalidAddress(f"{what}: {_shown(text)} ends inside a group: its semicolon is missing")
    items.append("".join(item))
    return [mailbox(i, what) for i in items if i.strip()]


def _is_stable(domain: str) -> bool:
    composed = unicodedata.normalize("NFC", domain)
    # NFC itself turns U+037E into ";" and U+1FEF into "`".
    same = unicodedata.normalize("NFKC", domain) == composed
    return same and "\u3002" not in domain and _DOMAIN.fullmatch(composed) is not None  # IDNA 2003 takes it for a dot


def a_label(domain: str) -> str:
    """`domain` in ASCII (RFC 5890); unchanged where IDNA 2003, which is all Python has, would make it another one."""
    if domain.isascii():
        return domain
    try:
        ascii_form = domain.encode("idna")
        back = ascii_form.decode("idna")
    except UnicodeError:
        return domain
    same = back == unicodedata.normalize("NFC", domain).lower()
    return ascii_form.decode("ascii") if same and _ASCII_DOMAIN.fullmatch(ascii_form) else domain


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _why(bare: str) -> str:
    if not bare:
        return ": it is empty"
    if ";" in bare:
        return ": addresses are separated by commas, not semicolons"
    if "@" not in bare:
        return ": it has no domain"
    if bare.startswith("@") or bare.endswith("@"):
        return f": nothing stands {'before' if bare.startswith('@') else 'behind'} the @"
    if bare.count("@") > 1 and '"' not in bare:
        return ": it has more than one @"
    return ""
