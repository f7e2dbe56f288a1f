"""Plain messages written out without the email package's generator.

Owns a serialiser that is exact or silent. For the messages that real code builds (header fields of printable ASCII that
fit on their line, text and base64 that is ASCII already, parts in parts) it writes the bytes of
`BytesGenerator(mangle_from_=False, policy=message.policy)` with CRLF line ends, at a tenth of the CPU; for everything
that it is not sure about, a line end in a value among it, it says None, and the generator has to do it. It writes
nothing into the message, whose boundaries are made for the output alone. Leaves fields beyond the trivial to the
message's own policy, which is whom the generator asks as well.
"""

from __future__ import annotations

import functools
import random
import re
import sys
from email import headerregistry as registry
from email._header_value_parser import TokenList
from email.errors import MessageError
from email.message import Message
from email.policy import EmailPolicy, compat32
from typing import Any, NamedTuple, TypeAlias

from . import address_field as _address_field

AnyMessage: TypeAlias = "Message[Any, Any]"
Fields: TypeAlias = list[tuple[str, Any]]

_NAME = re.compile(r"[!-9;-~]+")
_FOLDED = re.compile(r"([!-9;-~]+):[^\r\n\0]*(?:\r\n[ \t][^\r\n\0]*)*\r\n")
_TYPE = re.compile(r"([A-Za-z]+)/([A-Za-z0-9.+-]+)[ \t]*(?:;|$)")
_SAFE = r"[A-Za-z0-9'+_./=-]{1,70}"
# `boundary` as the only parameter, of characters that mean the same quoted or not.
_BOUNDARY = re.compile(rf'multipart/[A-Za-z-]+;(?:\r?\n)?[ \t]*boundary=("?)({_SAFE})\1', re.IGNORECASE)
_DISCRETE = frozenset(("text", "application", "image", "audio", "video", "font", "model"))
_DEEPEST = 20

# What the generator asks of a message: a class or an instance that answers otherwise is not for us.
_ASKED = (
    *("raw_items", "get", "get_content_maintype", "get_content_subtype", "get_content_type", "get_default_type"),
    *("get_payload", "is_multipart", "get_boundary", "set_boundary", "get_param", "_get_params_preserve"),
    "__getattribute__",
)
_HELD = ("policy", "preamble", "epilogue", "_payload", "_headers", "_write_headers", "__getattr__")
_NOT_ON_INSTANCES = frozenset((*_ASKED, "_write_headers"))

# What may be set of a policy. The constructor takes the name of any attribute, methods included.
_SETTINGS = frozenset(
    (
        *("raise_on_defect", "linesep", "cte_type", "max_line_length", "mangle_from_", "message_factory", "utf8"),
        *("verify_generated_headers", "refold_source", "header_factory", "content_manager"),
    )
)


def _classes(*mixed: type) -> frozenset[tuple[type, ...]]:
    return frozenset((each, registry.BaseHeader) for each in mixed)


# The registry makes a class for every value; its bases are what says how the value was read. The text of the first is
# that of their parse tree, which is what is written; that of a date only if it is one; that of addresses is not.
_AS_READ = _classes(
    *(registry.UnstructuredHeader, registry.UniqueUnstructuredHeader, registry.MIMEVersionHeader),
    *(registry.ContentTypeHeader, registry.ContentDispositionHeader, registry.ContentTransferEncodingHeader),
    registry.MessageIDHeader,
)
_DATES = _classes(registry.DateHeader, registry.UniqueDateHeader)
_ADDRESSES = _classes(
    *(registry.AddressHeader, registry.UniqueAddressHeader),
    *(registry.SingleAddressHeader, registry.UniqueSingleAddressHeader),
)
_KNOWN = _AS_READ | _DATES | _ADDRESSES
_FREE_TEXT = _classes(registry.UnstructuredHeader, registry.UniqueUnstructuredHeader)
_ENDS_A_NAME = frozenset('()<>@,:;\\"[]')  # a dot does not, as everybody reads it (RFC 5322 §4.1, obs-phrase)
# From 3.14 on the generator minds what came out of an encoded word, and can be asked for it.
_has_token: Any = getattr(TokenList, "contains_token_type", None)
_JOINED: Any = TokenList.__str__
_PLAIN_LIST = re.compile(r"[A-Za-z0-9 .,@<>!#$%&'*+/^_`{|}~-]+")
# Each value has a class of its own: to ask it for an attribute is to search five dictionaries that no cache holds.
_state = vars(registry.BaseHeader)["__dict__"].__get__
_ATTRIBUTES = len(vars(type("_", (registry.UnstructuredHeader, registry.BaseHeader), {})))


class _Rules(NamedTuple):
    """What of a policy decides how a plain message is written."""

    policy: Any  # with CRLF line ends, as the generator has it
    modern: bool  # an EmailPolicy, whose fields may be objects
    longest: int
    trivial: bool  # short fields stay as they are
    eight_bit: bool


