"""Every endpoint, requested by every kind of user: the responses are those in `matrix.py` (F-50, INV-01)."""

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


def test_matrix_lists_every_path_and_method() -> None:
    served = {(path, method) for path, methods in routes().items() for method in methods - {"HEAD"}}
    assert {(row.path, row.method) for row in ROWS} == served


def test_matrix_covers_all_states_of_collections_and_requests() -> None:
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


def test_views_with_head_have_get() -> None:
    assert not [path for path, methods in routes().items() if "HEAD" in methods and "GET" not in methods]


def test_page_is_current() -> None:
    assert PAGE.read_text() == page(), "docs/access.md is stale; its first line says how to update it"


# --- Every request by every kind of user ---

GATE_USERS = ("admin", "other", "anonymous")
OUTSIDERS = ("viewer", "member", "other")  # users who may not know of a deleted collection
ROWS_PER_TEST = 12  # they share one set-up, and finish within the lifetime of an access token (five minutes) on a busy machine


def grouped() -> list[tuple[str, list[Row]]]:
    """Groups the rows whose requests need the same set-up."""
    by_situation: defaultdict[str, list[Row]] = defaultdict(list)
    for row in ROWS:
        by_situation[situation_of(row)].append(row)
    return [
        (situation, rows[start : start + ROWS_PER_TEST])
        for situation, rows in by_situation.items()
        for start in range(0, len(rows), ROWS_PER_TEST)
    ]


in_each_situation = pytest.mark.parametrize(("situation", "rows"), grouped())
every_user_with_long = pytest.mark.parametrize(
    "people", [GATE_USERS, pytest.param(tuple(COLUMNS), marks=pytest.mark.long)], ids=["some", "all"]
)


def send_as(who: str, row: Row, world: World, names: Names) -> Response:
    with rolled_back():
        suspend_tenant_for(world, who)
        return send_row(row, world, names, who)


@pytest.mark.both_databases
@in_each_situation
def test_response_to_every_user_is_in_the_matrix(
    situation: str, rows: list[Row], world: World, subtests: pytest.Subtests
) -> None:
    """A refusal exposes nothing of the collection, and is the same as for a collection that never existed."""
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
            unknown = {who: send_as(who, row, world, UNKNOWN) for who in OUTSIDERS if row.answers[who] in {"404", "400"}}
            assert unknown == {who: answers[who] for who in unknown}


@pytest.mark.long
@in_each_situation
def test_refusal_is_the_same_for_an_unknown_object(
    situation: str, rows: list[Row], world: World, subtests: pytest.Subtests
) -> None:
    set_up(world, situation)
    for row in rows:
        for who in [who for who in COLUMNS if row.answers[who] in {"404", "400"}]:
            with subtests.test(row=str(row), who=who):
                assert send_as(who, row, world, UNKNOWN) == send_as(who, row, world, world.names)


@every_user_with_long
@in_each_situation
def test_head_has_the_status_of_get(
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


@every_user_with_long
@pytest.mark.parametrize("path", routes())
def test_unsupported_method_is_refused_for_known_and_unknown_objects(path: str, people: tuple[str, ...], world: World) -> None:
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
def test_session_of_the_admin_site_does_not_authenticate(
    situation: str, rows: list[Row], world: World, subtests: pytest.Subtests
) -> None:
    """A cookie that a browser sends automatically must not authorise a request (T-16)."""
    signed_in = Client()
    signed_in.force_login(world.people["admin"])  # type: ignore[arg-type]
    set_up(world, situation)
    for row in rows:
        with subtests.test(row=str(row)), rolled_back():
            answer = send_row(row, world, world.names, "anonymous", signed_in)
            assert outcome_of(*answer[:2]) == row.answers["anonymous"]
