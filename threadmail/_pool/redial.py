"""The dials that a client of a pool makes by itself.

Owns the two hooks of such a client. The pool's own dial, the first one, has asked before; but a connection that is lost
in a lease is replaced in the middle of a call, and that is a dial like any other: it asks the pool's breaker, and tells
it what came of it. Guarantees: no permission to dial is lost, whatever interrupts: one that nobody could return is used
by the next call, or ends with the client. What is allowed, and what an answer means, `_pool.keys` decides.

Both hooks run while `sync_root` of the client is held. The lock of the pool is taken inside it, never the other way
round: under that nobody waits for a client.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..client import Client
from ..config import ServerConfig
from ..errors import Aborted, Closed, MailError, kept_copy
from .leases import is_refusal

if TYPE_CHECKING:
    from ..pool import ClientPool


class Redials:
    """See the module.

    Attributes:
        client: a new client of the pool.
    """

    def __init__(self, pool: ClientPool, config: ServerConfig, rng: random.Random) -> None:
        self._pool = pool
        self._asked = False  # about the dial under way; guarded by `sync_root`
        self.client = Client(config, rng=rng, watch_idle=False, before_dial=self._before, after_dial=self._after)

    def _before(self) -> None:
        if not self.client.stats().opened:
            return
        self._pool._check_process()
        self._asked = True
        try:
            self._pool._steps.take(self._ask)
        except BaseException:
            self._tell(_NOTHING)
            raise

    def _ask(self, at: float) -> None:
        # Looked at under the lock: after that no permission is given, so none is left when the client has gone.
        if self.client._parted:
            raise Closed("this client is closed: make a new one")
        lost, self.client._taken_back = self.client._taken_back, None
        if lost is not None:
            self._pool._keys.taken_back(lost, at)  # before anybody dials again
        self._pool._keys.redial(self.client, self.client._answers, at)

    def _after(self, error: MailError | None) -> None:
        if self._asked:
            # What is no refusal says nothing about the server, as in the pool's own dials.
            self._tell(error if error is None or is_refusal(error) else _NOTHING)

    def _tell(self, error: MailError | None) -> None:
        told = None if error is None else kept_copy(error)
        try:
            self._pool._steps.surely(self._told, told)
        except BaseException:
            self._pool._steps.surely(self._told, told)  # an exception from outside: what it left undone is done now
            raise
        self._asked = False

    def _told(self, error: MailError | None, at: float) -> None:
        self._pool._keys.redialled(self.client, error, at)


#: Says nothing about the server.
_NOTHING = Aborted("the dial came to nothing")
