"""One JSON object a line, and one line a request. What a log says of a request is its route, never its path or its query."""

import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import NoneType
from typing import Any
from uuid import uuid4

from django.http import HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse
from django.utils.functional import LazyObject
from gunicorn.glogging import Logger

from tenants.addresses import client_address
from tenants.request_context import client, request_id, tenant_id


log = logging.getLogger("strongroom.request")
STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}
PLAIN = (str, int, float, NoneType)


class JsonFormatter(logging.Formatter):
    """Escapes everything but printable ASCII, so that no value can end the line, start another or colour a terminal.

    An exception is told by its type and where it came from. Its arguments may be a filename, a key or a line of SQL, so
    neither they nor any local variable are written. Members of `extra` are added when they are plain values: libraries put
    whole requests there, with their paths.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = {"request_id": request_id.get(), "tenant": tenant_id.get(), "client": client.get()}
        line |= {name: value for name, value in context.items() if value}
        line |= {name: value for name, value in vars(record).items() if name not in STANDARD and isinstance(value, PLAIN)}
        if record.exc_info and record.exc_info[1]:
            line |= _described(record.exc_info[1])
        return json.dumps(line)


def _described(error: BaseException) -> dict[str, Any]:
    names, frames, seen = [], [], set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        names.append(f"{type(current).__module__}.{type(current).__qualname__}")
        frames += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(current.__traceback__)]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return {"exception": " < ".join(names), "trace": frames}


class ServerLog(Logger):  # type: ignore[misc]  # gunicorn has no type hints
    """gunicorn's own messages in the same form. Its access log stays off: it would write paths."""

    def _set_handler(self, log: logging.Logger, output: str, fmt: logging.Formatter, stream: Any = None) -> None:
        super()._set_handler(log, output, JsonFormatter(), stream)


class RequestLog:
    """Outermost middleware: names the request, tells the client the name, and writes its line once the last byte is gone."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # Not taken from the client: an id that somebody else may choose says nothing in an audit trail. It is not reset
        # afterwards either, because a streamed body still runs then, in this same thread, and the next request sets its own.
        name = uuid4().hex
        request_id.set(name)
        tenant_id.set("")
        client.set(client_address(request))
        started = time.monotonic()
        response = self.get_response(request)
        response["X-Request-ID"] = name
        if isinstance(response, StreamingHttpResponse):
            response.streaming_content = _Watched(request, response, started)
        else:
            _write(request, response, started, sent=len(getattr(response, "content", b"")))
        return response


class _Watched:
    """Counts what a streamed response yields. Its `close` is called by the server, whether the stream ended or was cut.

    A class because a generator that was never started, as for HEAD, runs nothing when it is closed.
    """

    def __init__(self, request: HttpRequest, response: StreamingHttpResponse, started: float) -> None:
        self.request, self.response, self.started = request, response, started
        self.chunks = iter(response.streaming_content)  # type: ignore[arg-type]  # served by WSGI, so never an async iterator
        self.sent, self.is_whole, self.is_told = 0, False, False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk: bytes = next(self.chunks)
        except StopIteration:
            self.is_whole = True
            raise
        self.sent += len(chunk)
        return chunk

    def close(self) -> None:
        if not self.is_told:
            self.is_told = True
            _write(self.request, self.response, self.started, sent=self.sent, is_whole=self.is_whole)


def _write(request: HttpRequest, response: HttpResponseBase, started: float, *, sent: int, is_whole: bool = True) -> None:
    user = request.__dict__.get("user")
    if isinstance(user, LazyObject):  # still unread: logging it would cost a query
        user = request.__dict__.get("_cached_user")
    fields: dict[str, Any] = {
        "method": request.method,
        "route": request.resolver_match.route if request.resolver_match else None,
        "status": response.status_code,
        "duration_ms": round((time.monotonic() - started) * 1000, 1),
        "user": getattr(user, "pk", None),
        "bytes": sent,
    }
    if key := getattr(user, "key", None):
        fields["key"] = key.prefix
    promised = response.get("Content-Length")
    is_short = not is_whole if promised is None else int(promised) != sent
    if request.method != "HEAD" and response.status_code != 304 and is_short:
        fields["cut"] = True
    log.info("request", extra=fields)
