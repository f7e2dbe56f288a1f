"""Which modules decide, which tests are asked about each, and what is known of their mutants.

Owns the list of targets, the record (decisions.json: for each mutant the test that noticed it, or none) and the
arguments for those that nobody can notice. stress/mutants.py hunts; test_decisions.py replays a sample in the gate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .decisions import decision_mutants, enums_of
from .mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("decisions.json")

#: What decides, and the test files that are asked about it, as patterns of their names. Those that run a mutant's line
#: are found by running them, so that too many cost time only once.
TARGETS: dict[str, tuple[str, ...]] = {
    "threadmail._dispatch.schedule": ("test_schedule*", "test_decisions_schedule*", "test_sender*"),
    "threadmail._dispatch.limits": ("test_decisions_limits*", "test_sender*"),
    "threadmail._dispatch.timeheap": (
        "test_timeheap*",
        "test_decisions_*heap*",
        "test_schedule*",
        "test_decisions_schedule*",
    ),
    "threadmail._dispatch.verdict": ("test_verdict*", "test_decisions_verdict*", "test_sender*", "test_retry*"),
    "threadmail._dispatch.job": ("test_job*", "test_decisions_job*", "test_sender*"),
    "threadmail._dispatch.collector": ("test_decisions_collector*", "test_collector*", "test_sender*"),
    "threadmail._dispatch.stream": ("test_stream*", "test_decisions_stream*", "test_collector*", "test_sender*"),
    "threadmail._dispatch.worker": (
        "test_worker*",
        "test_decisions_worker*",
        "test_sender*",
        "reliability/test_overload.py",
    ),
    "threadmail._dispatch.dispatcher": ("test_dispatcher*", "test_decisions_dispatcher*", "test_sender*", "test_exit*"),
    "threadmail._dispatch.withdrawal": ("test_dispatcher*", "test_decisions_dispatcher*", "test_sender*", "test_exit*"),
    "threadmail._dispatch.conclusions": (
        "test_decisions_conclusions*",
        "test_dispatcher*",
        "test_decisions_dispatcher*",
        "test_sender*",
        "test_exit*",
    ),
    "threadmail._dispatch.recovery": (
        "test_decisions_recovery*",
        "test_dispatcher*",
        "test_decisions_dispatcher*",
        "test_sender*",
        "test_exit*",
    ),
    "threadmail._dispatch.admission": ("test_dispatcher*", "test_decisions_dispatcher*", "test_sender*", "test_exit*"),
    "threadmail._dispatch.teller": ("test_dispatcher*", "test_decisions_dispatcher*", "test_sender*", "test_exit*"),
    "threadmail._dispatch.starter": ("test_dispatcher*", "test_decisions_dispatcher*", "test_sender*", "test_exit*"),
    "threadmail._dispatch.closing": ("test_dispatcher*", "test_decisions_dispatcher*", "test_sender*", "test_exit*"),
    "threadmail._dispatch.sender_stats": (
        "test_dispatcher*",
        "test_decisions_dispatcher*",
        "test_sender*",
        "test_exit*",
    ),
    "threadmail._connection.breaker": ("test_breaker*", "test_decisions_breaker*", "test_keys*"),
    "threadmail.retry": ("test_retry*", "test_decisions_breaker*", "test_breaker*"),
    "threadmail.throttle": ("test_throttle*", "test_decisions_throttle*"),
    "threadmail.receipt": ("test_receipt*", "test_decisions_receipt*", "test_retry*"),
    "threadmail._protocol.transaction": (
        "test_decisions_transaction*",
        "test_transaction*",
        "test_window*",
        "test_riding*",
    ),
    "threadmail._protocol.progress": ("test_decisions_progress*", "test_window*", "test_riding*", "test_grouping*"),
    "threadmail._session.window": ("test_decisions_window*", "test_window*"),
    "threadmail._known.riding": ("test_decisions_riding*", "test_riding*"),
    "threadmail._pool.keys": ("test_decisions_keys*", "test_keys*", "test_pool*"),
    "threadmail._pool.room": ("test_decisions_room*", "test_keys*", "test_pool*"),
    "threadmail._pool.leases": ("test_decisions_leases*", "test_pool*"),
    "threadmail.pool": ("test_pool*", "test_decisions_pool*", "test_keys*"),
    "threadmail._connection.kept_connection": (
        "test_kept_connection*",
        "test_decisions_kept*",
        "test_client*",
        "test_last_moment*",
    ),
}

#: Mutants that nobody can notice, each with the argument.
_DEFAULT = "the constructor sets it always; the default in the class is for dataclasses.fields alone"
_ORDER = "the numbers only tell which of two came first: any beginning and any step do that"
_IN_VAIN = "to look for a deadline where there is none costs time, and nothing else"
_LONGEST = "after seven refusals the pause is the longest: any bound from there on keeps the power a number"
_NO_PROCESS = "any number that no process of ours has: the constructor begins in the one that there is"
_LOOKED_TWICE = (
    "the other of the two looks finds the same; that both are needed shows in the middle of a rebirth, of pool, sender "
    "and client: tests/runtime/test_entering_a_child.py"
)
ARGUED: dict[str, str] = {
    "threadmail.receipt:Receipt: 2 for 1": _DEFAULT,
    "threadmail.receipt:Receipt: 0 for 1": _DEFAULT,
    "threadmail.receipt:_told_by: `if True` for `if error.receipt is not receipt`": (
        "a receipt that was made just now is that of no error yet"
    ),
    "threadmail.receipt:Receipt.followed_by: `if True` for `if outcome in (Outcome.NOT_SENT, Outcome.IN_DOUBT)`": (
        "the attempt that decides it was accepted by somebody, and such a one has no error"
    ),
    "threadmail._dispatch.schedule:Schedule._steal: -1 for 0": "nobody has less in his run than he can spare",
    "threadmail._connection.breaker:CircuitBreaker.__init__: True for False #2": (
        "asked only of a dial that began while it was closed, and so after a session"
    ),
    "threadmail._connection.breaker:CircuitBreaker.__init__: 1 for 0 #2": "the first failure sets it",
    "threadmail._connection.breaker:CircuitBreaker.__init__: -1 for 0 #2": "the first failure sets it",
    "threadmail._connection.breaker:CircuitBreaker.connected: `if False` for `if self._closed`": (
        "where nothing has failed since an answer there is no error to be forgotten"
    ),
    "threadmail._connection.breaker:CircuitBreaker.answered: `if True` for `if self.failures or not self._closed`": (
        "it sets what is so already"
    ),
    "threadmail._dispatch.verdict:_again: `if False` for `if merged.outcome is Outcome.SENT`": (
        "of what everybody has nobody is left to send to, and so the policy says: the branch spares the question"
    ),
    "threadmail._dispatch.verdict:_session_lost: 1 for 0": "421 is neither",
    "threadmail._dispatch.verdict:_session_lost: -1 for 0": "421 is neither",
    "threadmail._dispatch.timeheap:TimeHeap.__init__: 1 for 0": _ORDER,
    "threadmail._dispatch.timeheap:TimeHeap.__init__: -1 for 0": _ORDER,
    "threadmail._dispatch.timeheap:TimeHeap.add: 2 for 1": _ORDER,
    "threadmail._dispatch.timeheap:TimeHeap._first: `if True` for `if self._old`": (
        "an empty heap has no first, and says so"
    ),
    "threadmail._dispatch.timeheap:TimeHeap._first: `<=` for `<` in `other < first`": (
        "no two entries are equal, but one that is in both heaps, and then either is it"
    ),
    "threadmail._dispatch.limits:ConcurrencyLimit.count_good: -1 for 0": "less than nothing is less than the shortest",
    "threadmail._dispatch.limits:ConcurrencyLimit.__init__: -1 for 0 #5": (
        "twice less than nothing is less than the shortest"
    ),
    "threadmail._dispatch.limits:read_signs: `if False` for `if receipt.error is None`": (
        "None has no code, and so is no reply"
    ),
    "threadmail._dispatch.limits:_reply_of: `if False` for `if code is None`": (
        "a reply without a code and a text has no sign"
    ),
    "threadmail._dispatch.schedule:Schedule.sent: `>=` for `>` in `len(ends) > 0`": _IN_VAIN,
    "threadmail._dispatch.schedule:Schedule.sent: -1 for 0": _IN_VAIN,
    "threadmail._dispatch.schedule:Schedule.sent: `if True` for `if bounded`": _IN_VAIN,
    "threadmail._dispatch.schedule:Schedule.drained: `or` for `and` in "
    "`not self.take_out(job, out, ending) and job in self.ready`": (
        "what was taken out is in the queue no more, so the second question says no"
    ),
    "threadmail._dispatch.schedule:Schedule.next_action: -1 for 0": "whatever is not positive means now",
    "threadmail._dispatch.schedule:Schedule.take_run: `if True` for `if job in self.ready`": (
        "only a call of the same thread in between, by a signal handler, can have taken it out"
    ),
    "threadmail._dispatch.schedule:Schedule._steal: `for ... if True` for `if each is not worker`": (
        "who steals has nothing in his run, so that he is never the busiest of two, and from himself takes nothing"
    ),
    "threadmail._dispatch.schedule:Schedule.expires: `<=` for `<` in `at < self.ends.at(job)`": (
        "adding it again at the same time changes nothing but the order among equals"
    ),
    "threadmail.throttle:Throttle: 1 for 0": _NO_PROCESS,
    "threadmail.throttle:Throttle: -1 for 0": _NO_PROCESS,
    "threadmail.throttle:Throttle._inherited: `if False` for `if self._pid == pid`": _LOOKED_TWICE,
    "threadmail.throttle:Throttle._begin: `if False` for `if self._pid == pid`": _LOOKED_TWICE,
    "threadmail.throttle:Throttle.pause: `<=` for `<` in `self._paused_until < until`": (
        "of two pauses that end at the same moment either ends at that moment"
    ),
    "threadmail.throttle:Throttle._pause_for: `>=` for `>` in `lacking > 1e-9`": (
        "no whole number less a float is exactly a billionth"
    ),
    "threadmail._pool.leases:held: `if False` for `if not here`": (
        "of nothing there is nothing of this pool: the branch spares the question"
    ),
    "threadmail._pool.room:Room.refused: 31 for 30": _LONGEST,
    "threadmail._pool.room:Room.refused: 29 for 30": _LONGEST,
    "threadmail._protocol.transaction:Transaction.commands: `if True` for `if for_rcpt`": (
        "of no options there is nothing to check and nothing to write: the branch spares the call"
    ),
    "threadmail._protocol.transaction:Transaction._parameters: "
    "`if False` for `if not (asked or envelope.eight_bit or envelope.smtputf8)`": (
        "what is behind it comes to the same for a message that needs none of it: the branch spares the way there"
    ),
}


@dataclass(frozen=True)
class Fate:
    """What became of a mutant.

    Attributes:
        killer: the test that noticed it; None: nobody did, of those that run its line.
        how: "failed", "hung" or "import" (it could not even be imported).
        seconds: that took, so that the gate can draw cheap ones.
    """

    killer: str | None
    how: str = "failed"
    seconds: float = 0.0


def path_of(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def mutants_of_module(module: str) -> list[Mutant]:
    """Every mutant of the decisions of one module."""
    everything = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "threadmail").rglob("*.py"))]
    return list(decision_mutants(path_of(module).read_text(encoding="utf-8"), module, enums_of(everything)))


def files_asked(module: str) -> list[Path]:
    """The test files that are asked about a module, in the order in which it names them."""
    found: dict[Path, None] = {}
    for pattern in TARGETS[module]:
        whole = pattern if pattern.endswith(".py") else f"{pattern}.py"
        found.update(dict.fromkeys(sorted((ROOT / "tests").rglob(whole))))
    return list(found)


def read_record() -> dict[str, Fate]:
    if not RECORD.exists():
        return {}
    return {name: Fate(**fate) for name, fate in json.loads(RECORD.read_text(encoding="utf-8")).items()}


def write_record(fates: Mapping[str, Fate]) -> None:
    lines = [f" {json.dumps(name, ensure_ascii=False)}: {json.dumps(asdict(fates[name]))}" for name in sorted(fates)]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def argument(name: str) -> str | None:
    """Why nobody can notice it."""
    return ARGUED.get(name)


def still_open(fates: Mapping[str, Fate]) -> Iterator[str]:
    """Recorded mutants that nobody noticed, and nobody can say why."""
    return (name for name, fate in fates.items() if fate.killer is None and argument(name) is None)


#: What kind of test a file is, by its folder or the beginning of its name.
_FOLDERS = {
    "tests/proof/test_exhaustive": "explorer",
    "tests/proof/": "proof",
    "tests/reliability/": "stages and faults",
}
_NAMES = {
    "test_decisions_": "table of decisions",
    "test_keys": "state machine",
    "test_schedule_machine": "state machine",
    "test_schedule": "table",
    "test_transaction": "table",
    "test_retry": "table",
    "test_receipt": "table",
    "test_throttle": "table",
    "test_breaker": "table",
}


def kind_of(test: str) -> str:
    """Of the test that noticed a mutant."""
    name = test.partition("::")[0].rpartition("/")[2]
    kinds = [kind for beginning, kind in _FOLDERS.items() if test.startswith(beginning)]
    kinds += [kind for beginning, kind in _NAMES.items() if name.startswith(beginning)]
    return kinds[0] if kinds else "dialogue by sockets"
