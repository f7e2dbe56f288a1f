"""What holds against our own test servers holds against Postfix, which nobody here wrote.

Skipped, with the reason, where no Postfix can be had. The first tests use the standard library's client and show
that the set-up tells the truth; the others are about threadmail.
"""

from __future__ import annotations

import dataclasses
import re
import smtplib
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest

import threadmail
from tests.message.test_corpus import outbox, send
from tests.support import corpus
from tests.support import postfix as support
from tests.support.postfix import Postfix
from tests.support.servers import Unavailable


@contextmanager
def started(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Postfix]:
    with ExitStack() as stack:
        try:
            postfix = stack.enter_context(Postfix(folder, settings=settings))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield postfix


@pytest.fixture(scope="session")
def session_postfix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postfix]:
    with started(tmp_path_factory.mktemp("postfix")) as postfix:
        yield postfix


@pytest.fixture
def postfix(session_postfix: Postfix) -> Postfix:
    session_postfix.clear()
    return session_postfix


def numbered(number: int) -> EmailMessage:
    """A message that says in header, envelope and body which one it is, so that a mix-up shows."""
    message = EmailMessage()
    message["From"] = f"sender{number}@example.com"
    message["To"] = f"rcpt{number}@example.org"
    message["Subject"] = f"Number {number}"
    message.set_content(f"This is number {number}.\n.\n" * 20)
    return message


def numbers_of(postfix: Postfix, count: int) -> list[int]:
    """The numbers of the `count` messages that came, after a look that each is all of a piece."""
    numbers = []
    for message in postfix.wait_for(count):
        found = set(re.findall(rb"(?:Number|This is number) (\d+)", message.content))
        assert len(found) == 1, message
        [number] = found
        assert message.sender == f"sender{int(number)}@example.com"
        assert message.recipients == (f"rcpt{int(number)}@example.org",)
        assert message.content.count(b"This is number") == 20
        numbers.append(int(number))
    return sorted(numbers)


# The set-up.


def test_content_comes_through_unchanged(postfix: Postfix) -> None:
    content = (
        b"subject:no blank\r\nBcc: stays\r\nX-Long: " + b"x" * 3000 + b"\r\n\r\n.\r\n..\r\n\xff\x80\r\n" + b"y" * 9000
    )
    with smtplib.SMTP(postfix.host, postfix.port, local_hostname="client.example.test", timeout=10.0) as client:
        client.sendmail("a@example.com", ["b@example.org", "c@example.net"], content)
    [message] = postfix.wait_for(1)
    assert message.content == content + b"\r\n"
    assert (message.sender, sorted(message.recipients)) == ("a@example.com", ["b@example.org", "c@example.net"])
    assert message.received.startswith(b"Received: from client.example.test ")


def test_certificate_verifies(postfix: Postfix) -> None:
    with smtplib.SMTP(postfix.host, postfix.port, local_hostname="client.example.test", timeout=10.0) as client:
        client.starttls(context=postfix.tls_context())
        client.sendmail("a@example.com", ["b@example.org"], b"Subject: over TLS\r\n\r\n")
    [message] = postfix.wait_for(1)
    assert b"with ESMTPS" in message.received


def test_settings_take_effect(tmp_path: Path) -> None:
    with started(tmp_path / "limited", {"smtpd_client_connection_count_limit": "1"}) as postfix:
        with smtplib.SMTP(postfix.host, postfix.port, local_hostname="client.example.test", timeout=10.0):
            with pytest.raises(smtplib.SMTPConnectError) as refused:
                smtplib.SMTP(postfix.host, postfix.port, timeout=10.0)
        assert refused.value.smtp_code == 421


def test_settings_that_postfix_refuses_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such-user"):
        with started(tmp_path / "refused", {"mail_owner": "no-such-user"}):
            pass


def test_nothing_is_left_running(tmp_path: Path) -> None:
    threads = threading.enumerate()
    with started(tmp_path / "short") as postfix:
        with smtplib.SMTP(postfix.host, postfix.port, local_hostname="client.example.test", timeout=10.0) as client:
            client.sendmail("a@example.com", ["b@example.org"], b"Subject: x\r\n\r\n")
        postfix.wait_for(1)
        assert len(postfix.processes()) >= 5  # master, smtpd, cleanup, qmgr, smtp
    assert postfix.processes() == []
    assert threading.enumerate() == threads


