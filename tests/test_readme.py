"""The README's examples run as they stand, against a server on this machine instead of example.com."""

from __future__ import annotations

import re
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail import message
from threadmail.cli.options import parser
from threadmail.testing import CaptureServer

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def example(heading: str) -> str:
    section = README.partition(f"# {heading}\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return re.sub(r'"smtp[a-z+]*://[^"]*"', "URL", block)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: str(b).splitlines()[0][:40])
def test_every_example_compiles(block: str) -> None:
    compile(block, "README.md", "exec")


@pytest.mark.parametrize(
    ("heading", "sent"),
    [
        ("threadmail", 1),
        ("One shared client", 3),
        ("A pool", 3),
        ("Many messages at once", 6),
        ("Large mail, many recipients", 3),
        ("Fewer round trips", 2),
        ("Which one", 1),
    ],
)
def test_the_examples_send(
    heading: str, sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each by itself, with no name from another one but the messages: as a reader copies it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "newsletter.eml").write_bytes(b"From: shop@example.com\r\nTo: readers@example.com\r\n\r\nNews\r\n")
    told: list[Any] = []
    names = {
        "message": message("m"),
        "messages": [message(name) for name in "ab"],
        "newsletter": [message(name) for name in "ab"],
        "stream": iter([message(name) for name in "cde"]),
        "invoice": message("invoice"),
        "delivery_note": message("note"),
        "readers": [f"{name}@example.net" for name in "abc"],
        "log": told.append,
    }
    with CaptureServer() as server:
        monkeypatch.setenv("THREADMAIL_URL", server.url)
        scope: dict[str, Any] = {**names, "URL": server.url}
        exec(compile(example(heading), "README.md", "exec"), scope)
        for name in ("client", "pool"):
            if name in scope:
                scope[name].close()
        assert len(server.wait_for(sent)) == sent
        assert isinstance(scope["message"], EmailMessage)
    for line in re.findall(r"print\((?:report|client\.send\(message\))\) +# (.+)", example(heading)):
        assert line in capsys.readouterr().out


def test_the_first_program_talks_to_the_sandbox_as_it_starts() -> None:
    port = parser().parse_args(["sandbox"]).port
    assert f'Client("smtp://localhost:{port}")' in README
    [block] = re.findall(
        r"^\$ threadmail sandbox --port ([0-9]+).*\n\$ threadmail send --server smtp://localhost:\1 ", README, re.M
    )
    assert block == str(port)
