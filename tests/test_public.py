"""The public names, and how each is called: what users write must go on working."""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path
from types import GenericAlias
from typing import Any

import threadmail

#: Made by `python -m tests.test_public`; a difference is a change that users notice, and needs a line in CHANGELOG.
RECORD = Path(__file__).with_name("data") / "public.json"


def signature(call: Any) -> str:
    if isinstance(call, enum.EnumMeta):
        return "value"
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return ""
    # Names, kinds and whether there is a default; types and defaults read differently from version to version.
    bare = [each.replace(annotation=each.empty, default=each.empty) for each in parameters]
    given = [each.default is not each.empty for each in parameters]
    return ", ".join(f"{each}{'=' if has else ''}" for each, has in zip(bare, given, strict=True))


def members(owner: type) -> dict[str, str]:
    """Methods and properties of a class of ours, with how they are called; not those of the standard library."""
    found = {}
    for name in dir(owner):
        ours = any(name in vars(base) for base in owner.__mro__ if base.__module__.startswith("threadmail"))
        if name.startswith("_") or not ours:
            continue
        member = inspect.getattr_static(owner, name)
        if isinstance(member, (classmethod, staticmethod)):
            member = member.__func__
        found[name] = f"({signature(member)})" if callable(member) else "value"
    return found


def public() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in threadmail.__all__:
        named = getattr(threadmail, name)
        if inspect.isclass(named) and not isinstance(named, GenericAlias):  # which passes for a class on 3.10
            found[name] = {"": f"({signature(named)})", **members(named)}
        else:
            found[name] = "a type"
    return found


def test_what_users_write_goes_on_working() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    now = public()
    assert now.keys() == recorded.keys()
    for name, shape in recorded.items():
        assert now[name] == shape, f"{name} is not what it was: python -m tests.test_public, and a line in CHANGELOG"


def test_every_public_name_is_there_and_stands_once() -> None:
    assert len(set(threadmail.__all__)) == len(threadmail.__all__)
    assert [name for name in threadmail.__all__ if not hasattr(threadmail, name)] == []


if __name__ == "__main__":
    RECORD.write_text(json.dumps(public(), indent=1) + "\n", encoding="utf-8")
