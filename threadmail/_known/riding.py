"""Whether something may be written behind the end of data to one server.

Owns what no EHLO tells and only a loss teaches: that a server minds what rides. Guarantees: the first connection that
is lost with a message prefetched behind the one in doubt, and the first that answers what rode as nobody may, end
riding for everybody who shares the server's config, so that one message a connection pays for the lesson and not
nearly all of them (field: Dovecot's submission server crashed, and 19 of 20 were in doubt). Leaves to
`_session.delivery` what is written, and to `Client` whom it asks for another message.
"""

from __future__ import annotations

import logging

from .._runtime.logs import say

log = logging.getLogger("threadmail.client")

#: Rides in a row that were hung up on. One may be chance, a restart or a limit that was reached; a server that minds
#: RSET there, or anything, does so each time, and each message would take a connection of its own.
MOST_HANG_UPS = 3


class Riding:
    """What is known of one server. Shared by threads without a lock: it ends once, and for all; the count is a hint.

    Attributes:
        ended: nothing may be written behind the end of data, nor content behind unanswered content.
        hang_ups: rides in a row that were hung up on, with the message ahead answered. A good one ends the row.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self.hang_ups: int = 0

    def hung_up(self, server: str, why: object) -> None:
        """A ride was hung up on, which put nothing in doubt."""
        self.hang_ups += 1
        if self.hang_ups >= MOST_HANG_UPS:
            self.end(server, why)

    def end(self, server: str, why: object) -> None:
        """From now on each message is written when the one ahead has been answered."""
        if self.ended:
            return
        self.ended = True
        say(
            log,
            logging.WARNING,
            "%s seems to mind what is written behind the end of a message (%s): from now on each message waits for the "
            "one ahead",
            server,
            why,
        )
