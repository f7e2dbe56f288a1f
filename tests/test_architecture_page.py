"""docs/architecture.md is of the code there is."""

from __future__ import annotations

import pytest

from stress import architecture
from tests.test_architecture import ON_TOP, ORDER


@pytest.mark.parametrize("name", [architecture.PAGE, architecture.PICTURE])
def test_the_page_is_what_is_made_from_the_code(name: str) -> None:
    written = (architecture.DOCS / name).read_text(encoding="utf-8")
    assert written == architecture.documents()[name], f"docs/{name} is stale: run python -m stress.architecture"


def test_the_picture_has_every_layer_in_its_order() -> None:
    shown = [name for step in architecture.STEPS for name in step]
    assert [name for name in shown if name not in ON_TOP] == ORDER
    assert set(shown) & set(ON_TOP) == {"cli", "testing"}


def test_at_least_twenty_questions_are_answered() -> None:
    assert len({question for question, _, _ in architecture.QUESTIONS}) >= 20


def test_what_is_not_there_is_not_linked() -> None:
    with pytest.raises(LookupError):
        architecture._link("_dispatch.schedule", "Schedule.no_such_thing")
    with pytest.raises(LookupError):
        architecture._link("_dispatch.no_such_module")
    assert "Schedule.submit" in architecture._link("_dispatch.schedule", "Schedule.submit")