class _Unsure(Exception):
    """The generator has to do it."""


def serialised(message: AnyMessage, fields: Fields) -> tuple[bytes, list[bytes]] | None:
    """The header block of `message` without its empty line, and the pieces behind it; None leaves it to the generator.

    Args:
        fields: the fields to write, of those that `message.raw_items()` has.
    """
    rules = _rules(message.policy)
    if rules is None:
        return None
    pieces: list[bytes] = []
    try:
        header = _write(message, fields, rules, pieces, 0)
    except (_Unsure, MessageError, ValueError, LookupError, AttributeError, TypeError):
        return None  # whatever a field's own folding raises the generator will raise again
    if any(b"\0" in piece for piece in pieces):
        return None  # may hide the end of data: a matter for who checks line ends
    return header, pieces


@functools.lru_cache(maxsize=16)
def _rules(policy: Any) -> _Rules | None:
    if type(policy) not in (EmailPolicy, type(compat32)) or not vars(policy).keys() <= _SETTINGS:
        return None
    modern = type(policy) is EmailPolicy
    trivial = not modern or policy.refold_source in ("none", "long")
    longest = policy.max_line_length or sys.maxsize
    seven_bit = {"utf8": False} if modern else {}  # who wants UTF-8 in the header is not written out here
    return _Rules(policy.clone(linesep="\r\n", **seven_bit), modern, longest, trivial, policy.cte_type != "7bit")


@functools.lru_cache(maxsize=64)
def _is_plain(kind: Any) -> bool:
    same = all(getattr(kind, name, None) is getattr(Message, name) for name in _ASKED)
    return same and not any(hasattr(kind, name) for name in _HELD)


def _write(message: AnyMessage, fields: Fields, rules: _Rules, out: list[bytes], depth: int) -> bytes:
    """Append to `out` what stands behind the header of `message`, from the empty line on, and return the header."""
    kind: Any = type(message)
    if depth > _DEEPEST or not _is_plain(kind) or not _NOT_ON_INSTANCES.isdisjoint(vars(message)):
        raise _Unsure
    out.append(b"\r\n")
    payload: Any = message._payload  # type: ignore[attr-defined]  # get_payload() would decode what is written as is
    types = [value for name, value in fields if name.lower() == "content-type"]
    main, sub = _type(message, types)
    if main in _DISCRETE:
        if payload is not None:
            out.append(_text(payload, rules))
    elif not isinstance(payload, list):
        raise _Unsure
    elif main == "multipart" and sub != "signed":  # the fields of signed parts are not folded
        fields = _multipart(message, fields, types, rules, out, depth)
    elif (main, sub) == ("message", "rfc822"):
        _part(payload[0], rules, out, depth)
    else:
        raise _Unsure
    return _header(fields, rules)


def _type(message: AnyMessage, types: list[Any]) -> tuple[str, str]:
    if not types:
        text = message.get_default_type()
    elif len(types) == 1 and isinstance(types[0], str):
        text = types[0]
    else:
        raise _Unsure
    match = _TYPE.match(text)
    if match is None:
        raise _Unsure
    return match[1].lower(), match[2].lower()


def _part(part: Any, rules: _Rules, out: list[bytes], depth: int) -> None:
    if not isinstance(part, Message):
        raise _Unsure
    at = len(out)
    out.append(b"")
    out[at] = _write(part, list(part.raw_items()), rules, out, depth + 1)


def _multipart(
    message: AnyMessage, fields: Fields, types: list[Any], rules: _Rules, out: list[bytes], depth: int
) -> Fields:
    """Write the parts, and return the fields: with the boundary, where there was none."""
    parts: list[list[bytes]] = []
    for part in message._payload:  # type: ignore[attr-defined]
        parts.append([])
        _part(part, rules, parts[-1], depth)
    given = _BOUNDARY.fullmatch(types[0]) if types else None
    if given is not None:
        boundary = given[2]
    else:
        boundary = _new_boundary(parts)
        fields = [(n, _with_boundary(n, v, boundary, rules) if n.lower() == "content-type" else v) for n, v in fields]
    line = f"--{boundary}".encode("ascii")
    if message.preamble is not None:
        out += (_text(message.preamble, rules), b"\r\n")
    out += (line, b"\r\n")
    for number, pieces in enumerate(parts):
        if number:
            out += (b"\r\n", line, b"\r\n")
        out += pieces
    out += (b"\r\n", line, b"--\r\n")
    if message.epilogue is not None:
        out.append(_text(message.epilogue, rules))
    return fields


def _new_boundary(parts: list[list[bytes]]) -> str:
    """A boundary as the generator makes it, and out of the same chance."""
    width = len(repr(sys.maxsize - 1))
    boundary = f"==============={random.randrange(sys.maxsize):0{width}}=="
    line = f"--{boundary}".encode("ascii")
    if any(line in piece for pieces in parts for piece in pieces):
        raise _Unsure
    return boundary


