"""The page of hazards and the suite stay in step: each test it names is there, and each test of a hazard is on it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "hazards.md").read_text(encoding="utf-8")


@functools.cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_every_test_on_the_page_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 50
    missing = [f"{file}::{name}" for file, name in named if name not in names_in(TESTS / file)]
    assert missing == []


def test_every_hazard_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| hazard")]
    assert len(rows) > 25
    assert [row for row in rows if "::test_" not in row] == []
