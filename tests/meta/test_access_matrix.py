"""Every address asked by everybody, as `matrix.py` has it (F-50, INV-01)."""

from collections import defaultdict
from dataclasses import asdict, replace
from itertools import product

import pytest
from django.test import Client

from tests.meta.access_world import (
    UNKNOWN,
    Names,
    Response,
    World,
    find_leaks,
    make_world,
    outcome_of,
    rolled_back,
    send,
    send_row,
    set_up,
    situation_of,
    suspend_tenant_for,
)
from tests.meta.internals import exposed_internals
from tests.meta.matrix import COLUMNS, EMPTY, PAGE, ROWS, Row, page
from tests.meta.url_routes import routes
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, starts_from(make_world)]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


def test_table_has_every_address_and_method_and_no_other() -> None:
    served = {(path, method) for path, methods in routes().items() for method in methods - {"HEAD"}}
    assert {(row.path, row.method) for row in ROWS} == served


def test_table_has_both_states_of_whatever_is_about_a_collection() -> None:
    states: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        states.setdefault((row.path, row.method), []).append(row.state)
    of_collections = (["open", "deleted"], ["open", "deleted", "held", "in_review"])
    for (path, _), found in states.items():
        if "{slug}" in path or "{token}" in path:
            assert found in of_collections
        elif "{request_id}" in path:
            assert set(found) <= {"in_review", "returned", "failed", "released"}
        else:
            assert found in (["-"], ["in_review"], *of_collections)


def test_views_that_answer_head_are_those_that_answer_get() -> None:
    assert not [path for path, methods in routes().items() if "HEAD" in methods and "GET" not in methods]


def test_page_shows_the_table() -> None:
    assert PAGE.read_text() == page(), "docs/access.md is stale; its first line says how to make it anew"


# --- Everybody asks everything ---

KINDS = ("admin", "other", "anonymous")  # who may, a stranger, and without a token
REFUSED = ("viewer", "member", "other")  # who can no longer read it, a colleague, and a stranger
AT_ONCE = 12  # rows in a test: their set-up is made once, and the five minutes of an access token suffice on a busy machine


def grouped() -> list[tuple[str, list[Row]]]:
    """Rows that are asked in the same situation."""
    by_situation: defaultdict[str, list[Row]] = defaultdict(list)
    for row in ROWS:
        by_situation[situation_of(row)].append(row)
    return [
        (situation, rows[start : start + AT_ONCE])
        for situation, rows in by_situation.items()
        for start in range(0, len(rows), AT_ONCE)
    ]


in_each_situation = pytest.mark.parametrize(("situation", "rows"), grouped())
everybody_under_long = pytest.mark.parametrize(
    "people", [KINDS, pytest.param(tuple(COLUMNS), marks=pytest.mark.long)], ids=["kinds", "everybody"]
)


def send_as(who: str, row: Row, world: World, names: Names) -> Response:
    with rolled_back():
        suspend_tenant_for(world, who)
        return send_row(row, world, names, who)


@pytest.mark.both_databases
@in_each_situation
def test_everybody_is_answered_as_the_table_says(
    situation: str, rows: list[Row], world: World, subtests: pytest.Subtests
) -> None:
    """Who is refused sees nothing of the collection, and the same as of one that never was."""
    set_up(world, situation)
    for row in rows:
        with subtests.test(row=str(row)):
            answers = {who: send_as(who, row, world, world.names) for who in COLUMNS}
            assert {who: outcome_of(*answer[:2]) for who, answer in answers.items()} == row.answers
            assert [exposed_internals(content + repr(headers).encode()) for _, content, headers in answers.values()] == [
                []
            ] * len(COLUMNS)
            readers = {who for who, expected in row.answers.items() if expected[0] in "23" and expected != EMPTY}
            leaks = {who: find_leaks(world, who, answer) for who, answer in answers.items() if who not in readers}
            assert not {who: found for who, found in leaks.items() if found}
            unknown = {who: send_as(who, row, world, UNKNOWN) for who in REFUSED if row.answers[who] in {"404", "400"}}
            assert unknown == {who: answers[who] for who in unknown}


@pytest.mark.long
@in_each_situation
def test_everybody_is_refused_as_if_there_was_nothing(
    situation: str, rows: list[Row], world: World, subtests: pytest.Subtests
) -> None:
    set_up(world, situation)
    for row in rows:
        for who in [who for who in COLUMNS if row.answers[who] in {"404", "400"}]:
            with subtests.test(row=str(row), who=who):
                assert send_as(who, row, world, UNKNOWN) == send_as(who, row, world, world.names)


@everybody_under_long
@in_each_situation
def test_head_is_answered_as_get(
    situation: str, rows: list[Row], people: tuple[str, ...], world: World, subtests: pytest.Subtests
) -> None:
    read = [row for row in rows if row.method == "GET"]
    if read:
        set_up(world, situation)
    for row, who in product(read, people):
        with subtests.test(row=str(row), who=who):
            status, content, headers = send_as(who, replace(row, method="HEAD"), world, world.names)
            expected = "200" if row.answers[who] == EMPTY else row.answers[who]
            assert (str(status), content) == (expected, b"")
            assert expected[0] in "23" or find_leaks(world, who, (status, content, headers)) == []


@everybody_under_long
@pytest.mark.parametrize("path", routes())
def test_every_other_method_is_refused_whatever_the_address_names(path: str, people: tuple[str, ...], world: World) -> None:
    served = {row.method for row in ROWS if row.path == path}
    for method in [method for method in METHODS if method not in served and not (method == "HEAD" and "GET" in served)]:
        for who in people:
            answers = [send(world.clients[who], method, path.format_map(asdict(names))) for names in (world.names, UNKNOWN)]
            status, content, headers = answers[0]
            assert status in ({401, 405} if who in {"inactive", "anonymous"} else {405}), (method, who)
            assert headers["Content-Type"] == "application/problem+json", (method, who)
            assert answers[0] == answers[1], (method, who)
            assert exposed_internals(content) == [], (method, who)
            assert set(headers.get("Allow", "").split(", ")) - {"HEAD", "OPTIONS", ""} <= served, (method, who)


@in_each_situation
def test_session_of_the_admin_site_opens_nothing_here(
    situation: str, rows: list[Row], world: World, subtests: pytest.Subtests
) -> None:
    """As nobody, for everybody: a cookie that a browser sends by itself must not carry out a request (T-16)."""
    signed_in = Client()
    signed_in.force_login(world.people["admin"])  # type: ignore[arg-type]
    set_up(world, situation)
    for row in rows:
        with subtests.test(row=str(row)), rolled_back():
            answer = send_row(row, world, world.names, "anonymous", signed_in)
            assert outcome_of(*answer[:2]) == row.answers["anonymous"]
