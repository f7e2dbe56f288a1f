"""Configs: URLs read strictly, defaults that fit, contradictions refused, passwords never shown."""

from __future__ import annotations

import dataclasses
import os
import pickle
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmail import Client, ClientPool, InvalidConfig, Security, ServerConfig, ThreadedSender, Timeouts
from threadmail.config import Settings, is_loopback
from threadmail.testing import TestCA

SECRET = "hunter2-correct-horse"


@pytest.fixture(autouse=True)
def no_password_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THREADMAIL_PASSWORD", raising=False)
    monkeypatch.delenv("THREADMAIL_URL", raising=False)


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "security", "port", "lmtp"),
    [
        ("smtp://mx.example.org", Security.NONE, 25, False),
        ("smtps://mx.example.org", Security.TLS, 465, False),
        ("smtp+starttls://mx.example.org", Security.STARTTLS, 587, False),
        ("submission://mx.example.org", Security.STARTTLS, 587, False),
        ("lmtp://mx.example.org", Security.NONE, 24, True),
        ("SMTPS://mx.example.org/", Security.TLS, 465, False),
        ("  smtp://mx.example.org\n", Security.NONE, 25, False),
        ("smtp://mx.example.org:2525", Security.NONE, 2525, False),
        ("smtps://mx.example.org:1/", Security.TLS, 1, False),
    ],
)
def test_each_scheme_has_its_security_and_its_usual_port(url: str, security: Security, port: int, lmtp: bool) -> None:
    """`smtps` is TLS from the first byte, whatever other packages make of it."""
    config = ServerConfig.from_url(url)
    assert (config.host, config.security, config.port, config.lmtp) == ("mx.example.org", security, port, lmtp)


@pytest.mark.parametrize(
    ("url", "host", "port", "address"),
    [
        ("smtp://[::1]", "::1", 25, "[::1]:25"),
        ("smtp://[::1]:26", "::1", 26, "[::1]:26"),
        ("smtp://[fe80::1%25eth0]", "fe80::1%eth0", 25, "[fe80::1%eth0]:25"),
        ("smtp://[fe80::1%25eth0.100]", "fe80::1%eth0.100", 25, "[fe80::1%eth0.100]:25"),
        ("smtp://[fe80::1%25br-lan]", "fe80::1%br-lan", 25, "[fe80::1%br-lan]:25"),
        ("smtp://127.0.0.1", "127.0.0.1", 25, "127.0.0.1:25"),
        ("smtp://b%C3%BCcher.example", "bücher.example", 25, "bücher.example:25"),
        ("lmtp:///run/dovecot/lmtp", "/run/dovecot/lmtp", 0, "/run/dovecot/lmtp"),
        ("lmtp://%2Frun%2Flmtp", "/run/lmtp", 0, "/run/lmtp"),
    ],
)
def test_hosts_in_every_form(url: str, host: str, port: int, address: str) -> None:
    """Names, addresses of both families, zones, names beyond ASCII and Unix sockets."""
    config = ServerConfig.from_url(url)
    assert (config.host, config.port, config.address) == (host, port, address)
    assert ServerConfig.from_url(config.url) == config


@given(
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(["smtp://{}:{}@localhost", "smtps://{}:{}@mx.example.org:26", "submission://{}:{}@[::1]/"]),
)
def test_any_user_and_password_can_be_percent_encoded(user: str, password: str, url: str) -> None:
    """What was quoted comes back to the letter, and stays out of repr and `url`."""
    config = ServerConfig.from_url(url.format(quote(user, safe=""), quote(password, safe="")))
    assert (config.username, config.password) == (user, password)
    again = ServerConfig.from_url(config.url, password=password)
    assert again == config


def test_neither_repr_nor_url_shows_the_password() -> None:
    """What is printed, logged or compared in a failed test holds no secret."""
    config = ServerConfig.from_url(f"smtps://ann:{SECRET}@mx.example.org")
    assert config.password == SECRET
    for text in (repr(config), str(config), config.url, config.address, repr(dataclasses.replace(config, port=1))):
        assert SECRET not in text
        assert "mx.example.org" in text


