"""Every address asked by everybody, as `matrix.py` has it (F-50, INV-01)."""

from dataclasses import asdict, replace

import pytest
from django.test import Client

from tests.meta.addresses import routes
from tests.meta.everybody import UNKNOWN, World, ask, ask_row, leaked, make_world, prepare, set_up, told, undone
from tests.meta.leaks import insides
from tests.meta.matrix import COLUMNS, EMPTY, PAGE, ROWS, Row, page
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


@pytest.mark.both_databases
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, world: World) -> None:
    """Each answer is the table's; whoever is refused sees nothing of the collection, and the same as of one that never was."""
    answers, leaks, tells = {}, {}, []
    set_up(world, row)
    for who in COLUMNS:
        with undone():
            prepare(world, who)
            answer = ask_row(row, world, world.names, who)
        answers[who] = told(*answer[:2])
        assert insides(answer[1] + repr(answer[2]).encode()) == []
        is_reader = row.answers[who][0] in "23" and row.answers[who] != EMPTY
        if not is_reader and (found := leaked(world, who, answer)):
            leaks[who] = found
        if row.answers[who] in {"404", "400"}:
            with undone():
                prepare(world, who)
                unknown = ask_row(row, world, UNKNOWN, who)
            if unknown != answer:
                tells.append((who, answer, unknown))
    assert answers == row.answers
    assert leaks == {}
    assert tells == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.method == "GET"], ids=str)
def test_head_is_answered_as_get(row: Row, world: World) -> None:
    set_up(world, row)
    for who in COLUMNS:
        with undone():
            prepare(world, who)
            status, content, headers = ask_row(replace(row, method="HEAD"), world, world.names, who)
        expected = "200" if row.answers[who] == EMPTY else row.answers[who]
        assert (who, str(status), content) == (who, expected, b"")
        if expected[0] not in "23":
            assert leaked(world, who, (status, content, headers)) == []


@pytest.mark.parametrize("path", routes())
def test_every_other_method_is_refused_whatever_the_address_names(path: str, world: World) -> None:
    served = {row.method for row in ROWS if row.path == path}
    for method in [method for method in METHODS if method not in served and not (method == "HEAD" and "GET" in served)]:
        for who in COLUMNS:
            answers = [ask(world.clients[who], method, path.format_map(asdict(names))) for names in (world.names, UNKNOWN)]
            status, content, headers = answers[0]
            assert status in ({401, 405} if who in {"inactive", "nobody"} else {405}), (method, who)
            assert headers["Content-Type"] == "application/problem+json"
            assert answers[0] == answers[1]
            assert insides(content) == []
            assert set(headers.get("Allow", "").split(", ")) - {"HEAD", "OPTIONS", ""} <= served


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_session_of_the_admin_site_opens_nothing_here(row: Row, world: World) -> None:
    """As nobody, for everybody: a cookie that a browser sends by itself must not carry out a request (T-16)."""
    signed_in = Client()
    signed_in.force_login(world.people["admin"])  # type: ignore[arg-type]
    with undone():
        set_up(world, row)
        answer = ask_row(row, world, world.names, "nobody", signed_in)
    assert told(*answer[:2]) == row.answers["nobody"]