class _Line(str):
    """A field that is written already."""


def _with_boundary(name: str, value: str, boundary: str, rules: _Rules) -> _Line:
    """The field as `set_boundary` and the policy would have it, for a type that has no other parameter."""
    if _TYPE.fullmatch(value) is None or _NAME.fullmatch(name) is None:
        raise _Unsure
    typed, parameter = f"{name}: {value};", f'boundary="{boundary}"'
    if rules.modern and not _is_stock(rules.policy.header_factory):
        stored = rules.policy.header_store_parse(name, f"{value}; {parameter}")
        return _Line(_folded(stored[0], stored[1], rules))
    if len(typed) + 1 + len(parameter) <= rules.longest:
        return _Line(f"{typed} {parameter}\r\n")
    if len(typed) > rules.longest or len(parameter) + 2 > rules.longest:
        raise _Unsure
    return _Line(f"{typed}\r\n {parameter}\r\n")


def _is_stock(factory: Any) -> bool:
    stock = type(factory) is registry.HeaderRegistry and factory.base_class is registry.BaseHeader
    return stock and factory.registry.get("content-type") is registry.ContentTypeHeader


def _header(fields: Fields, rules: _Rules) -> bytes:
    lines: list[str] = []
    for name, value in fields:
        if type(value) is _Line:
            lines.append(value)
            continue
        text = _one_line(name, value, rules)
        lines.append(_folded(name, value, rules) if text is None else f"{name}: {text}\r\n")
    return "".join(lines).encode("latin-1")


def _one_line(name: str, value: Any, rules: _Rules) -> str | None:
    """The value, where it is written as it stands: printable ASCII that fits behind the name."""
    text = value
    kind = type(value)
    if kind is not str:
        text = _as_written(name, value, kind) if rules.modern else None
    elif not rules.trivial:
        text = None
    if text is None or not (text.isascii() and text.isprintable()) or len(name) + 2 + len(text) > rules.longest:
        return None
    if _NAME.fullmatch(name) is None:
        raise _Unsure
    return text  # type: ignore[no-any-return]


def _as_written(name: str, value: Any, kind: type) -> str | None:
    """What a header object writes, unfolded; None where only itself knows."""
    bases = kind.__bases__
    if len(vars(kind)) != _ATTRIBUTES or bases not in _KNOWN:
        return None
    state = _state(value)
    if state["_name"] != name:
        return None
    if bases in _ADDRESSES:
        tree = state["_parse_tree"]
        # What it was read as: a name that looks like an encoded word has been decoded in the tree by some versions.
        if "=?" in value or ('"' in value and _is_hidden(tree, state["_groups"])):
            return None
        text = _unfolded(tree)
        return text if _PLAIN_LIST.fullmatch(text) else None
    if bases in _FREE_TEXT:
        if name.lower() in _address_field.NAMES:
            return None  # mailboxes all the same
    elif _has_token is not None and _has_token(state["_parse_tree"], "vtext"):
        return None
    if bases in _DATES and state["_defects"]:
        return None
    return str.__str__(value) or None  # an empty one is written without the space


def _is_hidden(tree: Any, groups: Any) -> bool:
    """Whether a name came out of an encoded word with what would be taken for more than a name without its quotes."""
    if _has_token is not None and _has_token(tree, "vtext"):
        return True
    names = [address.display_name for group in groups for address in group.addresses]
    return any(not _ENDS_A_NAME.isdisjoint(name) for name in (*names, *(group.display_name or "" for group in groups)))


def _unfolded(tree: Any) -> str:
    """`str(tree)` at half its cost: a tree of addresses is deep, and most of it has one branch."""
    while type(tree).__str__ is _JOINED:
        if len(tree) != 1:
            return "".join(map(_unfolded, tree))
        tree = tree[0]
    return str(tree)


def _folded(name: str, value: Any, rules: _Rules) -> str:
    """The field as the policy folds it, if what comes out is this one field."""
    if name.lower() in _address_field.NAMES:
        folded = _address_field.folded(name, value, rules.policy).encode("ascii", "surrogateescape").decode("latin-1")
    else:
        folded = rules.policy.fold_binary(name, value).decode("latin-1")
    match = _FOLDED.fullmatch(folded)
    if match is None or match[1].lower() != name.lower():
        raise _Unsure
    return folded


def _text(text: Any, rules: _Rules) -> bytes:
    """A payload with CRLF line ends. Surrogates are bytes of a parsed or an 8-bit part in disguise."""
    if not isinstance(text, str) or not (text.isascii() or rules.eight_bit):
        raise _Unsure
    content = text.encode("ascii", "surrogateescape")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")