def test_the_password_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a URL that names a user only; a password in the URL stands before it, and without a user it is not asked."""
    monkeypatch.setenv("THREADMAIL_PASSWORD", SECRET)
    assert ServerConfig.from_url("smtps://ann@mx.example.org").password == SECRET
    assert ServerConfig.from_url("smtps://ann:@mx.example.org").password == ""
    assert ServerConfig.from_url("smtps://ann:x@mx.example.org").password == "x"
    assert ServerConfig.from_url("smtps://mx.example.org").password is None


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """THREADMAIL_URL by default, any other by name; missing or empty is said so."""
    monkeypatch.setenv("THREADMAIL_URL", "smtps://mx.example.org")
    monkeypatch.setenv("OTHER", "lmtp://mx.example.org")
    assert ServerConfig.from_env().security is Security.TLS
    assert ServerConfig.from_env("OTHER").lmtp
    monkeypatch.setenv("OTHER", "")
    for name in ("OTHER", "NOT_SET"):
        with pytest.raises(InvalidConfig, match=f"{name} is not set"):
            ServerConfig.from_env(name)


def test_options_of_a_url() -> None:
    """Each has its effect; the final reply keeps its long time-out, for a short one makes duplicates."""
    config = ServerConfig.from_url(
        "smtps://mx.example.org?cafile=/etc/my%20ca.pem&local_hostname=me.example.org&timeout=7.5&auth=XOAUTH2"
    )
    assert (config.cafile, config.local_hostname, config.auth) == ("/etc/my ca.pem", "me.example.org", "XOAUTH2")
    assert config.timeouts == Timeouts(7.5, 7.5, 7.5, 600.0, 5.0, 2.0)


def test_a_plus_in_an_option_is_a_plus() -> None:
    """As in user and password; it is forms that write a space so."""
    config = ServerConfig.from_url("smtps://a+b:c+d@mx.example.org?&cafile=/etc/a+b%2Bc%26=.pem&&auth=PLAIN&")
    assert (config.cafile, config.auth) == ("/etc/a+b+c&=.pem", "PLAIN")
    assert (config.username, config.password) == ("a+b", "c+d")


def test_a_variant_keeps_the_port_unless_it_is_told() -> None:
    """Nobody can tell later whether it was given; 0 takes the usual one."""
    config = ServerConfig("mx.example.org")
    assert dataclasses.replace(config, security=Security.TLS).port == 25
    assert dataclasses.replace(config, security=Security.TLS, port=0).port == 465
    assert dataclasses.replace(config, lmtp=True, port=0).port == 24


def test_settings_stand_before_the_url() -> None:
    """Keyword arguments are fields of the config and win."""
    config = ServerConfig.from_url("smtp://mx.example.org:26", port=27, max_messages=5, without={"PIPELINING"})
    assert (config.port, config.max_messages, config.without) == (27, 5, frozenset({"pipelining"}))


def test_of_reads_a_url_and_leaves_a_config_alone() -> None:
    """Whatever names a server elsewhere in the package goes through here."""
    config = ServerConfig("mx.example.org")
    assert ServerConfig.of(config) is config
    assert ServerConfig.of("smtp://mx.example.org") == config


@pytest.mark.parametrize("server", [None, 42, b"smtp://mx.example.org", ServerConfig])
def test_what_names_no_server_is_refused(server: Any) -> None:
    for use in (ServerConfig.of, Client, ClientPool, ThreadedSender):
        with pytest.raises(InvalidConfig, match=f"no URL but a {type(server).__name__}$"):
            use(server)


@pytest.mark.parametrize("name", ["cafile", "auth"])
def test_an_empty_setting_is_not_the_default(name: str) -> None:
    """As an empty variable gives it: all the system's roots would be trusted, where somebody named one of their own."""
    with pytest.raises(InvalidConfig, match=f"^{name} is empty"):
        ServerConfig("mx.example.org", **{name: ""})  # type: ignore[arg-type]


