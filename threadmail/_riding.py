"""Whether something may be written behind the end of data to one server.

Owns what no EHLO tells and only a loss teaches: that a server minds what rides. Guarantees: the first connection that
is lost with a message prefetched behind the one in doubt, and the first that answers what rode as nobody may, end
riding for everybody who shares the server's config, so that one message a connection pays for the lesson and not
nearly all of them (field: Dovecot's submission server crashed, and 19 of 20 were in doubt). Leaves to `_delivery` what
is written, and to `Client` whom it asks for another message.
"""

from __future__ import annotations

import logging

log = logging.getLogger("threadmail.client")


class Riding:
    """What is known of one server. Shared by threads without a lock: it changes once, and to the same for all.

    Attributes:
        ended: nothing may be written behind the end of data, nor content behind unanswered content.
    """

    def __init__(self) -> None:
        self.ended = False

    def end(self, server: str, why: object) -> None:
        """From now on each message is written when the one ahead has been answered."""
        if self.ended:
            return
        self.ended = True
        try:
            log.warning(
                "%s seems to mind what is written behind the end of a message (%s): from now on each message waits "
                "for the one ahead",
                server,
                why,
            )
        except Exception:  # noqa: BLE001 - a broken log handler changes nothing about it
            pass