def test_says_why_there_is_no_postfix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_INSTALLED", ())
    monkeypatch.setenv("THREADMAIL_POSTFIX_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no apt-get"):
        support.find_postfix()


# threadmail.


def as_postfix_passes_it_on(sample: corpus.Sample) -> corpus.Sample:
    """What Postfix changes all the same, whatever its settings: obsolete blanks, needless quotes, doubles."""
    if sample.name == "header-blank-before-colon.eml":
        return dataclasses.replace(sample, data=re.sub(rb"(?m)^([\w-]+)[ \t]+:", rb"\1:", sample.data))
    if sample.name == "body-iso-2022-jp.eml":
        return dataclasses.replace(sample, sender='"yamada."@example.com')
    if sample.name == "recipients-differ-in-case.eml":
        return dataclasses.replace(sample, recipients=("Staff@example.org",))
    return sample


@pytest.mark.parametrize("withheld", ["", "pipelining, chunking"], ids=["all-extensions", "no-pipelining"])
def test_command_line_delivers_byte_for_byte(tmp_path: Path, withheld: str) -> None:
    expected = outbox(tmp_path / "outbox")
    with started(tmp_path / "postfix", {"smtpd_discard_ehlo_keywords": withheld}) as postfix:
        done = send(postfix.url, tmp_path / "outbox")
        assert done.returncode == 0, done.stdout + done.stderr
        arrived = postfix.wait_for(len(expected))
    assert corpus.differences(map(as_postfix_passes_it_on, expected), arrived) == []


def test_threads_share_one_client(postfix: Postfix) -> None:
    failures: list[BaseException] = []
    with threadmail.Client(postfix.url) as client:
        ready = threading.Barrier(8, timeout=10)

        def work(first: int) -> None:
            try:
                ready.wait()
                for number in range(first, first + 25):
                    client.send(numbered(number)).raise_for_failure()
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i * 25,), name=f"sender-{i}") for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert numbers_of(postfix, 200) == list(range(200))


def test_threaded_sender_over_tls(postfix: Postfix) -> None:
    """Each receipt names the queue id under which Postfix took that very message in."""
    secure = postfix.url.replace("smtp://", "smtp+starttls://")
    config = threadmail.ServerConfig.from_url(secure, ssl_context=postfix.tls_context())
    with threadmail.ThreadedSender(config, workers=4) as sender:
        report = sender.send_all(numbered(number) for number in range(100))
    assert [receipt.outcome for receipt in report] == [threadmail.Outcome.SENT] * 100
    assert numbers_of(postfix, 100) == list(range(100))
    queue_ids = {}
    for message in postfix.messages():
        assert b"with ESMTPS" in message.received
        queue_ids[message.sender] = re.findall(rb"ESMTPS id (\w+)", message.received)[0].decode()
    for receipt in report:
        assert receipt.reply is not None
        assert receipt.reply.text.endswith(f"queued as {queue_ids[receipt.sender]}")


def test_idle_disconnect_is_invisible(tmp_path: Path) -> None:
    with started(tmp_path / "postfix", {"smtpd_timeout": "1s"}) as postfix, threadmail.Client(postfix.url) as client:
        assert client.send(numbered(0)).outcome is threadmail.Outcome.SENT
        postfix.wait_until_logged("timeout after .* from")
        assert client.send(numbered(1)).outcome is threadmail.Outcome.SENT
        assert numbers_of(postfix, 2) == [0, 1]


def test_refused_recipient_leaves_the_others(tmp_path: Path) -> None:
    rule = "check_recipient_access inline:{ { gone@example.org = 550 5.1.1 User unknown } }"
    message = numbered(7)
    message["Cc"] = "gone@example.org"
    with (
        started(tmp_path / "postfix", {"smtpd_recipient_restrictions": rule}) as postfix,
        threadmail.Client(postfix.url) as client,
    ):
        receipt = client.send(message)
        assert receipt.outcome is threadmail.Outcome.PARTIAL
        assert [(address, reply.code) for address, reply in receipt.refused.items()] == [("gone@example.org", 550)]
        assert client.send(numbered(8)).outcome is threadmail.Outcome.SENT
        assert numbers_of(postfix, 2) == [7, 8]