def test_a_cafile_may_be_a_path(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    TestCA().write_ca(path)
    assert len(ServerConfig("mx.example.org", cafile=path).make_ssl_context().get_ca_certs()) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("", "has no scheme"),
        ("mx.example.org", "has no scheme"),
        ("http://mx.example.org", "http:// is no scheme of a mail server"),
        ("smtp://", "host is missing"),
        ("smtp://:25", "host is missing"),
        ("smtp://mx.example.org:0", "port"),
        ("smtp://mx.example.org:65536", "port"),
        ("smtp://mx.example.org:x", "the port is no number"),
        ("smtp://mx.example.org:" + "9" * 5000, "cannot be read"),
        ("smtp://mx.example.org/path", "cannot be read"),
        ("smtp://a:b:c", "cannot be read"),
        ("smtp://::1", "cannot be read"),
        ("smtp://[::1", "cannot be read"),
        ("smtp://mx%0aexample.org", "is no host name"),
        ("smtp://mx example.org", "is no host name"),
        ("smtp://mx.example.org?colour=red", "unknown option 'colour'"),
        ("smtps://mx.example.org?cafile=/etc/100%.pem", "lone '%'"),
        ("smtps://mx.example.org?cafile=/etc/%ff.pem", "UTF-8"),
        ("smtps://mx.example.org?%ff=1", "UTF-8"),
        ("smtps://mx.example.org?auth=PLAIN&auth=LOGIN", "'auth' is given twice"),
        ("smtps://mx.example.org?auth=PLAIN&timeout=5&%61uth=PLAIN", "'auth' is given twice"),
        ("smtp://mx.example.org?timeout=soon", "timeout"),
        ("smtp://mx.example.org?timeout=0", "timeout"),
        ("smtp://mx.example.org?timeout=nan", "timeout"),
        ("smtp://mx.example.org?timeout=1e300", "timeout"),
        ("smtp://mx.example.org?local_hostname=a%0d%0ab", "local_hostname"),
        ("smtps://mx.example.org?cafile=", "cafile is empty"),
        ("smtps://mx.example.org?timeout=5&cafile", "cafile is empty"),
        ("smtps://mx.example.org?auth=", "auth is empty"),
        ("smtp://mx.example.org?local_hostname=", "local_hostname"),
        ("smtp://mx.example.org?timeout=", "timeout"),
        ("smtp://mx.example.org#part", "%23"),
        ("smtps://ann@mx.example.org", "password .* is missing"),
        ("smtps://ann:%zz@mx.example.org", "lone '%'"),
        ("smtps://ann:100%@mx.example.org", "lone '%'"),
        ("smtps://ann:%ff@mx.example.org", "UTF-8"),
    ],
)
def test_a_wrong_url_is_named(url: str, match: str) -> None:
    """InvalidConfig, one printable line that says what is wrong."""
    with pytest.raises(InvalidConfig, match=match) as info:
        ServerConfig.from_url(url)
    assert str(info.value).isprintable()
    assert len(str(info.value)) < 300


@pytest.mark.parametrize(
    "url",
    [
        "smtp://ann:{}@mx.example.org:x",
        "smtp://ann:{}@mx.example.org:99999",
        "smtp://ann:{}@mx example.org",
        "smtp://ann:{}@",
        "smtp://ann:{}",
        "smtp://{}:{}",
        "smtp://ann:{}@mx.example.org",  # would cross the network in the clear
        "smtp://ann:{}@mx.example.org?colour=red",
        "smtps://ann:{}@mx.example.org?timeout={}",
        "smtps://ann:{}%@mx.example.org",
        "smtps://ann:{}%ff@mx.example.org",
        "smtps://ann:#{}@mx.example.org",
        "smtps://ann:{}#@mx.example.org",
        "smtps://ann:/{}@mx.example.org",
        "smtps://ann:{}/@mx.example.org",
        "smtps://ann:?{}@mx.example.org",
        "smtps://ann:{}?@mx.example.org",
        "smtps://ann:?{}=1@mx.example.org",
        "smtps://ann:x@y?{}@mx.example.org",
        "smtps://ann:?&{}@mx.example.org",
        "smtps://ann:://{}@mx.example.org",
        "ann:{}@mx.example.org",
        "ann:{}://@mx.example.org",
        "ann:://{}@mx.example.org",
        "http://ann:{}@mx.example.org",
    ],
)
def test_no_error_about_a_url_quotes_the_password(url: str) -> None:
    """However wrong the URL, whatever the password does to its syntax."""
    with pytest.raises(InvalidConfig) as info:
        ServerConfig.from_url(url.replace("{}", SECRET))
    error: BaseException | None = info.value
    while error is not None:
        for part in SECRET.split("-"):
            assert part not in str(error)
            assert part not in repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@given(
    st.text() | st.builds("{}://{}".format, st.sampled_from(["smtp", "smtps", "lmtp", "smtp+starttls"]), st.text()),
)
def test_arbitrary_text_as_a_url_is_a_config_or_our_own_error(url: str) -> None:
    """Nothing but InvalidConfig, one printable line."""
    said = ""
    try:
        ServerConfig.from_url(url)
    except InvalidConfig as error:
        said = str(error)
    assert said.isprintable()


