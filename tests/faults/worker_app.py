"""A WSGI application for tests of the worker: each path behaves in a way that the worker must handle, /stats returns counters."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from config.worker import Worker


MIB = 1024 * 1024
seen = {"produced": 0, "closed": 0}
worker: "ShortTimeoutWorker"


class ShortTimeoutWorker(Worker):
    """The production worker with shorter timeouts."""

    idle_timeout = 1.0
    head_timeout = 3.0
    body_timeout = 2.0
    max_parked = 2 * MIB

    def init_process(self) -> None:
        global worker
        worker = self
        super().init_process()


class Body:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            seen["produced"] += len(piece)
            yield piece

    def close(self) -> None:
        seen["closed"] += 1


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    def answer(status: str, body: bytes, **headers: str) -> list[bytes]:
        start_response(status, [("Content-Length", str(len(body))), *headers.items()])
        return [body]

    def stream(length: int | None, pieces: Iterator[bytes]) -> Body:
        start_response("200 OK", [] if length is None else [("Content-Length", str(length))])
        return Body(pieces)

    def cut() -> Iterator[bytes]:
        yield b"x" * 1000
        raise RuntimeError("the store is unavailable")

    match environ["PATH_INFO"]:
        case "/hello":
            return answer("200 OK", b"hello")
        case "/stats":
            return answer("200 OK", json.dumps(seen | {"connections": worker.nr_conns}).encode())
        case "/refuse":
            return answer("403 Forbidden", b"no")
        case "/fail":
            raise RuntimeError("secret-plan.txt")
        case "/read" | "/transfer" | "/read-and-stream":
            if environ["PATH_INFO"] == "/transfer":
                environ["strongroom.begin_transfer"]()
            length, digest = 0, hashlib.sha256()
            try:
                while piece := environ["wsgi.input"].read(256 * 1024):
                    length += len(piece)
                    digest.update(piece)
            except TimeoutError:
                return answer("408 Request Timeout", b"")
            except OSError:
                return answer("400 Bad Request", b"")
            if environ["PATH_INFO"] == "/read-and-stream":
                return stream(64 * MIB, (b"x" * MIB for _ in range(64)))
            return answer("200 OK", f"{length} {digest.hexdigest()}".encode())
        case "/large-pieces":
            return stream(64 * MIB, (b"x" * (4 * MIB) for _ in range(16)))
        case "/small-pieces":
            return stream(64 * MIB, (b"x" * (128 * 1024) for _ in range(512)))
        case "/raises":
            return stream(MIB, cut())
        case "/raises-without-length":
            return stream(None, cut())
        case "/ends-early":
            return stream(MIB, iter([b"x" * 1000]))
    return answer("404 Not Found", b"")
