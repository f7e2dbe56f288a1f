"""What every test is held to, and what it can rely on: no thread of it survives, and Ctrl-C comes through."""

from __future__ import annotations

import importlib.util
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from threadmail.testing import _aiosmtpd

pytest_plugins = ["pytester"]

HAS_TRUSTME = importlib.util.find_spec("trustme") is not None
if importlib.util.find_spec("aiosmtpd") is not None:
    _aiosmtpd.load()  # some tests import it by themselves, with every warning an error


def pytest_configure() -> None:
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
