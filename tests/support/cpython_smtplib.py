"""Runs CPython's own ``test.test_smtplib`` with other classes in place of smtplib's.

Owns the swap and its proof. ``python -m tests.support.cpython_smtplib`` puts a proxy in
``sys.modules["smtplib"]`` before ``test.test_smtplib`` is imported, since that module binds
``client = smtplib.SMTP`` in class bodies; lets unittest run and print as usual; and fails unless the classes
under test, and no plain ones of the standard library, were made. Guarantees that a run which exercised
something else than the implementation is never reported as a success. Leaves to others what the tests mean:
they are the interpreter's, of whatever version runs this. (They never make an ``SMTP_SSL``: the only one in
CPython's suite, ``test_smtpnet``, dials a public host.)
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
import importlib.util
import json
import os
import smtplib
import subprocess
import sys
import types
import unittest
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPLACED = ("SMTP", "SMTP_SSL", "LMTP")
"""The names that the proxy takes from the implementation; all others come from the standard library."""

EXERCISED = ("SMTP", "LMTP")
"""Those of them that ``test.test_smtplib`` makes instances of."""

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SuiteResult:
    """What one run of the suite found.

    ``run`` counts tests; ``failed`` and ``skipped`` name them (with the reason, for a skip); ``made`` counts the
    clients initialised, by qualified class name.
    """

    run: int
    failed: list[str]
    skipped: list[list[str]]
    made: dict[str, int]
    missing: list[str]
    foreign: list[str]

    @property
    def passed(self) -> bool:
        """Whether every test passed, on the classes under test and on no others."""
        return self.run > 0 and not (self.failed or self.missing or self.foreign)


class SmtplibProxy(types.ModuleType):
    """Stands for smtplib: reads come from two modules, assignments reach all that share a global.

    The suite assigns ``smtplib.socket = mock_socket``. What such a name means to the classes under test is
    decided by the globals of the modules that define them and their bases, so the assignment goes to each of
    those that has the name.
    """

    def __init__(self, implementation: types.ModuleType) -> None:
        super().__init__("smtplib", smtplib.__doc__)
        for name in REPLACED:
            # Assigned past our own __setattr__: these belong to the proxy alone.
            types.ModuleType.__setattr__(self, name, getattr(implementation, name))
        classes = [base for name in REPLACED for base in getattr(implementation, name).__mro__]
        modules = {"smtplib": smtplib, implementation.__name__: implementation}
        modules |= {base.__module__: sys.modules[base.__module__] for base in classes if base is not object}
        types.ModuleType.__setattr__(self, "_modules", list(modules.values()))

    def __getattr__(self, name: str) -> Any:
        return getattr(smtplib, name)

    def __setattr__(self, name: str, value: object) -> None:
        for module in self._modules:
            if module is smtplib or hasattr(module, name):
                setattr(module, name, value)


def count_clients() -> collections.Counter[type]:
    """Count every SMTP client initialised in this process from now on, by its class.

    The hook sits in ``smtplib.SMTP.__init__``, which every client reaches, so that a plain one which slipped in
    is seen as well as one under test, and the classes under test stay the very objects users import.
    """
    made: collections.Counter[type] = collections.Counter()
    initialise = smtplib.SMTP.__init__

    @functools.wraps(initialise)
    def counting(self: smtplib.SMTP, *args: Any, **kwargs: Any) -> None:
        made[type(self)] += 1
        initialise(self, *args, **kwargs)

    smtplib.SMTP.__init__ = counting  # type: ignore[method-assign]
    return made


def run_here(implementation: types.ModuleType) -> SuiteResult:
    """Run the suite in this process, for good: smtplib stays replaced. Prints unittest's report to stderr."""
    # CPython's MockSocket says that its fileno() is 0. A client that looks at the descriptor for unread bytes
    # must find a silent one there, whatever our own stdin is: a pipe that nobody writes to.
    silent, _ = os.pipe()
    os.dup2(silent, 0)

    made = count_clients()
    proxy = SmtplibProxy(implementation)
    sys.modules["smtplib"] = proxy
    suite = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module("test.test_smtplib"))
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=1).run(suite)

    ours = tuple(getattr(proxy, name) for name in REPLACED)
    return SuiteResult(
        run=result.testsRun,
        failed=[str(test) for test, _ in result.failures + result.errors]
        + [str(t) for t in result.unexpectedSuccesses],
        skipped=[[str(test), reason] for test, reason in result.skipped],
        made={f"{cls.__module__}.{cls.__qualname__}": count for cls, count in made.items()},
        missing=[name for name in EXERCISED if not made[getattr(proxy, name)]],
        foreign=[f"{cls.__module__}.{cls.__qualname__}" for cls in made if not issubclass(cls, ours)],
    )


def unavailable() -> str | None:
    """Why this interpreter cannot run the suite, or None where it can. Distributions often leave it out."""
    try:
        found = importlib.util.find_spec("test.test_smtplib")
    except ModuleNotFoundError:
        found = None
    return None if found else "this interpreter ships no test.test_smtplib"


def run_suite(implementation: str, *, path: Path | None = None, timeout: float = 60) -> tuple[SuiteResult, str]:
    """Run the suite in a fresh interpreter of this version against the module named `implementation`.

    `path` is a folder to import it from as well; `timeout` (seconds) bounds the run. Returns the result and
    unittest's report. Raises RuntimeError with the output if there is no result, and
    subprocess.TimeoutExpired.
    """
    command = [sys.executable, "-m", "tests.support.cpython_smtplib", "--json", "--implementation", implementation]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, timeout=timeout, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"the suite ended with exit code {done.returncode} and no result:\n{done.stderr[-4000:]}")
    return SuiteResult(**json.loads(lines[-1])), done.stderr


def main() -> int:
    """Run from the command line; the exit code is 0 only if the implementation passed."""
    parser = argparse.ArgumentParser(description="Run CPython's test_smtplib against another implementation.")
    parser.add_argument("--implementation", default="threadmail.smtp", help="module with SMTP, SMTP_SSL and LMTP")
    parser.add_argument("--json", action="store_true", help="print the result as a last line of JSON")
    options = parser.parse_args()
    if reason := unavailable():
        parser.error(reason)
    result = run_here(importlib.import_module(options.implementation))
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print("clients made:", ", ".join(f"{name} {count}" for name, count in sorted(result.made.items())))
        for name in result.missing:
            print(f"the suite never made the {name} of {options.implementation}")
        for name in result.foreign:
            print(f"the suite made a {name}, which is not under test")
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
