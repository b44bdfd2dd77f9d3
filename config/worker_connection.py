"""One client connection of the web server: its socket, its requests and their bodies. `config.worker` is the server.

What gunicorn 27 does otherwise, and what is done about it here:

* A socket waits without limit, and any rate is enough. Here a client that moves less than 1 KiB/s over a minute of waiting is cut
  off, and a body that is no transfer has 30 seconds.
* "100 Continue" is sent before the application has run. Here the client is invited when the body is first read, so that a refused
  upload is not sent.
* A body of known length is read ahead by 1 MiB, and the surplus is copied at every read. Here it is received as it is requested.
"""

import errno
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gunicorn.http import errors
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

from tenants.addresses import network_of


MAX_SMALL_BODY = 16 * 1024  # bytes that the accept loop collects before a thread is spent on the request
MAX_HEAD = 64 * 1024
MIN_RATE = 1024  # bytes a second
HEAD_END = re.compile(rb"\r?\n\r?\n")
CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r?\n", re.IGNORECASE)
EXPECTATION = re.compile(rb"\nexpect:[ \t]*100-continue", re.IGNORECASE)
PROBE = re.compile(rb"(GET|HEAD) /healthz(?:\?[^ ]*)? HTTP/1\.[01]\r?\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientSocket(socket.socket):
    """A connection whose peer has to send or receive at a minimum rate.

    Only time spent waiting for the peer counts, not the time of the application, and the rate is measured over `idle_timeout`
    seconds of it. A stalled connection therefore ends after one to two `idle_timeout`, and a fast transfer may pause. If it has a
    `deadline` (monotonic seconds), receiving ends then at the latest.
    """

    def __init__(self, accepted: socket.socket, idle_timeout: float) -> None:
        super().__init__(fileno=accepted.detach())
        self.idle_timeout = idle_timeout
        self.deadline: float | None = None
        self._waited = 0.0
        self._moved = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        started = time.monotonic()
        if self.deadline is not None:
            if started >= self.deadline:
                raise TimeoutError("the body is too slow")
            self.settimeout(min(self.idle_timeout, self.deadline - started))
        data = super().recv(size, flags)
        self._check_rate(len(data), started)
        return data

    def begin_transfer(self) -> None:
        """Lifts the deadline: from here on only the minimum rate applies."""
        self.deadline = None
        self.settimeout(self.idle_timeout)

    def sendall(self, data: Any, flags: int = 0) -> None:
        # socket.sendall() applies its timeout to the whole of `data`: the required rate would grow with the size of the piece.
        left = memoryview(data)
        while left:
            started = time.monotonic()
            sent = self.send(left, flags)
            self._check_rate(sent, started)
            left = left[sent:]

    def _check_rate(self, moved: int, started: float) -> None:
        self._waited += time.monotonic() - started
        self._moved += moved
        if self._waited >= self.idle_timeout:
            if self._moved < MIN_RATE * self._waited:
                raise TimeoutError("the client is too slow")
            self._waited, self._moved = 0.0, 0


class LazyBody(Body):  # type: ignore[misc]  # gunicorn has no type hints
    """A body that the client is invited to send when it is first read."""

    def __init__(self, reader: Any, send_continue: Callable[[], None] | None) -> None:
        super().__init__(reader)
        self.send_continue = send_continue

    def _read_reader(self, size: int) -> bytes:
        if self.send_continue:
            self.send_continue()
            self.send_continue = None
        try:
            data: bytes = super()._read_reader(size)
        except errors.ParseException as error:  # applications expect OSError from `wsgi.input`
            raise OSError(errno.EPROTO, "malformed chunk") from error
        return data


class ExactReader(LengthReader):  # type: ignore[misc]  # gunicorn has no type hints
    """Receives as many bytes as requested. gunicorn reads ahead and copies the surplus at each read: 1.4 s of CPU for a GiB that
    is read in pieces of 256 KiB, against 0.2 s."""

    def read(self, size: int) -> bytes:
        size = min(self.length, size)
        data: bytes = self.unreader.read(size)
        self.length -= size
        return data


class IncomingRequest(Request):  # type: ignore[misc]  # gunicorn has no type hints
    body: Any
    must_close: bool
    _expected_100_continue: bool

    def set_body_reader(self) -> None:
        super().set_body_reader()
        reader = self.body.reader
        if isinstance(reader, LengthReader):
            reader = ExactReader(self.unreader, reader.length)
        self.body = LazyBody(reader, self._send_continue if self._expected_100_continue else None)
        self._expected_100_continue = False  # or gunicorn would send the invitation now

    def _send_continue(self) -> None:
        if not self.unreader.buf.getbuffer().nbytes:  # otherwise the body is already arriving
            self.unreader.sock.sendall(CONTINUE)

    @property
    def has_unread_body(self) -> bool:
        """Whether the client has not yet sent the whole body."""
        reader = self.body.reader
        if isinstance(reader, ChunkedReader):
            return reader.parser is not None
        return bool(reader.length > self.unreader.buf.getbuffer().nbytes)

    def should_close(self) -> bool:
        self.must_close = self.must_close or self.has_unread_body
        return bool(super().should_close())


class IncomingParser(RequestParser):  # type: ignore[misc]  # gunicorn has no type hints
    mesg_class = IncomingRequest


class ClientConnection(TConn):  # type: ignore[misc]  # gunicorn has no type hints
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parser = IncomingParser(self.cfg, self.sock, self.client)
        self.network = network_of(self.client[0]) if isinstance(self.client, tuple) else ""
        self.parked = 0  # bytes that its worker counts while the request is incomplete
        self.expect_request()

    def expect_request(self) -> None:
        self.searched = 0
        self.needed = 0  # bytes of head and small body, known when the head is complete
        self.discarded = 0

    def has_request(self) -> bool:
        """Whether the head and a small body are complete, so that a thread need not wait for them."""
        with self.parser.unreader.buf.getbuffer() as received:
            if not self.needed:
                head = HEAD_END.search(received, max(0, self.searched - 3))
                self.searched = received.nbytes
                if head is None:
                    return bool(received.nbytes > MAX_HEAD)
                length = CONTENT_LENGTH.search(received, 0, head.end())
                body = int(length[1]) if length and int(length[1]) <= MAX_SMALL_BODY else 0
                self.needed = head.end() + body
                if received.nbytes < self.needed and EXPECTATION.search(received, 0, head.end()):
                    with suppress(OSError):  # the next read shows that the client is gone
                        self.sock.send(CONTINUE)
            return bool(received.nbytes >= self.needed)

    def is_liveness_probe(self) -> bytes:
        """The method of a complete request of /healthz that the accept loop answers, b"" for any other request."""
        with self.parser.unreader.buf.getbuffer() as received:
            probe = PROBE.match(received)
            return probe[1] if probe and received.nbytes == self.needed else b""
