"""aiosmtpd, brought in without the warning that its import gives on new Pythons.

Owns that import: `aiosmtpd.proxy_protocol` takes `typing.ByteString`, which is deprecated and goes with Python 3.17;
from 3.15 on to take it is a DeprecationWarning. Where warnings are errors (`-W error`, pytest's `filterwarnings`) the
import fails, though neither we nor aiosmtpd's server use the name. Guarantees: that one warning is let go, once a
process; every other one comes through, and the filters are what they were. Who imports aiosmtpd later finds it there.
"""

from __future__ import annotations

import logging
import sys
import warnings

_BYTE_STRING = r".*\btyping\.ByteString\b.*"


def load() -> None:
    """Import `aiosmtpd.smtp`.

    Raises:
        ImportError: it is not installed.
    """
    if "aiosmtpd.proxy_protocol" in sys.modules:
        import aiosmtpd.smtp  # a process's filters are not swapped without need: other threads may be at it

        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _BYTE_STRING, DeprecationWarning)
        import aiosmtpd.smtp  # noqa: F401
    # It logs each command, on the server's one thread: a log handler under test that mails would mail from within the
    # server that is to answer it. Whoever wants to read it sets the level.
    log = logging.getLogger("mail.log")
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)
