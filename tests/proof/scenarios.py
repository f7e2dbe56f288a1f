"""The registry: every scenario of the proof.

`SUITE` is exhausted in the normal suite, `LONG` in `stress/`: programs of whole messages, judged by the oracle. `SMALL`
are one promise each: a call that threads make at the same time, a deadline that holds on a server that says nothing, a
wait that ends when what it waits for has happened and not later. None has a violation in the real package; mutation.py
asks which of its mutants they notice.
"""

from __future__ import annotations

from . import (
    scenarios_attempts,
    scenarios_client,
    scenarios_closing,
    scenarios_dialogue,
    scenarios_fork,
    scenarios_idle,
    scenarios_lease,
    scenarios_moments,
    scenarios_order,
    scenarios_pool,
    scenarios_queue,
    scenarios_riding,
    scenarios_sender,
    scenarios_throttle,
    scenarios_wake,
    scenarios_window,
)

SUITE = [
    *scenarios_client.SCENARIOS,
    *scenarios_pool.SCENARIOS,
    *scenarios_sender.SCENARIOS,
    *scenarios_riding.SCENARIOS,
    *scenarios_window.SCENARIOS,
    *scenarios_attempts.SCENARIOS,
]
LONG = [
    *scenarios_pool.LONG,
    *scenarios_sender.LONG,
    *scenarios_riding.LONG,
    *scenarios_window.LONG,
    *scenarios_attempts.LONG,
]
SCENARIOS = SUITE + LONG
SMALL = [
    *scenarios_dialogue.SMALL,
    *scenarios_client.SMALL,
    *scenarios_fork.SMALL,
    *scenarios_idle.SMALL,
    *scenarios_lease.SMALL,
    *scenarios_order.SMALL,
    *scenarios_closing.SMALL,
    *scenarios_queue.SMALL,
    *scenarios_throttle.SMALL,
    *scenarios_wake.SMALL,
    *scenarios_moments.SMALL,
    *scenarios_attempts.SMALL,
]
