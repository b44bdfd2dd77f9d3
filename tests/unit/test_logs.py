import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import path

from config import problems
from config.logs import JsonFormatter
from tenants.request_context import request_id


# The end of a request looks after the database connection that an earlier test of this process may have left open.
pytestmark = pytest.mark.django_db


HOSTILE = 'a\r\n{"status": 200}\x1b[31m\u2028\u202e\x00\ud800.txt'


def plain(request: HttpRequest, name: str) -> HttpResponse:
    return HttpResponse(b"12345")


def streamed(request: HttpRequest, name: str) -> StreamingHttpResponse:
    def pieces() -> Iterator[bytes]:
        logging.getLogger("files").info("reading")
        yield b"123"
        yield b"45"

    return StreamingHttpResponse(pieces(), headers={"Content-Length": "5"})


def identified(request: HttpRequest, name: str) -> HttpResponse:
    request.user = AnonymousUser()
    request.user.pk = 7  # type: ignore[assignment]
    return HttpResponse(b"")


def broken(request: HttpRequest, name: str) -> HttpResponse:
    key = "hunter2"
    try:
        raise KeyError(key)
    except KeyError as error:
        raise ValueError(f"cannot open {name}") from error


urlpatterns = [
    path("plain/<str:name>", plain),
    path("streamed/<str:name>", streamed),
    path("identified/<str:name>", identified),
    path("broken/<str:name>", broken),
]
handler500 = problems.server_error


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.texts) if line["message"] == "request"]


@pytest.fixture
def lines(settings: Any) -> Iterator[Lines]:
    settings.MIDDLEWARE = ["config.logs.RequestLog"]
    settings.ROOT_URLCONF = __name__
    handler = Lines()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    request_id.set("")


def test_request_line_has_route_and_never_path_or_query(client: Client, lines: Lines) -> None:
    response = client.get("/plain/secret-plan.txt?token=hunter2", headers={"user-agent": "agent\x1b[31m"})
    (line,) = lines.requests()
    assert line["route"] == "plain/<str:name>"
    assert (line["method"], line["status"], line["bytes"]) == ("GET", 200, 5)
    assert line["duration_ms"] >= 0
    assert line["request_id"] == response["X-Request-ID"]
    assert not re.search("secret-plan|hunter2|agent", "".join(lines.texts))


def test_request_line_of_unknown_route_has_none(client: Client, lines: Lines) -> None:
    client.get("/nowhere/secret-plan.txt")
    (line,) = lines.requests()
    assert (line["route"], line["status"]) == (None, 404)
    assert "secret-plan" not in "".join(lines.texts)


def test_request_id_is_new_each_time_and_not_taken_from_the_client(client: Client, lines: Lines) -> None:
    ids = {client.get("/plain/x", headers={"x-request-id": "mine"})["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3
    assert "mine" not in ids


def test_request_line_of_a_stream_is_written_at_its_end(client: Client, lines: Lines) -> None:
    response = client.get("/streamed/x")
    assert lines.requests() == []
    assert b"".join(response) == b"12345"
    response.close()
    (line,) = lines.requests()
    assert line["bytes"] == 5
    assert "cut" not in line
    inside = json.loads(lines.texts[0])
    assert (inside["message"], inside["request_id"]) == ("reading", response["X-Request-ID"])


def test_request_line_of_a_stream_that_was_cut_says_so(client: Client, lines: Lines) -> None:
    response = client.get("/streamed/x")
    next(iter(response))
    response.close()
    (line,) = lines.requests()
    assert (line["bytes"], line["cut"]) == (3, True)


def test_request_line_of_a_stream_that_never_began_is_written(client: Client, lines: Lines) -> None:
    client.head("/streamed/x").close()
    (line,) = lines.requests()
    assert line["bytes"] == 0
    assert "cut" not in line


def test_request_line_names_the_user_by_id(client: Client, lines: Lines) -> None:
    client.get("/identified/x")
    assert lines.requests()[0]["user"] == 7


def test_exception_is_logged_without_its_arguments(client: Client, lines: Lines) -> None:
    try:
        client.get("/broken/secret-plan.txt")
    except ValueError:
        logging.getLogger("files").exception("request failed")
    line = json.loads(lines.texts[-1])
    assert line["exception"] == "builtins.ValueError < builtins.KeyError"
    assert any(frame.endswith(" broken") for frame in line["trace"])
    assert not re.search("secret-plan|hunter2", "".join(lines.texts))


def test_request_that_fails_leaves_its_exception_under_the_id_that_the_client_is_told(client: Client, lines: Lines) -> None:
    client.raise_request_exception = False
    answer = client.get("/broken/secret-plan.txt")
    assert (answer.status_code, answer.json()["code"]) == (500, "error")
    (failure,) = [line for line in map(json.loads, lines.texts) if "exception" in line]
    assert failure["exception"] == "builtins.ValueError < builtins.KeyError"
    assert failure["request_id"] == answer["X-Request-ID"]
    assert not re.search("secret-plan|hunter2", "".join(lines.texts) + answer.content.decode())


def test_extra_that_is_no_plain_value_is_left_out(lines: Lines) -> None:
    request = HttpRequest()
    request.path = "/secret-plan.txt"
    logging.getLogger("library").warning("odd", extra={"request": request, "count": 3})
    assert json.loads(lines.texts[-1])["count"] == 3
    assert "secret-plan" not in lines.texts[-1]


def test_hostile_text_stays_on_one_printable_line() -> None:
    """F-69."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("hostile")
    logger.addHandler(handler)
    logger.warning("message %s", HOSTILE, extra={"value": HOSTILE})
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert re.fullmatch(r"[ -~]*", text[:-1])
    assert json.loads(text)["value"] == HOSTILE
