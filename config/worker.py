"""A variant of gunicorn's threaded worker for transfers that take hours, and for clients that are slow on purpose.

It differs from `gthread` of gunicorn 27 in these points:

* In gthread, a thread waits for a slow request head. Here, the accept loop collects the head and a small body before a thread
  handles the request.
* In gthread, the accept loop waits while it closes a connection. Here, it never waits for a client.
* gthread subtracts a failed stream from `nr_conns` twice. Here, a connection is subtracted only when it is closed.
* gthread has no timeout on sockets. Here, a client that transfers less than 1 KiB/s during a minute of waiting is disconnected.
* gthread sends "100 Continue" before the application runs, and drains bodies that the application refuses. Here, "100 Continue"
  is sent when the application first reads the body. A refused request gets `Connection: close`, and its body is not uploaded.
* gthread reads 1 MiB ahead, and copies the surplus at each read. Here, a body of known length is read in the requested sizes.
* gthread runs the whole body generator for HEAD, and a client waits if a generator ends early. Here, neither happens.

It does not support TLS, which a proxy terminates, nor HTTP/2, the PROXY protocol and `max_requests`.
"""

import errno
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from gunicorn.http import errors, wsgi
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker


MAX_SMALL_BODY = 64 * 1024  # bytes; the accept loop collects bodies up to this size
MAX_HEAD = 64 * 1024  # bytes
MIN_RATE = 1024  # bytes per second
MAX_UNSENT = 256 * 1024  # bytes that the kernel buffers for a slow client; its default is megabytes for each connection
# Of a refused body, which is read and discarded, so that closing does not reset the response
MAX_DISCARDED = 64 * 1024 * 1024  # bytes
HEAD_END = re.compile(rb"\r?\n\r?\n")
CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r?\n", re.IGNORECASE)
EXPECTATION = re.compile(rb"\nexpect:[ \t]*100-continue", re.IGNORECASE)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing discards unsent data and resets the connection


