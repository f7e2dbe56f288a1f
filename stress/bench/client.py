"""The program that is measured: one peer of Python's sends its messages once, in a process of its own.

    python -m stress.bench.client JOB

JOB is JSON. Prints "ready" when all messages are made, waits for a line, sends, and prints what that took, as JSON:
seconds from the first message handed over to the last receipt, CPU of this process in them, and its memory. Imports of
the peers stand in their functions, so that each process holds one of them only.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .job import NAME, SENDER, Clock, Job, peak_kib

# ---------------------------------------------------------------------- threadmail


def _config(job: Job) -> Any:
    from threadmail import ServerConfig

    settings: dict[str, Any] = {"local_hostname": NAME}
    if job.max_messages:
        settings["max_messages"] = None if job.max_messages < 0 else job.max_messages
    if job.window is not None:
        settings["window"] = job.window
    return ServerConfig(job.host, job.port, **settings)


def _ours(job: Job) -> Iterator[Any]:
    """Messages of one form: envelopes share their content, as letters of a newsletter do."""
    from threadmail import Envelope

    if job.form == "message":
        for number in range(job.messages):
            yield job.email(number)
        return
    if job.form == "file":
        first = Envelope.from_file(job.path, SENDER, job.to(0))
    else:
        first = Envelope.from_bytes(job.content, SENDER, job.to(0))
    for number in range(job.messages):
        yield first.for_recipients(job.to(number))


def threadmail_sender(job: Job, clock: Clock) -> None:
    from threadmail import Outcome, ThreadedSender

    messages = _ours(job) if job.stream else list(_ours(job))
    with ThreadedSender(_config(job), workers=job.connections) as sender:
        for _ in range(job.laps):
            clock.go()
            receipts = sender.send_each(messages) if job.stream else sender.send_all(messages)
            clock.stop(sum(receipt.outcome is Outcome.SENT for receipt in receipts))


def threadmail_client(job: Job, clock: Clock) -> None:
    from threadmail import Client

    with Client(_config(job)) as client:
        _in_threads(job, clock, list(_ours(job)), lambda mine: [client.send(m) for m in mine])


def threadmail_client_all(job: Job, clock: Clock) -> None:
    from threadmail import Client

    with Client(_config(job)) as client:
        _in_threads(job, clock, list(_ours(job)), lambda mine: list(client.send_all(mine)))


def threadmail_smtp(job: Job, clock: Clock) -> None:
    from threadmail import SMTP

    _one_a_thread(job, clock, lambda: SMTP(job.host, job.port, local_hostname=NAME))


# ---------------------------------------------------------------------- the standard library


def smtplib_one_a_thread(job: Job, clock: Clock) -> None:
    import smtplib

    _one_a_thread(job, clock, lambda: smtplib.SMTP(job.host, job.port, local_hostname=NAME))


def smtplib_new(job: Job, clock: Clock) -> None:
    import smtplib

    def send(mine: Sequence[Any]) -> None:
        for message in mine:
            with smtplib.SMTP(job.host, job.port, local_hostname=NAME) as smtp:
                _hand_over(smtp, message)

    _in_threads(job, clock, _theirs(job), send)


def smtplib_locked(job: Job, clock: Clock) -> None:
    import smtplib

    shared: list[smtplib.SMTP] = []
    lock = threading.Lock()

    def send(mine: Sequence[Any]) -> None:
        for message in mine:
            with lock:
                if not shared:
                    shared.append(smtplib.SMTP(job.host, job.port, local_hostname=NAME))
                _hand_over(shared[0], message)

    _in_threads(job, clock, _theirs(job), send)
    shared[0].quit()


def _one_a_thread(job: Job, clock: Clock, connect: Callable[[], Any]) -> None:
    open_: list[Any] = []

    def send(mine: Sequence[Any]) -> None:
        smtp = connect()
        open_.append(smtp)
        for message in mine:
            _hand_over(smtp, message)

    _in_threads(job, clock, _theirs(job), send)
    for smtp in open_:
        smtp.quit()


def _hand_over(smtp: Any, message: Any) -> None:
    if isinstance(message, tuple):
        smtp.sendmail(*message)
    else:
        smtp.send_message(message)


def _theirs(job: Job) -> list[Any]:
    if job.form == "message":
        return [job.email(number) for number in range(job.messages)]
    content = job.content
    return [(SENDER, job.to(number), content) for number in range(job.messages)]


def _in_threads(job: Job, clock: Clock, messages: Sequence[Any], send: Callable[[Sequence[Any]], object]) -> None:
    failures: list[BaseException] = []

    def work(mine: Sequence[Any]) -> None:
        try:
            send(mine)
        except BaseException as error:
            failures.append(error)
            raise

    shares = [messages[i :: job.connections] for i in range(job.connections)]
    for _ in range(job.laps):
        threads = [threading.Thread(target=work, args=(s,), name=f"bench-{i}") for i, s in enumerate(shares) if s]
        clock.go()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clock.stop(0 if failures else len(messages))


# ---------------------------------------------------------------------- packages


def aiosmtplib(job: Job, clock: Clock) -> None:
    import asyncio

    import aiosmtplib as package  # type: ignore[import-not-found, unused-ignore]

    messages = _theirs(job)

    async def work(mine: Sequence[Any]) -> Any:
        smtp = package.SMTP(hostname=job.host, port=job.port, local_hostname=NAME, start_tls=False)
        await smtp.connect()
        for message in mine:
            if isinstance(message, tuple):
                await smtp.sendmail(*message)
            else:
                await smtp.send_message(message)
        return smtp

    async def all_of_them() -> None:
        shares = [messages[i :: job.connections] for i in range(job.connections)]
        clock.go()
        clients = await asyncio.gather(*(work(share) for share in shares if share))
        clock.stop(len(messages))
        for client in clients:
            await client.quit()

    asyncio.run(all_of_them())


def django(job: Job, clock: Clock) -> None:
    from django.conf import settings  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from django.core import mail  # type: ignore[import-not-found, import-untyped, unused-ignore]

    settings.configure(USE_I18N=False)
    messages = [mail.EmailMessage(f"Order {n}", job.text, SENDER, job.to(n)) for n in range(job.messages)]
    backends: list[Any] = []

    def send(mine: Sequence[Any]) -> None:
        backend = mail.get_connection("django.core.mail.backends.smtp.EmailBackend", host=job.host, port=job.port)
        backends.append(backend)
        backend.open()
        backend.send_messages(mine)

    _in_threads(job, clock, messages, send)
    for backend in backends:
        backend.close()


#: What sends, and the module that it needs, imported before memory is looked at for the first time.
PROGRAMS: dict[str, tuple[Callable[[Job, Clock], None], str]] = {
    "threadmail": (threadmail_sender, "threadmail"),
    "threadmail-client": (threadmail_client, "threadmail"),
    "threadmail-client-all": (threadmail_client_all, "threadmail"),
    "threadmail-smtp": (threadmail_smtp, "threadmail"),
    "smtplib": (smtplib_one_a_thread, "smtplib"),
    "smtplib-new": (smtplib_new, "smtplib"),
    "smtplib-locked": (smtplib_locked, "smtplib"),
    "aiosmtplib": (aiosmtplib, "aiosmtplib"),
    "django": (django, "django.core.mail"),
}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    program, module = PROGRAMS[job.peer]
    peer = importlib.import_module(module)
    for name in getattr(peer, "__all__", ()):
        getattr(peer, name)  # who imports lazily has it all now, as the others have
    source = peer.__file__
    clock = Clock(base=peak_kib("VmRSS"))
    program(job, clock)
    print(json.dumps({**clock.result(), "peak": peak_kib(), "source": source}), flush=True)


if __name__ == "__main__":
    main()