@given(
    st.text(st.sampled_from("/?#&=%:@[] ab1"), max_size=6),
    st.text(st.sampled_from("/?#&=%:@[] ab1"), max_size=6),
    st.sampled_from(["smtps://ann:{}@mx.example.org", "smtps://ann:{}@mx.example.org:x", "ann:{}@mx.example.org"]),
)
def test_no_password_is_quoted_whatever_it_does_to_the_syntax(before: str, behind: str, url: str) -> None:
    """A recognisable secret between all the characters that mean something in a URL never shows up in an error."""
    said = ""
    try:
        ServerConfig.from_url(url.format(before + SECRET + behind))
    except InvalidConfig as error:
        said = str(error)
    assert not any(part in said for part in SECRET.split("-"))


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"host": ""}, "host is missing"),
        ({"host": "a b"}, "is no host name"),
        ({"host": "a\r\nb"}, "is no host name"),
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"username": "ann"}, "password .* is missing"),
        ({"password": SECRET}, "user name is missing"),
        ({"username": "ann", "password": SECRET, "credentials": lambda: ("ann", SECRET)}, "not all of them"),
        ({"username": "ann", "password": SECRET, "security": Security.NONE}, "in the clear"),
        ({"credentials": lambda: ("ann", SECRET), "security": Security.NONE}, "in the clear"),
        ({"lmtp": True}, "LMTP knows no implicit TLS"),
        ({"local_hostname": "a b"}, "local_hostname"),
        ({"local_hostname": "a\r\nMAIL"}, "local_hostname"),
        ({"idle_timeout": 0}, "idle_timeout"),
        ({"max_age": -1.0}, "max_age"),
        ({"max_messages": 0}, "max_messages"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values: dict[str, Any], match: str) -> None:
    """A config that exists is consistent; the error quotes no password."""
    with pytest.raises(InvalidConfig, match=match) as info:
        ServerConfig(**{"host": "mx.example.org", "security": Security.TLS, **values})
    assert SECRET not in str(info.value)
    assert str(info.value).isprintable()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_may_see_a_password_in_the_clear(host: str) -> None:
    """Loopback is no network; the question is answered without a resolver."""
    assert is_loopback(host)
    config = ServerConfig(host, username="ann", password=SECRET)
    assert config.is_local


@pytest.mark.parametrize(
    "host",
    [
        "mx.example.org",
        "localhost.example.org",
        "10.0.0.1",
        "127.0.0.1.example.org",
        "0.0.0.0",
        "::",
        "localhost1",
        "127.1",
    ],
)
def test_another_machine_gets_no_password_in_the_clear_unasked(host: str) -> None:
    """Not without consent, which may be given."""
    assert not is_loopback(host)
    with pytest.raises(InvalidConfig, match="in the clear"):
        ServerConfig(host, username="ann", password=SECRET)
    assert ServerConfig(host, username="ann", password=SECRET, allow_plaintext_login=True).needs_login
    assert ServerConfig(host, username="ann", password=SECRET, security=Security.STARTTLS).needs_login


# ---------------------------------------------------------------- a value


def test_a_config_is_a_value() -> None:
    """Frozen, hashable, picklable, and `replace` makes checked variants."""
    config = ServerConfig.from_url(f"smtps://ann:{SECRET}@mx.example.org")
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(ServerConfig.from_url(f"smtps://ann:{SECRET}@mx.example.org")) == hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.host = "x"  # type: ignore[misc]
    with pytest.raises(InvalidConfig):
        dataclasses.replace(config, password=None)


def test_timeouts_are_finite_by_default_and_the_final_reply_gets_600_seconds() -> None:
    """RFC 5321 asks for ten minutes there; nothing waits for ever unasked."""
    values = dataclasses.astuple(Timeouts())
    assert values == (10.0, 60.0, 180.0, 600.0, 5.0, 2.0)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Timeouts)])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_timeout_is_more_than_nothing(name: str, value: float) -> None:
    """None waits for ever; zero, less, or no number is refused by name."""
    assert getattr(Timeouts(**{name: None}), name) is None
    with pytest.raises(InvalidConfig, match=name):
        Timeouts(**{name: value})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Timeouts)])
def test_a_timeout_that_no_socket_takes_is_refused(name: str) -> None:
    """Seconds beyond what the system can count would be an OverflowError when the connection is used."""
    with pytest.raises(InvalidConfig, match=name):
        Timeouts(**{name: 1e12})


def test_one_timeout_for_everything_leaves_probe_and_farewell_short() -> None:
    """smtplib's `timeout`: it must not make a QUIT take minutes."""
    assert dataclasses.astuple(Timeouts.all(90.0)) == (90.0, 90.0, 90.0, 90.0, 5.0, 2.0)
    assert dataclasses.astuple(Timeouts.all(1.0)) == (1.0,) * 6
    assert dataclasses.astuple(Timeouts.all(None)) == (None, None, None, None, 5.0, 2.0)


