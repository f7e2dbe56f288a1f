"""What every test is held to, and what it can rely on.

No thread of a test survives it; Ctrl-C comes through; what is tested is the checkout, and not another copy that happens
to be installed. Marks each test by what it is for and what it needs: `proof`, `slow`, `servers`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest

import threadmail
from threadmail.testing import _aiosmtpd

pytest_plugins = ["pytester"]

HAS_TRUSTME = importlib.util.find_spec("trustme") is not None
if importlib.util.find_spec("aiosmtpd") is not None:
    _aiosmtpd.load()  # some tests import it by themselves, with every warning an error


ROOT = Path(__file__).resolve().parent.parent
COPY = Path(threadmail.__file__).resolve().parent

#: Says that another copy is to be tested, an installed wheel for example.
ANOTHER_COPY = "THREADMAIL_TEST_INSTALLED"

#: Which modules, as patterns below tests/, are marked how.
MARKED = {
    "proof": ("proof/*", "test_decisions_*", "*/test_decisions_*", "detsched/*", "judges/*", "stress/test_report.py"),
    "servers": (
        "test_postfix.py",
        "test_dovecot.py",
        "session/test_riding_counted.py",
        "judges/test_traps.py",
        "reliability/test_real_servers.py",
    ),
    "slow": (
        "reliability/*",
        "stress/test_bench.py",
        "test_cpython_smtplib.py",
        "test_dovecot.py",
        "test_exit.py",
        "test_postfix.py",
        "dispatch/test_schedule_machine.py",
        "known/test_known_groups.py",
        "session/test_riding_counted.py",
        "session/test_sharing.py",
        "stress/test_figures.py",
        "stress/test_stress_smoke.py",
    ),
}


def pytest_report_header() -> str:
    return f"threadmail: {COPY}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for patterns in MARKED.values():
        for pattern in patterns:
            assert any((ROOT / "tests").glob(pattern)), f"no module is called {pattern} any more"
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        for mark, patterns in MARKED.items():
            if any(fnmatch(path, pattern) for pattern in patterns):
                item.add_marker(mark)


def pytest_configure() -> None:
    if COPY.parent != ROOT and not os.environ.get(ANOTHER_COPY):
        raise pytest.UsageError(
            f"this would test {COPY}, not {ROOT / 'threadmail'}: `pip install -e '.[test]'`, or set {ANOTHER_COPY}=1"
        )
    # A shell that starts us in the background may have it ignored, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Skip what needs certificates where none can be made: trustme has no wheel for free-threaded CPython 3.13."""
    try:
        yield
    except ImportError as error:
        if HAS_TRUSTME or "trustme" not in str(error):
            raise
        pytest.skip("trustme is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    with _without_certificates():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    with _without_certificates():
        yield


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    """Fail a test that leaves a thread behind; sockets left open are ResourceWarnings, which are errors."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 10.0
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(max(0.0, end - time.monotonic()))
    alive = [thread.name for thread in left if thread.is_alive()]
    assert not alive, f"threads left behind: {alive}"
