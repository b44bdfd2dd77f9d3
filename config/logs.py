"""Logs one JSON object per line, and one line per request. The line has the route of the request, never its path or query."""

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
STANDARD_ATTRIBUTES = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}
PLAIN_TYPES = (str, int, float, NoneType)


class JsonFormatter(logging.Formatter):
    """Formats records as JSON. It escapes everything except printable ASCII, so that values cannot inject lines or escape codes.

    Of an exception, it writes the type and the stack, but no arguments and no local variables, because these can contain
    filenames, keys and SQL. It writes members of `extra` with plain types only, because libraries pass whole requests there.
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
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in STANDARD_ATTRIBUTES and isinstance(value, PLAIN_TYPES)
        }
        if record.exc_info and record.exc_info[1]:
            line |= _describe(record.exc_info[1])
        return json.dumps(line)


def _describe(error: BaseException) -> dict[str, Any]:
    names, frames, seen = [], [], set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        names.append(f"{type(current).__module__}.{type(current).__qualname__}")
        frames += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(current.__traceback__)]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return {"exception": " < ".join(names), "trace": frames}


class ServerLog(Logger):  # type: ignore[misc]  # gunicorn has no type hints
    """Formats gunicorn's messages in the same way. Its access log is off, because it would write paths."""

    def _set_handler(self, log: logging.Logger, output: str, fmt: logging.Formatter, stream: Any = None) -> None:
        super()._set_handler(log, output, JsonFormatter(), stream)


class RequestLog:
    """The outermost middleware: gives the request an id, sends it to the client, and logs the request after its last byte."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # The client cannot choose the id, because the audit trail relies on it. The variables are not reset after the request,
        # because a streamed body still uses them in this thread, and the next request sets its own.
        generated_id = uuid4().hex
        request_id.set(generated_id)
        tenant_id.set("")
        client.set(client_address(request))
        started = time.monotonic()
        response = self.get_response(request)
        response["X-Request-ID"] = generated_id
        if isinstance(response, StreamingHttpResponse):
            response.streaming_content = _LoggedStream(request, response, started)
        else:
            _log_request(request, response, started, sent=len(getattr(response, "content", b"")))
        return response


class _LoggedStream:
    """Counts the bytes of a streamed response, and logs the request when the server calls `close`.

    It is a class, because a generator that was never started, as for HEAD, runs no code when it is closed.
    """

    def __init__(self, request: HttpRequest, response: StreamingHttpResponse, started: float) -> None:
        self.request, self.response, self.started = request, response, started
        self.chunks = iter(response.streaming_content)  # type: ignore[arg-type]  # WSGI has no async iterators
        self.sent, self.is_complete, self.is_logged = 0, False, False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk: bytes = next(self.chunks)
        except StopIteration:
            self.is_complete = True
            raise
        self.sent += len(chunk)
        return chunk

    def close(self) -> None:
        if not self.is_logged:
            self.is_logged = True
            _log_request(self.request, self.response, self.started, sent=self.sent, is_complete=self.is_complete)


def _log_request(
    request: HttpRequest, response: HttpResponseBase, started: float, *, sent: int, is_complete: bool = True
) -> None:
    user = request.__dict__.get("user")
    if isinstance(user, LazyObject):  # loading the user would cost a query
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
    content_length = response.get("Content-Length")
    is_short = not is_complete if content_length is None else int(content_length) != sent
    if request.method != "HEAD" and response.status_code != 304 and is_short:
        fields["cut"] = True
    log.info("request", extra=fields)
