"""A client connection of `config.worker`: its socket, its requests and their bodies.

It differs from gunicorn 27 in these points:

* gunicorn has no timeout on sockets. Here, a client that transfers less than 1 KiB/s during a minute of waiting is disconnected,
  and a body that is no transfer has a deadline.
* gunicorn sends "100 Continue" before the application runs. Here, it is sent when the application first reads the body, so that
  a client does not send a body that is refused.
* gunicorn reads 1 MiB ahead, and copies the surplus at each read. Here, a body of known length is read in the requested sizes.
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


MAX_SMALL_BODY = 16 * 1024  # bytes; the accept loop collects bodies up to this size
MAX_HEAD = 64 * 1024  # bytes
MIN_RATE = 1024  # bytes per second
HEAD_END = re.compile(rb"\r?\n\r?\n")
CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r?\n", re.IGNORECASE)
EXPECTATION = re.compile(rb"\nexpect:[ \t]*100-continue", re.IGNORECASE)
PROBE = re.compile(rb"(GET|HEAD) /healthz(?:\?[^ ]*)? HTTP/1\.[01]\r?\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientSocket(socket.socket):
    """A socket with a minimum transfer rate.

    The rate is measured over `idle_timeout` seconds of waiting for the client; the time of the application does not count. A
    client that stalls is disconnected after one to two times `idle_timeout`. A short pause in a fast transfer has no effect.
    Receiving also ends at the `deadline` (monotonic seconds), if there is one.
    """

    def __init__(self, accepted: socket.socket, idle_timeout: float) -> None:
        super().__init__(fileno=accepted.detach())
        self.idle_timeout = idle_timeout
        self.deadline: float | None = None
        self._waited = 0.0
        self._transferred = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        started = time.monotonic()
        data = super().recv(size, flags) if self.deadline is None else self._recv_in_time(size, flags, self.deadline - started)
        self._check_rate(len(data), started)
        return data

    def _recv_in_time(self, size: int, flags: int, seconds: float) -> bytes:
        if seconds <= 0:
            raise TimeoutError("the body is too slow")
        self.settimeout(min(self.idle_timeout, seconds))
        try:
            return super().recv(size, flags)
        finally:
            self.settimeout(self.idle_timeout)  # sending has no deadline

    def start_blocking(self, seconds: float) -> None:
        """Lets a thread wait for the client, and gives the request body a deadline."""
        self.deadline = time.monotonic() + seconds
        self.settimeout(self.idle_timeout)

    def stop_blocking(self) -> None:
        """Lets the accept loop use the socket."""
        self.deadline = None
        self.settimeout(0.0)

    def begin_transfer(self) -> None:
        """Removes the deadline, so that only the minimum rate applies."""
        self.deadline = None

    def sendall(self, data: Any, flags: int = 0) -> None:
        # socket.sendall() applies its timeout to the whole of `data`, so the required rate would grow with the size.
        remaining = memoryview(data)
        while remaining:
            started = time.monotonic()
            sent = self.send(remaining, flags)
            self._check_rate(sent, started)
            remaining = remaining[sent:]

    def _check_rate(self, transferred: int, started: float) -> None:
        self._waited += time.monotonic() - started
        self._transferred += transferred
        if self._waited >= self.idle_timeout:
            if self._transferred < MIN_RATE * self._waited:
                raise TimeoutError("the client is too slow")
            self._waited, self._transferred = 0.0, 0


class LazyBody(Body):  # type: ignore[misc]  # gunicorn has no type hints
    """A body that sends "100 Continue" when the application first reads it."""

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
    """Receives at most the requested size.

    gunicorn reads ahead and copies the surplus at each read, which takes 1.4 s of CPU per GiB in pieces of 256 KiB instead of
    0.2 s.
    """

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
        self._expected_100_continue = False  # otherwise gunicorn sends "100 Continue" immediately

    def _send_continue(self) -> None:
        if not self.unreader.buf.getbuffer().nbytes:  # otherwise the client already sends the body
            self.unreader.sock.sendall(CONTINUE)

    @property
    def has_unread_body(self) -> bool:
        """Whether the client has not sent all of the body yet."""
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
        self.parked = 0  # bytes that the worker counts for an incomplete request
        self.expect_request()

    def expect_request(self) -> None:
        self.searched = 0
        self.needed = 0  # bytes of the head and a small body; 0 until the head has arrived
        self.discarded = 0

    def has_request(self) -> bool:
        """Whether the head and a small body have arrived, so that a thread can handle the request."""
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
                    with suppress(OSError):  # the next read detects a client that has disconnected
                        self.sock.send(CONTINUE)
            return bool(received.nbytes >= self.needed)

    def probe_method(self) -> bytes:
        """Returns GET or HEAD if the request is a liveness probe, otherwise b""."""
        with self.parser.unreader.buf.getbuffer() as received:
            probe = PROBE.match(received)
            return probe[1] if probe and received.nbytes == self.needed else b""
