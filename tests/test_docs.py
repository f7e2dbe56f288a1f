"""The examples of the guides run as they stand, against a server on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import message
from threadmail.testing import CaptureServer

DOCS = Path(__file__).resolve().parents[1] / "docs"


def examples() -> Iterator[Any]:
    for page in ("sender.md",):
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)):
            yield pytest.param(block, id=f"{page}-{number}")


@pytest.mark.parametrize("block", list(examples()))
def test_an_example_runs_and_leaves_nothing_behind(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"letters": [message(name) for name in "abc"], "later": [], "journal": []}
    with CaptureServer() as server:
        exec(compile(block, "example", "exec"), {**scope, "URL": server.url})
        assert server.messages or "cancel" in block
    assert scope["later"] == []
    assert "error" not in capsys.readouterr().err.lower()
