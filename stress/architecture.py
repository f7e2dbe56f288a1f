"""Where things live, as a page: made from the code, so that it is of the code there is.

    python -m stress.architecture

Writes `docs/architecture.md` and its picture. What stands in it about a module is the first line of that module; what
stands here are the questions that people ask, the life of a message, and where each is answered. Raises LookupError
where one names what is not there.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ._svg import Canvas, wrap

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "threadmail"
DOCS = ROOT / "docs"
PAGE, PICTURE = "architecture.md", "architecture.svg"

#: From left to right, as `tests/test_architecture.py` has it; modules side by side that are one step.
STEPS = (
    ("errors",),
    ("_runtime",),
    ("_message",),
    ("envelope", "receipt"),
    ("_known",),
    ("config",),
    ("_protocol",),
    ("_transport",),
    ("_session",),
    ("smtp",),
    ("retry", "throttle"),
    ("_connection",),
    ("client",),
    ("_pool",),
    ("pool",),
    ("_dispatch",),
    ("sender",),
    ("cli", "testing"),
)

#: What people ask, and the one place to look first: a module, and what in it.
QUESTIONS = (
    ("Why was my message not sent: which error class is that, and may I send again?", "errors", "MailError.may_resend"),
    ("What does SENT, PARTIAL, NOT_SENT or IN_DOUBT follow from?", "_protocol.transaction", "Transaction"),
    ("Where is a header written, a Bcc taken out, a message checked?", "_message.message", "without_bcc"),
    ("Who decides when a message is tried again, and with which pause?", "retry", "RetryPolicy.next_attempt"),
    ("Who decides whether the message, or the server, is to blame?", "_dispatch.verdict", "judge"),
    ("What happens at 421, 432, 454 or 4.7.x: fewer workers, a pause?", "_dispatch.limits", "ConcurrencyLimit.learn"),
    ("Who may dial a server that is down, and when?", "_connection.breaker", "CircuitBreaker.ask"),
    ("Where is a connection found dead before it is used?", "_connection.kept_connection", "KeptConnection"),
    ("Who closes idle connections?", "_connection.idle", "IdleWatch"),
    ("Where do deadlines become socket time-outs?", "_transport.socket", "TimedSocket"),
    ("Where is a reply parsed, and bounded?", "_transport.wire", "Wire.read_reply"),
    ("Where is a name looked up, and for how long?", "_transport.lookup", "addresses"),
    ("Where does TLS begin, and what is verified?", "_transport.tls", "wrap_tls"),
    ("How does one log in, and which mechanism is taken?", "_session.login", "authenticate"),
    ("Why is a password not offered a second time?", "_known.refused_logins", "RefusedLogins"),
    ("Which parameters does MAIL carry (SIZE, BODY, SMTPUTF8)?", "_protocol.transaction", "Transaction.commands"),
    ("Who waits for a client while a batch of another thread is on its way?", "_connection.waiters", "Waiters"),
    ("Who holds `sync_root`, and for how long?", "_runtime.guard", "Guarded"),
    ("Where are commands pipelined, and what is written behind the end of data?", "_session.delivery", "Pipeline"),
    ("Where is a window of messages kept (`window` above 1)?", "_session.window", "Window"),
    ("Who gets which client of a pool, and who waits?", "_pool.keys", "Keys"),
    ("What does a worker do next: where is that decided?", "_dispatch.schedule", "Schedule.next_action"),
    ("Where is the one lock of a sender?", "_dispatch.dispatcher", "Dispatcher"),
    ("Who starts a worker's thread, and what if there is none to be had?", "_dispatch.starter", "Starter"),
    ("How does a message get into a full queue?", "_dispatch.admission", "Admission"),
    ("What do `cancel()` and `abort()` do?", "_dispatch.withdrawal", "Withdrawal.abort"),
    ("Who calls `on_receipt`, on which thread, how often?", "_dispatch.teller", "Teller"),
    ("How does `send_all` get its receipts back in order?", "_dispatch.collector", "Collector"),
    ("What does `close()` wait for?", "_dispatch.closing", "Closing.see_off"),
    ("What happens when the interpreter ends?", "_dispatch.at_exit", "close_at_exit"),
    ("What if threads of the program go on when its main thread has ended?", "_dispatch.outliving", "wait_for_them"),
    ("How do our log records leave, and who waits for a handler?", "_runtime.logs", "say"),
    ("What becomes of a fork?", "_runtime.guard", "BornAnew"),
    ("What does the command line exit with?", "cli.exit_codes", ""),
)

#: One message from `send_all` to the wire and back.
LIFE = (
    ("is taken from the caller's iterable, one ahead of the queue", "_dispatch.stream", "ReceiptStream"),
    ("becomes an envelope: checked once, its bytes ready for the wire", "envelope", "Envelope.of"),
    ("waits for a place in the queue, in turn", "_dispatch.admission", "Admission"),
    ("is a job, with its deadline, its tag and whom its receipt is told", "_dispatch.job", "Job"),
    ("lies in the schedule until a worker asks what to do", "_dispatch.schedule", "Schedule.next_action"),
    ("is taken by a worker, in a run with others, in one step of the lock", "_dispatch.dispatcher", "Dispatcher.next"),
    (
        "needs a connection: the kept one if it can be trusted, else a new one",
        "_connection.kept_connection",
        "KeptConnection",
    ),
    ("opens it: dial, TLS, EHLO, login", "_connection.opening", "open_session"),
    ("is written, its commands in one piece where the server pipelines", "_session.delivery", "Pipeline.send"),
    ("moves its transaction on, reply by reply", "_protocol.transaction", "Transaction"),
    ("comes to its end of data; the hook `before_final` stands right before that", "_session.delivery", "Pipeline"),
    ("has a receipt: who got it, and what is not known", "receipt", "Receipt"),
    ("is judged: sent, again later, or final; and what it says of the server", "_dispatch.verdict", "judge"),
    ("is told: its future, then `on_receipt`, then the log", "_dispatch.teller", "Teller.tell"),
    ("comes back to the one caller who waits for all of them", "_dispatch.collector", "Collector"),
)


@dataclass(frozen=True)
class Place:
    """A module or folder of the package."""

    name: str

    @property
    def path(self) -> Path:
        below = PACKAGE / self.name.replace(".", "/")
        return below / "__init__.py" if below.is_dir() else below.with_suffix(".py")

    @property
    def shown(self) -> str:
        """As a path below the root."""
        below = self.path.relative_to(ROOT).as_posix()
        return below.removesuffix("__init__.py")

    @property
    def first_line(self) -> str:
        return (ast.get_docstring(_parsed(self.path)) or "").partition("\n")[0]

    def modules(self) -> list[Place]:
        """Of a folder."""
        inside = sorted(self.path.parent.glob("*.py")) if self.path.name == "__init__.py" else []
        return [Place(f"{self.name}.{path.stem}") for path in inside if path.stem != "__init__"]

    def has(self, what: str) -> bool:
        """Whether a class, function or method of that name is defined here."""
        tree: ast.AST = _parsed(self.path)
        for part in filter(None, what.split(".")):
            inside = {
                node.name: node
                for node in ast.iter_child_nodes(tree)
                if isinstance(node, (ast.ClassDef, ast.FunctionDef))
            }
            if part not in inside:
                return False
            tree = inside[part]
        return True


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _link(name: str, what: str = "") -> str:
    place = Place(name)
    if not (place.path.exists() and place.has(what)):
        raise LookupError(f"there is no {what} in {place.shown}")
    link = f"[`{place.shown}`](../{place.shown})"
    return f"{link}: `{what}`" if what else link


def page() -> str:
    """The page, as Markdown."""
    layers = [Place(name) for step in STEPS for name in step]
    lines = [
        "# Where things live",
        "",
        "Made from the code by `python -m stress.architecture`; a test holds it to the code.",
        "",
        "## Which file do I open?",
        "",
        "| question | file, and what in it |",
        "|---|---|",
        *(f"| {question} | {_link(name, what)} |" for question, name, what in QUESTIONS),
        "",
        "## The layers",
        "",
        "A file imports only from above: from its own folder, and from those over it in the picture.",
        "`tests/test_architecture.py` keeps it so. Folders with `_` are internal; everything public is imported from",
        "`threadmail`, and from `threadmail.testing`.",
        "",
        f"![the folders of the package, each standing on those above it]({PICTURE})",
        "",
        "What decides does no I/O and holds no lock: `_protocol`, `_dispatch/schedule.py`, `_dispatch/verdict.py`,",
        "`_dispatch/limits.py`, `_pool/keys.py`, `_connection/breaker.py`. Tables and a state machine test that. What",
        "holds a lock or does I/O is a thin shell around it; [the proof](proof.md) searches its schedules.",
        "",
        "## The life of one message",
        "",
        "A message given to `ThreadedSender.send_all`:",
        "",
        *(f"{number}. {text}: {_link(name, what)}" for number, (text, name, what) in enumerate(LIFE, 1)),
        "",
        "`Client.send` begins at 7, and `ClientPool.send` with a lease of a client ("
        f"{_link('_pool.keys', 'Keys')}) before that.",
        "",
        "## Every module",
        "",
    ]
    for layer in layers:
        lines += [f"### `{layer.shown.removeprefix('threadmail/')}`", "", layer.first_line, ""]
        if modules := layer.modules():
            lines += ["| module | what it is |", "|---|---|"]
            lines += [f"| {_link(each.name)} | {each.first_line} |" for each in modules]
            lines.append("")
    return "\n".join(lines)


def picture() -> str:
    """The layers from the one that knows least to the one that knows all."""
    wide, name_room, left = 920.0, 190.0, 24.0
    canvas = Canvas(wide)
    y = 24.0
    for step in STEPS:
        public = not any(name.startswith("_") for name in step)
        text = " ".join(Place(name).first_line for name in step)
        rows = wrap(text, wide - 2 * left - name_room - 20, 13)
        modules = ", ".join(each.name.partition(".")[2] for name in step for each in Place(name).modules())
        inside = wrap(modules, wide - 2 * left - name_room - 20, 12, mono=True) if modules else []
        high = 20.0 * len(rows) + 17.0 * len(inside) + 16.0
        canvas.rect(left, y, wide - 2 * left, high, "goodbox" if public else "box", round=6)
        for number, name in enumerate(step):
            shown = Place(name).shown.removeprefix("threadmail/")
            canvas.text(
                left + 12, y + 23 + 18 * number, shown, "ink", room=name_room - 16, size=13, mono=True, bold=True
            )
        for number, row in enumerate(rows):
            canvas.text(left + name_room, y + 22 + 20 * number, row, "ink", room=wide - left - name_room)
        for number, row in enumerate(inside):
            at = y + 20 * len(rows) + 20 + 17 * number
            canvas.text(left + name_room, at, row, "soft", room=wide - left - name_room, size=12, mono=True)
        y += max(high, 18.0 * len(step) + 14.0) + 8
    description = (
        "Each box imports only from those above it. Green boxes are public modules, grey ones internal folders."
    )
    return canvas.write(y + 16, "The layers of threadmail", description)


def documents() -> dict[str, str]:
    return {PAGE: page() + "\n", PICTURE: picture()}


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    for name, content in documents().items():
        (docs / name).write_text(content, encoding="utf-8")
        print(f"wrote {docs / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
