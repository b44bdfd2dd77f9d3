"""docs/faults.md is true: what it says is shown is shown, and nothing is cited that it does not list."""

import pytest

from tests.meta.faults import FAULTS, INVARIANTS, PAGE, citations, page, rows


def test_page_is_what_the_tests_cite() -> None:
    assert PAGE.read_text() == page(), "docs/faults.md is stale; its first line says how to make it anew"


@pytest.mark.parametrize(("kind", "text"), [("INV", INVARIANTS), ("F", FAULTS)])
def test_every_number_is_shown_by_a_test_and_no_other_is_cited(kind: str, text: str) -> None:
    listed = [number for number, _ in rows(text)]
    assert listed == list(range(1, len(listed) + 1))
    assert {number for name, number in citations() if name == kind} == set(listed)
