"""The pytest plugin and the package's import: cheap, harmless, and useful when asked."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import threadmail.testing

pytest_plugins = ("pytester",)

PLUGIN = "threadmail.testing.pytest_plugin"
#: Where threadmail is installed pytest loads the plugin by itself, and once only.
INSTALLED = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
LOAD = () if INSTALLED else ("-p", PLUGIN)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of somebody else's."""
    # An editable install leaves its egg-info beside the package, and pytest would rewrite that, were it not there yet.
    already = "ignore:Module already imported so cannot be rewritten"
    pytester.makeini(f"[pytest]\nfilterwarnings =\n    error\n    {already}\n")
    return pytester


def test_the_fixtures_catch_what_the_code_under_test_sends(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import smtplib
        import threading

        def send(server, subject):
            with smtplib.SMTP(server.host, server.port, timeout=5) as client:
                client.sendmail("a@example.test", ["b@example.test"], f"Subject: {subject}\\r\\n\\r\\n")

        def test_one(threadmail_server, threadmail_outbox):
            assert threadmail_outbox == []
            send(threadmail_server, "first")
            assert [mail.message["Subject"] for mail in threadmail_outbox] == ["first"]
            assert threadmail_server.url == f"smtp://127.0.0.1:{threadmail_server.port}"

        def test_another_starts_afresh(threadmail_outbox, threadmail_server):
            assert len(threadmail_outbox) == 0
            send(threadmail_server, "second")
            [mail] = threadmail_server.wait_for(1)
            assert threadmail_outbox[0] is mail

        def test_and_nothing_is_left():
            assert [thread.name for thread in threading.enumerate() if "threadmail" in thread.name] == []
        """
    )
    project.runpytest_inprocess(*LOAD).assert_outcomes(passed=3)


def test_without_aiosmtpd_the_fixture_fails_with_the_line_to_type(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiosmtpd.smtp", None)
    project.makepyfile(
        """
        def test_with(threadmail_server):
            raise SystemError("must not run")

        def test_without():
            pass
        """
    )
    result = project.runpytest_inprocess(*LOAD)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*pip install 'threadmail?sandbox?'*"])


def test_the_fixtures_are_listed_with_their_first_line(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess(*LOAD, "--fixtures")
    result.stdout.fnmatch_lines(["threadmail_server*", "*A running*CaptureServer*", "threadmail_outbox*"])


def test_importing_the_plugin_or_the_package_loads_nothing_that_was_not_asked_for() -> None:
    script = (
        "import sys, pytest\n"
        f"import {PLUGIN}\n"
        "import threadmail.testing\n"
        "before = set(sys.modules)\n"
        "print(sorted(name for name in before if name.startswith('threadmail.testing.')))\n"
        "print(sorted({'aiosmtpd', 'trustme'} & before))\n"
        "from threadmail.testing import ScriptedServer, CaptureServer, TestCA\n"
        "print(sorted({'aiosmtpd', 'trustme'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert result.stdout.splitlines() == ["['threadmail.testing.pytest_plugin']", "[]", "[]"]
    assert result.stderr == ""


def strictly(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python for which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


#: `typing` as it is from Python 3.15 on, for those before.
DEPRECATED = """
import sys, typing, warnings
class Typing(type(typing)):
    def __getattr__(self, name):
        if name != "ByteString":
            raise AttributeError(name)
        warnings.warn("'typing.ByteString' and 'collections.abc.ByteString' are deprecated", DeprecationWarning, 2)
        return bytes
if "ByteString" in vars(typing):
    del typing.ByteString
    typing.__class__ = Typing
"""


def test_the_server_starts_where_warnings_are_errors() -> None:
    """aiosmtpd takes a deprecated name of `typing`: that warning is let go, and no other, before or behind."""
    bare = strictly("-c", f"{DEPRECATED}\nimport aiosmtpd.smtp")
    assert "DeprecationWarning: 'typing.ByteString'" in bare.stderr  # or nothing is shown by what follows
    result = strictly(
        "-c",
        f"{DEPRECATED}\n"
        "from threadmail.testing import CaptureServer\n"
        "filters = list(warnings.filters)\n"
        "with CaptureServer(), CaptureServer():\n"
        "    print('aiosmtpd.smtp' in sys.modules, warnings.filters == filters)\n"
        "warnings.warn('typing.ByteString', DeprecationWarning)\n",
    )
    assert result.stdout == "True True\n", result.stderr
    assert result.stderr.endswith("DeprecationWarning: typing.ByteString\n")


def test_the_demo_runs_where_warnings_are_errors() -> None:
    """As a user has it with PYTHONWARNINGS=error."""
    run = f"{DEPRECATED}\nfrom threadmail.cli import main\nsys.exit(main(['demo', '--quiet', '--messages', '8']))"
    result = strictly("-c", run)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_public_name_can_be_had_and_is_listed() -> None:
    for name in threadmail.testing.__all__:
        assert getattr(threadmail.testing, name) is not None
        assert name in dir(threadmail.testing)
    assert sorted(threadmail.testing.__all__) == sorted(set(threadmail.testing.__all__))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = threadmail.testing.Nothing  # type: ignore[attr-defined]
