"""`bin/test` runs every test in exactly the passes that its markers require."""

from itertools import chain, combinations

import pytest

from tests import needs
from tests.run import Pass, passes


KINDS = [set(kind) for kind in chain.from_iterable(combinations(needs.KINDS, number) for number in range(len(needs.KINDS) + 1))]
SQLITE, POSTGRESQL = "", "postgresql://postgres@127.0.0.1:5432/strongroom"
SERVERS = {"TEST_POSTGRESQL_URL": POSTGRESQL}
PRESENT = sorted(needs.EXTERNAL)


def passes_of(*, is_bare: bool = False, is_external: bool = False, is_long: bool = True) -> list[Pass]:
    return list(passes(SERVERS, PRESENT, is_bare=is_bare, is_external=is_external, is_long=is_long))


RUNS = [passes_of(), passes_of(is_bare=True), passes_of(is_external=True), passes_of(is_long=False)]


def test_selection_of_each_pass_agrees_with_has() -> None:
    for kind in KINDS:
        for each in chain.from_iterable(RUNS):
            selected = eval(each.selection, {name: name in kind for name in needs.KINDS})  # noqa: S307  like pytest
            assert bool(selected) == each.has(kind), (each.selection, kind)


def test_each_kind_runs_once_and_both_databases_also_on_postgresql() -> None:
    for kind in KINDS:
        databases = [each.environment.get("TEST_DATABASE_URL", SQLITE) for each in RUNS[0] if each.has(kind)]
        if "quiet" in kind:
            assert databases == [SQLITE], kind
        elif "external" in kind:
            assert databases == [POSTGRESQL], kind
        else:
            assert databases == ([SQLITE, POSTGRESQL] if "both_databases" in kind else [SQLITE]), kind


def test_bare_and_external_runs_add_up_to_a_full_run() -> None:
    whole, bare, external, _ = RUNS
    for kind in KINDS:
        assert sum(each.has(kind) for each in [*bare, *external]) == sum(each.has(kind) for each in whole), kind


def test_quiet_tests_run_in_a_separate_last_pass_outside_the_gate() -> None:
    for run in RUNS[:3]:
        assert [each.is_quiet for each in run] == [False] * (len(run) - 1) + [True]
        assert not any(each.has(kind) for each in run[:-1] for kind in KINDS if "quiet" in kind)
    assert not any(each.has(kind) for each in RUNS[3] for kind in KINDS if "quiet" in kind)


@pytest.mark.quiet
def test_quiet_is_long(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("long")
