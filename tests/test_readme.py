"""The README's examples run as they stand, against a server on this machine instead of example.com."""

from __future__ import annotations

import re
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import message
from threadmail.testing import CaptureServer

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def example(heading: str) -> str:
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return re.sub(r'"smtp[a-z+]*://[^"]*"', "URL", block)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: str(b).splitlines()[0][:40])
def test_every_example_compiles(block: str) -> None:
    compile(block, "README.md", "exec")


@pytest.mark.parametrize(("heading", "sent"), [("One shared client", 3), ("A pool", 3), ("Many messages at once", 6)])
def test_the_examples_send(heading: str, sent: int, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[Any] = []
    names = {
        "message": message("m"),
        "messages": [message(name) for name in "ab"],
        "newsletter": [message(name) for name in "ab"],
        "stream": iter([message(name) for name in "cde"]),
        "invoice": message("invoice"),
        "delivery_note": message("note"),
        "log": told.append,
    }
    with CaptureServer() as server:
        scope: dict[str, Any] = {**names, "URL": server.url}
        exec(compile(example(heading), "README.md", "exec"), scope)
        if "client" in scope:
            scope["client"].close()
        assert len(server.wait_for(sent)) == sent
        assert isinstance(scope["message"], EmailMessage)