# ---------------------------------------------------------------- TLS


def test_the_context_verifies_and_is_shared() -> None:
    """Certificate and name are checked, TLS 1.2 at least; loading the roots is done once."""
    config = ServerConfig("mx.example.org", security=Security.TLS)
    context = config.make_ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert config.make_ssl_context() is context


def test_a_context_of_ones_own_is_used_as_it_is() -> None:
    """Whoever makes a context knows why."""
    context = ssl.create_default_context()
    assert ServerConfig("mx.example.org", ssl_context=context).make_ssl_context() is context


def test_a_cafile_is_trusted_alone_and_read_again_when_it_changes(tmp_path: Path) -> None:
    """A renewed file of certificates needs no restart; an unreadable one is our own error."""
    path = tmp_path / "ca.pem"
    config = ServerConfig("mx.example.org", security=Security.TLS, cafile=str(path))
    with pytest.raises(InvalidConfig, match="cannot be read"):
        config.make_ssl_context()
    TestCA().write_ca(path)
    first = config.make_ssl_context()
    assert len(first.get_ca_certs()) == 1
    assert config.make_ssl_context() is first
    TestCA().write_ca(path)
    os.utime(path, ns=(1, 1))
    assert config.make_ssl_context().get_ca_certs() != first.get_ca_certs()
    path.write_text("no certificate\n")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        config.make_ssl_context()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("without", "pipelining"),  # each letter would be a name
        ("without", 3),
        ("without", [b"pipelining"]),
        ("window", "16"),
        ("window", 1.5),
        ("idle_timeout", "3"),
        ("max_age", "1"),
        ("max_messages", "5"),
        ("lmtp", "false"),  # of an environment: each of these was a yes
        ("lmtp", 0),
        ("allow_plaintext_login", "no"),
        ("allow_plaintext_login", "0"),
        ("allow_plaintext_login", None),
        ("port", "25"),
        ("port", True),
        ("window", True),
        ("cafile", 42),
    ],
)
def test_a_setting_of_another_kind_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidConfig, match=name):
        ServerConfig("mx.example.org", **{name: value})  # type: ignore[arg-type]


def test_a_timeout_that_is_no_number_is_named() -> None:
    with pytest.raises(InvalidConfig, match="'final' is no number of seconds but a str"):
        Timeouts(final="600")  # type: ignore[arg-type]


def test_any_names_may_be_given_as_those_not_to_be_used() -> None:
    for names in ({"PIPELINING", "size"}, ["PIPELINING", "size"], (n for n in ("PIPELINING", "size"))):
        assert ServerConfig("h", without=names).without == {"pipelining", "size"}  # type: ignore[arg-type]


def test_lmtp_with_starttls_reads_back_as_that() -> None:
    """It read back as LMTP in the clear."""
    config = ServerConfig("mx.example.org", lmtp=True, security=Security.STARTTLS)
    assert config.url == "lmtp+starttls://mx.example.org:24"
    assert ServerConfig.from_url(config.url) == config


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 2.5, "4", None, True, 0, -1])
def test_the_size_of_a_pool_is_a_number_of_connections(size: Any) -> None:
    """Of a nan there were never enough, and a pool without end; the others came up as a bare TypeError, or later."""
    with pytest.raises(InvalidConfig, match="max_size"):
        ClientPool("smtp://mx.example.org", max_size=size)


@pytest.mark.parametrize("url", [None, 5, b"smtp://mx.example.org"])
def test_what_is_no_text_is_no_url(url: Any) -> None:
    with pytest.raises(InvalidConfig, match="URL"):
        ServerConfig.from_url(url)


@pytest.mark.parametrize("path", ["a\0b", Path("a\0b")])
def test_a_path_holds_no_nul(path: Any) -> None:
    """It came up as a ValueError when the server was dialled."""
    with pytest.raises(InvalidConfig, match="cafile"):
        ServerConfig("mx.example.org", cafile=path)


# ---------------------------------------------------------------- for type checkers


def test_the_settings_that_type_checkers_know_are_those_there_are() -> None:
    """`without` takes any names, and holds a frozen set of them."""
    fields = {field.name: field.type for field in dataclasses.fields(ServerConfig) if field.init}
    known = {name: getattr(kind, "__forward_arg__", kind) for name, kind in Settings.__annotations__.items()}
    assert known == {**fields, "without": "Iterable[str]"}
