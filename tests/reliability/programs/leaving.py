"""Forks inside `with` blocks, and both processes leave them: `URL HOW`, HOW as in `forking` but "libc".

The child first does what it must not do to a connection of the parent: abort, close, look, leave the block.
"""

from __future__ import annotations

import os
import sys
import traceback

if sys.argv[2] == "no hooks":
    os.register_at_fork = lambda **hooks: None

from tests.support.mail import envelope
from threadmail import SMTP, Client, ClientPool, ServerConfig, ThreadedSender


def send_plainly(smtp: SMTP, name: str) -> None:
    letter = envelope(name)
    smtp.sendmail(letter.sender, letter.recipients, letter.content)


def main() -> None:
    config = ServerConfig.from_url(sys.argv[1])
    child = -1
    try:
        with (
            SMTP(config.host, config.port) as smtp,
            Client(config) as client,
            ClientPool(config) as pool,
            ThreadedSender(config) as sender,
            pool.lease() as leased,
        ):
            send_plainly(smtp, "before-smtp")
            client.send(envelope("before-client"))
            leased.send(envelope("before-leased"))
            sender.send(envelope("before-sender"))
            with smtp.sync_root, client.sync_root, leased.sync_root:
                child = os.fork()
                if child == 0:
                    for inherited in (smtp, client, leased):
                        inherited.abort()
                    assert not smtp.is_quiet()
                    assert not client.is_connected
                    smtp.close()
                    leased.send(envelope("child-leased"))
                else:
                    _, status = os.waitpid(child, 0)
                    assert os.waitstatus_to_exitcode(status) == 0
            if child == 0:
                client.send(envelope("child-client"))
            else:
                send_plainly(smtp, "after-smtp")
                client.send(envelope("after-client"))
                leased.send(envelope("after-leased"))
                sender.send(envelope("after-sender"))
    except BaseException:  # noqa: BLE001 - both processes end here
        traceback.print_exc()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)  # as forked children end; the blocks above have said what there was to say


if __name__ == "__main__":
    main()
