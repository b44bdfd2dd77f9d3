"""Helpers that send requests to a live server, each on a new connection, and return the response."""

import http.client
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.live.people import Person
from tests.live.waiting import LIMIT


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> Any:
        return self.json["code"]

    @property
    def is_retryable_503(self) -> bool:
        """Whether this is a 503 problem document with a Retry-After header."""
        is_problem = self.headers["Content-Type"] == "application/problem+json"
        return self.status == 503 and is_problem and int(self.headers["Retry-After"]) > 0


def call_api(member: Person, method: str, path: str, content: bytes | None = None, **headers: str) -> Response:
    """Sends a request on a new connection. Raises IncompleteRead if the response ends before its Content-Length."""
    with closing(http.client.HTTPConnection("127.0.0.1", member.server.port, timeout=LIMIT)) as connection:
        head = {"Authorization": f"Bearer {member.token}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, content, head)
        response = connection.getresponse()
        return Response(response.status, dict(response.headers), response.read())


def path_of(member: Person, filename: str) -> str:
    return member.content(filename).removeprefix(member.server.url)


def put(member: Person, filename: str, content: bytes, **headers: str) -> Response:
    return call_api(member, "PUT", path_of(member, filename), content, **headers)


def get(member: Person, filename: str, **headers: str) -> Response:
    return call_api(member, "GET", path_of(member, filename), None, **headers)


def post(member: Person, path: str, body: Any) -> Response:
    return call_api(member, "POST", path, json.dumps(body).encode(), Content_Type="application/json")


def post_form(member: Person, filename: str, content: bytes) -> Response:
    head = f'--cut\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--cut--\r\n"
    return call_api(member, "POST", member.files, body, Content_Type="multipart/form-data; boundary=cut")


def in_parallel(calls: Iterable[Callable[[], Response]]) -> list[Response]:
    calls = list(calls)
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