class ClientSocket(socket.socket):
    """A socket with a minimum transfer rate.

    The rate is measured over `idle_timeout` seconds of waiting for the client; the time of the application does not count. A
    client that stalls is disconnected after one to two times `idle_timeout`. A short pause in a fast transfer has no effect.
    """

    def __init__(self, accepted: socket.socket, idle_timeout: float) -> None:
        super().__init__(fileno=accepted.detach())
        self.idle_timeout = idle_timeout
        self._waited = 0.0
        self._transferred = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        started = time.monotonic()
        data = super().recv(size, flags)
        self._check_rate(len(data), started)
        return data

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


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no type hints
    idle_timeout = 60.0  # seconds of waiting over which the transfer rate is measured
    head_timeout = 30.0  # seconds for the head and a small body

    # --- In the accept loop: no method waits ---

    def accept(self, listener: Any) -> None:
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ECONNABORTED}:
                # Out of descriptors or memory. Without this, the loop would spin on the pending connection. `run` accepts again
                # within a second.
                self.set_accept_enabled(False)
            return
        self.nr_conns += 1
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)
        client = ClientSocket(accepted, self.idle_timeout)
        self._await_request(ClientConnection(self.cfg, client, address, listener.getsockname()))

    def on_client_socket_readable(self, conn: ClientConnection, client: ClientSocket) -> None:
        self._unregister(self.keepalived_conns, conn)
        self._await_request(conn)

    def on_pending_socket_readable(self, conn: ClientConnection, client: ClientSocket) -> None:
        data = self._receive(client)
        if data is None:
            return
        conn.parser.unreader.buf.seek(0, os.SEEK_END)
        conn.parser.unreader.buf.write(data)
        if not data:
            self._unregister(self.pending_conns, conn)
            self._close(conn)
        elif conn.has_request():
            self._unregister(self.pending_conns, conn)
            self.enqueue_req(conn)

    def finish_request(self, conn: ClientConnection, future: "Future[bool]") -> None:
        if not future.cancelled() and future.exception() is None and future.result():
            if conn.parser.unreader.buf.getbuffer().nbytes:
                self._await_request(conn)
            else:
                super().finish_request(conn, future)
        else:
            self._close_gracefully(conn)

    def _await_request(self, conn: ClientConnection) -> None:
        conn.expect_request()
        conn.sock.settimeout(0.0)
        if conn.has_request():
            self.enqueue_req(conn)
            return
        conn.timeout = time.monotonic() + self.head_timeout
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _close_gracefully(self, conn: ClientConnection) -> None:
        """Ends the response, and keeps the connection until the client closes it.

        To close it while the client still sends would reset the connection before the client has read the response.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # closed by the thread or the client
            self._close(conn)
            return
        conn.sock.settimeout(0.0)
        conn.set_timeout()
        self.keepalived_conns.append(conn)  # gunicorn closes these when they expire
        if not self.alive:
            self._cap_keepalive(time.monotonic() + STOP_KEEPALIVE_LINGER)
        self.poller.register(conn.sock, EVENT_READ, partial(self._discard, conn))

    def _discard(self, conn: ClientConnection, client: ClientSocket) -> None:
        data = self._receive(client)
        if data is None:
            return
        conn.discarded += len(data)
        if not data or conn.discarded > MAX_DISCARDED:
            self._unregister(self.keepalived_conns, conn)
            self._close(conn)

    def _receive(self, client: ClientSocket) -> bytes | None:
        """Returns received bytes, b"" if the client has disconnected, or None if nothing has arrived."""
        try:
            return client.recv(MAX_SMALL_BODY)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _unregister(self, connections: Any, conn: ClientConnection) -> None:
        self.poller.unregister(conn.sock)
        connections.remove(conn)

    def _close(self, conn: ClientConnection) -> None:
        self.nr_conns -= 1
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """Also limits the wait for requests that have not arrived yet, so that the worker can stop."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    # --- In a thread of the pool ---

    def handle_request(self, request: IncomingRequest, conn: ClientConnection) -> bool:
        conn.sock.settimeout(self.idle_timeout)
        response, environ = wsgi.create(request, conn.sock, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        del environ["wsgi.file_wrapper"]  # sends files past the middleware that counts bytes
        if not self.alive or len(self.keepalived_conns) >= self.max_keepalived:
            response.force_close()
        try:
            self._respond(request, response, environ)
        except Exception as error:
            if not response.headers_sent:
                self.handle_error(request, conn.sock, conn.client, error)
                return False
            self.log.info("response cut short", exc_info=not isinstance(error, OSError))
            if isinstance(error, TimeoutError) or (response.response_length is None and not response.chunked):
                # A stalled client would keep the kernel's buffers. A client that reads until the end of the connection would
                # take an orderly close for the end of the body.
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ABORT)
                conn.close()
            return False
        return not response.should_close()

    def _respond(self, request: IncomingRequest, response: wsgi.Response, environ: dict[str, Any]) -> None:
        body = self.wsgi(environ, response.start_response)
        try:
            if request.method != "HEAD":
                for piece in body:
                    response.write(piece)
                if not response._omits_body and (response.response_length or 0) > response.sent:
                    raise EOFError("the body ended before its Content-Length")
            response.close()
        finally:
            if hasattr(body, "close"):
                body.close()

    def handle(self, conn: ClientConnection) -> bool:
        if not conn.needed:
            self.handle_error(None, conn.sock, conn.client, errors.LimitRequestHeaders("head"))
            return False
        conn.data_ready = True
        return bool(super().handle(conn))

    def handle_error(self, request: Any, client: socket.socket, address: Any, error: Exception) -> None:
        """Answers a request that did not reach the application with a problem document. Does not echo or log the request."""
        status = _status_of(error)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.exception("request failed in the server")
        else:
            self.log.info("request refused by the server: %d %s", status, type(error).__name__)
        problem = {"type": "about:blank", "title": status.phrase, "status": status, "detail": status.description or status.phrase}
        body = json.dumps(problem | {"code": status.name.lower()}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nCache-Control: no-store\r\n"
            f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            client.sendall(head.encode() + (b"" if request and request.method == "HEAD" else body))
        except OSError:
            self.log.debug("the client disconnected before the error response")


def _status_of(error: Exception) -> HTTPStatus:
    match error:
        case errors.LimitRequestLine():
            return HTTPStatus.REQUEST_URI_TOO_LONG
        case errors.LimitRequestHeaders():
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        case errors.UnsupportedTransferCoding():
            return HTTPStatus.NOT_IMPLEMENTED
        case errors.ExpectationFailed():
            return HTTPStatus.EXPECTATION_FAILED
        case errors.InvalidResponseHeader() | errors.InvalidResponseHeaderName() | errors.ConfigurationProblem():
            return HTTPStatus.INTERNAL_SERVER_ERROR
        case errors.ParseException():
            return HTTPStatus.BAD_REQUEST
        case TimeoutError():
            return HTTPStatus.REQUEST_TIMEOUT
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR
