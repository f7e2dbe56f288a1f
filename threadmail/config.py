"""Which server, and how to speak to it.

Owns `ServerConfig`, everything that decides how a connection is opened and kept, as one frozen value that threads and
processes may share; `Security`; `Timeouts`. Guarantees: a config that exists is consistent, and neither its repr nor
any error about it shows a password.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import ipaddress
import os
import re
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict
from urllib.parse import quote, unquote

from ._known.refused_logins import RefusedLogins
from ._known.riding import Riding
from ._message.address import a_label
from ._runtime.outside import is_of_a_handler
from .errors import InvalidConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LONGEST_TIMEOUT = 2_000_000  # sockets count milliseconds in 31 bits; None waits for ever

#: A user name and password, or one that is made when it is needed, such as a user name and an OAuth token.
Credentials: TypeAlias = tuple[str, str]


class Security(enum.Enum):
    """How a connection is protected."""

    NONE = "none"
    STARTTLS = "starttls"  # required: the connection is closed where the server does not offer it
    TLS = "tls"  # from the first byte (RFC 8314 §3)


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for the peer, in seconds; None waits for ever.

    Attributes:
        connect: for a TCP connection, and for the TLS handshake.
        command: for a command to be written and its whole reply to be read.
        content: for each block of content to be taken by the peer (RFC 5321 §4.5.3.2.5: 180 s).
        final: for the reply to the end of data. RFC 5321 §4.5.3.2.6 asks for 600 s: who hangs up sooner leaves the
            message in doubt, for a busy server delivers it all the same.
        probe: for the answer to the NOOP that tests an idle connection.
        quit: for the farewell.
    """

    connect: float | None = 10.0
    command: float | None = 60.0
    content: float | None = 180.0
    final: float | None = 600.0
    probe: float | None = 5.0
    quit: float | None = 2.0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, (float, int, type(None))):
                raise InvalidConfig(f"timeout {f.name!r} is no number of seconds but a {type(value).__name__}")
            if value is not None and not 0 < value <= _LONGEST_TIMEOUT:
                raise InvalidConfig(
                    f"timeout {f.name!r} must be more than 0 and at most {_LONGEST_TIMEOUT} seconds, not {value!r}"
                )

    @classmethod
    def all(cls, seconds: float | None) -> Timeouts:
        """One time-out for everything, as smtplib's `timeout`; probe and farewell stay short."""
        return (
            cls(seconds, seconds, seconds, seconds)
            if seconds is None
            else cls(seconds, seconds, seconds, seconds, min(5.0, seconds), min(2.0, seconds))
        )


_SCHEMES = {
    "smtp": (Security.NONE, False),
    "smtps": (Security.TLS, False),  # implicit TLS, RFC 8314 §7.3
    "smtp+starttls": (Security.STARTTLS, False),
    "submission": (Security.STARTTLS, False),
    "lmtp": (Security.NONE, True),
    "lmtp+starttls": (Security.STARTTLS, True),
}
_PORTS = {Security.NONE: 25, Security.STARTTLS: 587, Security.TLS: 465}
_LMTP_PORT = 24  # RFC 2033 §5 forbids 25
_PASSWORD = "THREADMAIL_PASSWORD"
_OPTIONS = "cafile, local_hostname, timeout, auth"

#: The extensions that a message makes use of where the server offers them.
EXTENSIONS = frozenset({"8bitmime", "chunking", "pipelining", "size", "smtputf8"})

_KINDS: dict[str, tuple[type, ...]] = {
    "host": (str,),
    "port": (int,),
    "security": (Security,),
    "username": (str, type(None)),
    "password": (str, type(None)),
    "auth": (str, type(None)),
    "lmtp": (bool,),  # "no", as it comes from a file, would be a yes
    "allow_plaintext_login": (bool,),
    "local_hostname": (str, type(None)),
    "cafile": (str, os.PathLike, type(None)),
    "timeouts": (Timeouts,),
    "idle_timeout": (float, int, type(None)),
    "max_age": (float, int, type(None)),
    "max_messages": (int, float, type(None)),
    "window": (int,),
}
_LONGEST_UNIX_PATH = 107 if sys.platform == "linux" else 103  # sockaddr_un, less its last null
# With the scope of a link-local address, which is the name of an interface: `eth0.100`, `br-lan` (RFC 6874 section 2).
_HOST = re.compile(r"[A-Za-z0-9_\-.:\u0080-\U0010ffff]+(?:%[A-Za-z0-9_\-.~]+)?")


class Settings(TypedDict, total=False):
    """The settings of a `ServerConfig`, by name, for type checkers: `**settings: Unpack[Settings]`."""

    host: str
    port: int
    security: Security
    username: str | None
    password: str | None
    credentials: Callable[[], Credentials] | None
    auth: str | None
    lmtp: bool
    local_hostname: str | None
    ssl_context: ssl.SSLContext | None
    cafile: str | None
    timeouts: Timeouts
    idle_timeout: float | None
    max_age: float | None
    max_messages: int | None
    without: Iterable[str]
    window: int
    source_address: tuple[str, int] | None
    allow_plaintext_login: bool


@dataclass(frozen=True)
class ServerConfig:
    """A mail server and the terms on which to use it. Immutable; `dataclasses.replace` makes variants.

    A variant keeps the port, also where that was the usual one: with another `security` or `lmtp`, say which, or 0 for
    the usual one of that: `replace(config, security=Security.TLS, port=0)`.

    Args:
        host: name or address; for LMTP also the path of a Unix socket.
        port: TCP port; 0 takes the usual one (25, 587 with STARTTLS, 465 with TLS, 24 for LMTP).
        security: how the connection is protected.
        username, password: for AUTH. Without TLS they are only sent to this machine, or with `allow_plaintext_login`.
        credentials: called at each login instead, for tokens that expire: gives (username, password or token).
        auth: the SASL mechanism to use, such as "XOAUTH2"; None takes the best of CRAM-MD5, PLAIN and LOGIN offered.
        lmtp: speak LMTP (RFC 2033): one reply for each recipient.
        local_hostname: the name given in EHLO; None takes this machine's, looked up once for each process.
        ssl_context: None verifies the server's certificate against the system's roots, and its name, with TLS 1.2 up.
        cafile: path of the certificates to trust instead of the system's.
        timeouts: how long to wait for the peer.
        idle_timeout: seconds after which an unused connection is closed; None keeps it.
        max_age: seconds after which a connection is replaced, less up to a tenth by chance so that they do not all go
            at once; None never.
        max_messages: messages after which a connection is replaced; None never.
        without: extensions not to be used although the server offers them, for servers that get them wrong: some of
            `EXTENSIONS`.
        window: messages that may be under way at once on a connection, content and all, where the server offers
            PIPELINING and CHUNKING (RFC 3030). Saves round trips, and where a connection is lost, or a server gets BDAT
            wrong, so many messages are in doubt; 1, the default, sends no content before the message ahead is settled.
        source_address: (host, port) to connect from.
        allow_plaintext_login: send credentials without TLS to another machine.
    Raises:
        InvalidConfig: the parts do not fit together.
    """

    host: str
    port: int = 0
    security: Security = Security.NONE
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    credentials: Callable[[], Credentials] | None = field(default=None, repr=False)
    auth: str | None = None
    lmtp: bool = False
    local_hostname: str | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    cafile: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts, repr=False)
    idle_timeout: float | None = 30.0
    max_age: float | None = 300.0
    max_messages: int | None = 100
    without: frozenset[str] = frozenset()
    window: int = 1
    source_address: tuple[str, int] | None = None
    allow_plaintext_login: bool = False
    # Not a setting: what clients with this very config have found out. A variant made by `replace` begins anew.
    _refused_logins: RefusedLogins = field(default_factory=RefusedLogins, init=False, repr=False, compare=False)
    _riding: Riding = field(default_factory=Riding, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_kinds()
        unix = self.lmtp and self.host.startswith("/")
        if not unix and not _HOST.fullmatch(self.host):
            raise InvalidConfig(f"{self.host!r} is no host name" if self.host else "the host is missing")
        if unix and len(os.fsencode(self.host)) > _LONGEST_UNIX_PATH:
            raise InvalidConfig(f"the path of a Unix socket has {_LONGEST_UNIX_PATH} bytes at most: {self.host!a}")
        if not unix and self.host.count(":") == 1:
            raise InvalidConfig(f"{self.host!a} is a host and a port: give the port as `port`")
        if not unix and not a_label(self.host).isascii():
            raise InvalidConfig(f"{self.host!a} would be looked up as another name: write it in ASCII (xn--...)")
        if not unix and any(len(label) > 63 for label in a_label(self.host).split(".")):
            raise InvalidConfig(
                f"{self.host!a} is no host name: a label has 63 octets at most (RFC 1035 section 2.3.4)"
            )
        if not 0 <= self.port <= 65535:
            raise InvalidConfig(f"port {self.port} is not between 0 and 65535")
        if self.port == 0 and not unix:
            object.__setattr__(self, "port", _LMTP_PORT if self.lmtp else _PORTS[self.security])
        if (self.username is None) != (self.password is None):
            missing = "user name" if self.username is None else f"password (in the URL or in {_PASSWORD})"
            raise InvalidConfig(f"the {missing} is missing")
        if self.credentials is not None and self.username is not None:
            raise InvalidConfig("give a user name and password, or a callable for both, not all of them")
        if self.needs_login and self.security is Security.NONE and not (self.is_local or self.allow_plaintext_login):
            raise InvalidConfig(
                f"credentials for {self.host} would cross the network in the clear: use smtp+starttls:// or smtps:// "
                "(where the way there is safe, Python code may consent: ServerConfig(allow_plaintext_login=True))"
            )
        if self.lmtp and self.security is Security.TLS:
            raise InvalidConfig("LMTP knows no implicit TLS: use STARTTLS")
        if self.local_hostname is not None and not re.fullmatch(r"[!-~]+", self.local_hostname):
            raise InvalidConfig(f"local_hostname {self.local_hostname!r} is no host name")
        for name in ("idle_timeout", "max_age", "max_messages"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidConfig(f"{name} must be more than 0, not {value!r}")
        for name in ("cafile", "auth"):
            if getattr(self, name) == "":  # an empty variable in a template is not to mean the default
                raise InvalidConfig(f"{name} is empty: leave it out where the default is meant")
        if self.window < 1:
            raise InvalidConfig(f"window must be at least 1, not {self.window!r}")

    def _check_kinds(self) -> None:
        """What would only be found out while a server is dialled. No value is shown: it may be a password."""
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise InvalidConfig(f"{name} is no {kinds[0].__name__} but a {type(value).__name__}")
        if self.cafile is not None:
            _require_path("cafile", self.cafile)
        names: object = self.without
        if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):  # of a str each letter would be a name
            raise InvalidConfig(f"without is no set of names but a {type(names).__name__}")
        given_names = tuple(names)
        if not all(isinstance(name, str) for name in given_names):
            raise InvalidConfig("without holds what is no str")
        lowered = frozenset(name.lower() for name in given_names)
        if not lowered <= EXTENSIONS:
            unknown = ", ".join(ascii(name) for name in sorted(lowered - EXTENSIONS))
            raise InvalidConfig(f"without: {unknown} is not used anyway; what is: {', '.join(sorted(EXTENSIONS))}")
        object.__setattr__(self, "without", lowered)
        if self.credentials is not None and not callable(self.credentials):
            raise InvalidConfig(f"credentials is no callable but a {type(self.credentials).__name__}")
        if self.ssl_context is not None and not hasattr(self.ssl_context, "wrap_socket"):
            raise InvalidConfig(f"ssl_context is no ssl.SSLContext but a {type(self.ssl_context).__name__}")
        given = self.source_address
        if given is not None and not (
            isinstance(given, tuple)
            and len(given) == 2
            and isinstance(given[0], str)
            and (given[0] == "" or _is_host(given[0]))
            and isinstance(given[1], int)
            and 0 <= given[1] <= 65535
        ):
            raise InvalidConfig(f"source_address is no (host, port): {given!a}")

    @property
    def needs_login(self) -> bool:
        return self.username is not None or self.credentials is not None

    @property
    def is_local(self) -> bool:
        """Whether the server is this machine."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """ "host:port", or the path of a Unix socket."""
        if self.host.startswith("/"):
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The server as a URL, with the user name and without the password."""
        secured = {Security.NONE: "smtp", Security.STARTTLS: "smtp+starttls", Security.TLS: "smtps"}
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        scheme = secured[self.security]
        return f"{scheme.replace('smtp', 'lmtp') if self.lmtp else scheme}://{user}{quote(self.address, safe='/:[]')}"

    def make_ssl_context(self) -> ssl.SSLContext:
        """The context to verify the server with.

        Raises:
            InvalidConfig: `cafile` cannot be read.
        """
        if self.ssl_context is not None:
            return self.ssl_context
        try:
            changed = os.stat(self.cafile).st_mtime_ns if self.cafile else 0
            return _verifying_context(self.cafile, changed)
        except OSError as exc:
            if is_of_a_handler(exc):
                raise
            raise InvalidConfig(f"cafile {self.cafile!r} cannot be read: {exc.strerror or exc}") from exc

    @classmethod
    def of(cls, server: str | ServerConfig) -> ServerConfig:
        """The config itself, or that of a URL.

        Raises:
            InvalidConfig: it is neither, or the URL is wrong.
        """
        given: object = server
        if isinstance(given, str):
            return cls.from_url(given)
        if not isinstance(given, ServerConfig):
            raise InvalidConfig(f"the server is no ServerConfig and no URL but a {type(given).__name__}")
        return given

    @classmethod
    def from_url(cls, url: str, **settings: Unpack[Settings]) -> ServerConfig:
        """Read a URL: `smtp://`, `smtps://` (implicit TLS), `smtp+starttls://` or `submission://`, `lmtp://` or
        `lmtp+starttls://`.

        Between scheme and host may stand `user:password@`, behind it `:port`; special characters are percent-encoded
        (`@` is `%40`), and `+` is itself. Options follow a question mark, each once: cafile, local_hostname, timeout
        (seconds, for everything but the final reply), auth. `lmtp:///path` is a Unix socket. The password of a URL that
        names a user only is taken from the environment variable THREADMAIL_PASSWORD, where process listings and logs do
        not show it.

        Args:
            url: the URL.
            settings: other fields of the config, such as `max_messages=500`.
        Raises:
            InvalidConfig: naming what is wrong, never quoting user or password.
        """
        given_url: object = url
        if not isinstance(given_url, str):
            raise InvalidConfig(f"the URL is no str but a {type(given_url).__name__}")
        scheme, separator, rest = url.strip().partition("://")
        if not separator or scheme.lower() not in _SCHEMES:
            # Quote only what can be no password: the URL may have been pasted without its scheme.
            known = ", ".join(f"{name}://" for name in _SCHEMES)
            named = separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.\-]{0,19}", scheme)
            shown = f"{scheme}:// is no scheme of a mail server" if named else "the URL has no scheme"
            raise InvalidConfig(f"{shown}; known are {known}")
        security, lmtp = _SCHEMES[scheme.lower()]
        rest, _, query = rest.partition("?")
        userinfo, at, location = rest.rpartition("@")
        if "#" in rest or "/" in userinfo or "@" in query:
            raise InvalidConfig(
                "the URL holds a '#', '/', '?' or '@' where none may stand: write %23, %2F and %3F in a user or "
                "password, and %40 in an option"
            )
        _require_encoded(rest)
        values: dict[str, Any] = {"security": security, "lmtp": lmtp}
        if at:
            user, colon, password = userinfo.partition(":")
            values.update(username=_decoded(user), password=_decoded(password) if colon else os.environ.get(_PASSWORD))
        if lmtp and location.startswith(("/", "%2F", "%2f")):
            values.update(host=_decoded(location))
        else:
            host, given = _host_and_port(location.removesuffix("/"))
            values.update(host=_decoded(host), port=given or 0)
        # Last: as long as the host has not been read, what looks like an option may be half a password.
        return cls(**{**values, **_options(query), **settings})

    @classmethod
    def from_env(cls, variable: str = "THREADMAIL_URL") -> ServerConfig:
        """Read the URL in an environment variable.

        Raises:
            InvalidConfig: the variable is not set, or wrong.
        """
        url = os.environ.get(variable)
        if not url:
            raise InvalidConfig(
                f"the environment variable {variable} is not set: expected a URL such as smtp://localhost"
            )
        return cls.from_url(url)


@functools.lru_cache(maxsize=8)  # loading the system's roots takes 10 ms and more, and contexts can be shared
def _verifying_context(cafile: str | None, changed: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cafile)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_host(name: str) -> bool:
    """Whether sockets take it for a name or an address, and as no other name."""
    return _HOST.fullmatch(name) is not None and a_label(name).isascii()


def _require_path(name: str, path: str | os.PathLike[str]) -> None:
    try:
        holds = "it holds a NUL" if b"\0" in os.fsencode(path) else ""
    except UnicodeEncodeError:
        holds = "it holds what no name of a file can"
    if holds:
        raise InvalidConfig(f"{name} is no path: {holds}")


def is_loopback(host: str) -> bool:
    """Whether `host` (a name, an address, or the path of a Unix socket) is surely this machine."""
    if host.startswith("/") or host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _require_encoded(part: str) -> None:
    if not re.fullmatch(r"(?:[^%]|%[0-9A-Fa-f]{2})*", part):
        raise InvalidConfig("the URL holds a lone '%': write %25")


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        # Not "from": that error quotes what it could not decode.
        raise InvalidConfig("the URL holds percent-encoded bytes that are not UTF-8") from None


def _host_and_port(location: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:/\[\]]*))(?::([0-9]{0,9}))?", location)
    if match is None:
        # Not quoted: where the host was forgotten, it is a password.
        is_port = location.count(":") == 1 and not location.partition(":")[2].isdecimal()
        what = "the port is no number" if is_port else "host and port cannot be read"
        raise InvalidConfig(f"{what}: expected host, host:port or [IPv6 address]:port")
    port = match[3]
    if port and not 1 <= int(port) <= 65535:
        raise InvalidConfig(f"port {port} is not between 1 and 65535")
    return match[1] or match[2], int(port) if port else None


def _options(query: str) -> dict[str, Any]:
    # Not parse_qsl(), which reads what forms write: a `+` in a path would be a space, and nothing is ever wrong.
    _require_encoded(query)
    values: dict[str, Any] = {}
    seen: set[str] = set()
    for option in filter(None, query.split("&")):
        name, _, given = option.partition("=")
        name, value = _decoded(name), _decoded(given)
        if name in seen:
            raise InvalidConfig(f"option {name[:30]!r} is given twice")
        seen.add(name)
        if name in ("cafile", "local_hostname", "auth"):
            values[name] = value
        elif name == "timeout":
            try:
                seconds = float(value)
            except ValueError:
                raise InvalidConfig("option 'timeout' is not a number of seconds") from None
            values["timeouts"] = dataclasses.replace(Timeouts.all(seconds), final=Timeouts.final)
        else:
            raise InvalidConfig(f"unknown option {name[:30]!r}; known are {_OPTIONS}")
    return values
