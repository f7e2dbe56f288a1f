"""CPython's own tests of smtplib hold for threadmail's classes in the places of the standard library's.

That is what "change one import line" rests on. The other tests check the checker: a class that is broken, and
an implementation that is never used, must not pass.
"""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

import pytest

from tests.support import cpython_smtplib

if reason := cpython_smtplib.unavailable():
    pytest.skip(reason, allow_module_level=True)

# 3.10 to 3.12 have 82, 3.13 has 83. Fewer means that the suite did not run whole.
AT_LEAST = 80


def implementation(folder: Path, source: str) -> str:
    """Write a module that offers smtplib's classes changed by `source`, and return its name."""
    module = folder / "smtplib_stand_in.py"
    module.write_text("import smtplib, socket\n" + textwrap.dedent(source))
    return module.stem


FAITHFUL = """
    class SMTP(smtplib.SMTP): pass
    class SMTP_SSL(smtplib.SMTP_SSL): pass
    class LMTP(smtplib.LMTP): pass
"""


@pytest.mark.skipif(importlib.util.find_spec("threadmail.smtp") is None, reason="threadmail.smtp is not there")
def test_suite_passes_with_our_classes() -> None:
    result, report = cpython_smtplib.run_suite("threadmail.smtp")
    assert not result.failed, report
    assert result.passed, result
    assert result.run >= AT_LEAST
    # The one skip the suite allows itself here: another process sits on the source port it picked.
    assert [test for test, why in result.skipped if "bind to source port" not in why] == []


def test_plain_subclasses_pass(tmp_path: Path) -> None:
    result, report = cpython_smtplib.run_suite(implementation(tmp_path, FAITHFUL), path=tmp_path)
    assert result.passed, report
    assert result.run >= AT_LEAST
    assert result.made["smtplib_stand_in.SMTP"] > 50
    assert result.made["smtplib_stand_in.LMTP"] >= 10


def test_a_broken_class_fails(tmp_path: Path) -> None:
    source = FAITHFUL + "    SMTP.expn = lambda self, address: (500, b'broken on purpose')\n"
    result, _ = cpython_smtplib.run_suite(implementation(tmp_path, source), path=tmp_path)
    assert not result.passed
    assert {test.split()[0] for test in result.failed} == {"testEXPN"}


def test_classes_that_are_not_ours_fail(tmp_path: Path) -> None:
    source = """
        SMTP_SSL, LMTP = smtplib.SMTP_SSL, smtplib.LMTP
        class SMTP(smtplib.SMTP):
            def __new__(cls, *args, **kwargs):
                return smtplib.SMTP(*args, **kwargs)
    """
    result, report = cpython_smtplib.run_suite(implementation(tmp_path, source), path=tmp_path)
    assert not result.failed, report
    assert result.missing == ["SMTP"]
    assert result.foreign == ["smtplib.SMTP"]
    assert not result.passed
