"""docs/faults.md is current, every number in it has a test, and tests cite only numbers in it."""

import pytest

from tests.meta.faults import FAULTS, INVARIANTS, PAGE, citations, page, rows


def test_page_is_current() -> None:
    assert PAGE.read_text() == page(), "docs/faults.md is stale; its first line says how to update it"


@pytest.mark.parametrize(("kind", "text"), [("INV", INVARIANTS), ("F", FAULTS)])
def test_listed_and_cited_numbers_are_the_same(kind: str, text: str) -> None:
    listed = [number for number, _ in rows(text)]
    assert listed == list(range(1, len(listed) + 1))
    assert {number for name, number in citations() if name == kind} == set(listed)
