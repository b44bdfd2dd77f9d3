"""gunicorn's threaded worker, made fit for hour-long streams and for clients that are slow on purpose.

What `gthread` of gunicorn 27 does otherwise, and what is done about it here:

* A thread waits for a head that dribbles in. Here the accept loop collects heads and small bodies; a thread gets whole requests.
* A closing connection lingers in the accept loop, where everybody waits for it. Here nothing in that loop waits for a client.
* A failed stream is counted out of `nr_conns` twice. Here `finish_request` is the one place that counts down.
* A socket waits for ever, and any pace will do. Here a client that moves less than 1 KiB/s over a minute of waiting is cut off.
* "100 Continue" goes out before the application has run, and bodies that it refused are drained. Here the client is invited
  when the body is first read; a refusal costs it no upload, and says `Connection: close`.
* A body of known length is read ahead by 1 MiB and the surplus copied at every read. Here it is received as it is asked for.
* HEAD runs the whole body generator, and a generator that ends early leaves the client waiting. Here neither happens.

TLS ends in front of this server; HTTP/2, the PROXY protocol and `max_requests` are not served.
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


SMALL_BODY = 64 * 1024  # bytes that the accept loop collects before a thread is spent on the request
LARGEST_HEAD = 64 * 1024
LEAST_PACE = 1024  # bytes a second
UNSENT = 256 * 1024  # bytes that the kernel takes ahead of a slow reader; its default is megabytes for each of a thousand
FAREWELL = 64 * 1024 * 1024  # bytes of a refused body that are read away, so that closing does not reset the answer
HEAD_END = re.compile(rb"\r?\n\r?\n")
CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,5})[ \t]*\r?\n", re.IGNORECASE)
EXPECTATION = re.compile(rb"\nexpect:[ \t]*100-continue", re.IGNORECASE)
INVITATION = b"HTTP/1.1 100 Continue\r\n\r\n"
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing throws away what is unsent and resets the connection


class ClientSocket(socket.socket):
    """A connection whose peer has to keep moving.

    Only time spent waiting for the peer counts, not what the application takes, and the pace is judged over `idle_timeout`
    seconds of it. So a stall ends after one to two `idle_timeout`, and a pause in a fast transfer is forgiven.
    """

    def __init__(self, accepted: socket.socket, idle_timeout: float) -> None:
        super().__init__(fileno=accepted.detach())
        self.idle_timeout = idle_timeout
        self._waited = 0.0
        self._moved = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        started = time.monotonic()
        data = super().recv(size, flags)
        self._judge(len(data), started)
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        # socket.sendall() counts its timeout over the whole of `data`, which would demand a pace that grows with the piece.
        left = memoryview(data)
        while left:
            started = time.monotonic()
            sent = self.send(left, flags)
            self._judge(sent, started)
            left = left[sent:]

    def _judge(self, moved: int, started: float) -> None:
        self._waited += time.monotonic() - started
        self._moved += moved
        if self._waited >= self.idle_timeout:
            if self._moved < LEAST_PACE * self._waited:
                raise TimeoutError("the client is too slow")
            self._waited, self._moved = 0.0, 0


class InvitedBody(Body):  # type: ignore[misc]  # gunicorn has no type hints
    """A body that is asked for when it is first wanted."""

    def __init__(self, reader: Any, invite: Callable[[], None] | None) -> None:
        super().__init__(reader)
        self.invite = invite

    def _read_reader(self, size: int) -> bytes:
        if self.invite:
            self.invite()
            self.invite = None
        try:
            data: bytes = super()._read_reader(size)
        except errors.ParseException as error:  # applications expect OSError from `wsgi.input`
            raise OSError(errno.EPROTO, "malformed chunk") from error
        return data


class ExactReader(LengthReader):  # type: ignore[misc]  # gunicorn has no type hints
    """Receives what it is asked for. Reading ahead, as gunicorn does, copies the surplus at each read: 1.4 s of CPU for a GiB
    that is read in pieces of 256 KiB, against 0.2 s."""

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
        self.body = InvitedBody(reader, self._invite if self._expected_100_continue else None)
        self._expected_100_continue = False  # or gunicorn would invite at once

    def _invite(self) -> None:
        if not self.unreader.buf.getbuffer().nbytes:  # else the body is coming already
            self.unreader.sock.sendall(INVITATION)

    @property
    def is_unread(self) -> bool:
        """Whether some of the body is still with the client."""
        reader = self.body.reader
        if isinstance(reader, ChunkedReader):
            return reader.parser is not None
        return bool(reader.length > self.unreader.buf.getbuffer().nbytes)

    def should_close(self) -> bool:
        self.must_close = self.must_close or self.is_unread
        return bool(super().should_close())


class IncomingParser(RequestParser):  # type: ignore[misc]  # gunicorn has no type hints
    mesg_class = IncomingRequest


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no type hints
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parser = IncomingParser(self.cfg, self.sock, self.client)
        self.expect_request()

    def expect_request(self) -> None:
        self.searched = 0
        self.needed = 0  # bytes of head and small body, once the head is here
        self.discarded = 0

    def has_request(self) -> bool:
        """Whether a thread can serve the next request without waiting for what the accept loop should have waited for."""
        with self.parser.unreader.buf.getbuffer() as received:
            if not self.needed:
                head = HEAD_END.search(received, max(0, self.searched - 3))
                self.searched = received.nbytes
                if head is None:
                    return bool(received.nbytes > LARGEST_HEAD)
                length = CONTENT_LENGTH.search(received, 0, head.end())
                body = int(length[1]) if length and int(length[1]) <= SMALL_BODY else 0
                self.needed = head.end() + body
                if received.nbytes < self.needed and EXPECTATION.search(received, 0, head.end()):
                    with suppress(OSError):  # a client that is gone shows when it is read from
                        self.sock.send(INVITATION)
            return bool(received.nbytes >= self.needed)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no type hints
    idle_timeout = 60.0  # seconds of waiting over which a client's pace is judged
    head_timeout = 30.0  # seconds for a head and a small body

    # --- In the accept loop: nothing here waits ---

    def accept(self, listener: Any) -> None:
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ECONNABORTED}:
                # Out of descriptors or memory. The loop would spin on the waiting client; `run` enables it within a second.
                self.set_accept_enabled(False)
            return
        self.nr_conns += 1
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        client = ClientSocket(accepted, self.idle_timeout)
        self._await_request(Connection(self.cfg, client, address, listener.getsockname()))

    def on_client_socket_readable(self, conn: Connection, client: ClientSocket) -> None:
        self._forget(self.keepalived_conns, conn)
        self._await_request(conn)

    def on_pending_socket_readable(self, conn: Connection, client: ClientSocket) -> None:
        data = self._receive(client)
        if data is None:
            return
        conn.parser.unreader.buf.seek(0, os.SEEK_END)
        conn.parser.unreader.buf.write(data)
        if not data:
            self._forget(self.pending_conns, conn)
            self._close(conn)
        elif conn.has_request():
            self._forget(self.pending_conns, conn)
            self.enqueue_req(conn)

    def finish_request(self, conn: Connection, future: "Future[bool]") -> None:
        if not future.cancelled() and future.exception() is None and future.result():
            if conn.parser.unreader.buf.getbuffer().nbytes:
                self._await_request(conn)
            else:
                super().finish_request(conn, future)
        else:
            self._say_farewell(conn)

    def _await_request(self, conn: Connection) -> None:
        conn.expect_request()
        conn.sock.settimeout(0.0)
        if conn.has_request():
            self.enqueue_req(conn)
            return
        conn.timeout = time.monotonic() + self.head_timeout
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _say_farewell(self, conn: Connection) -> None:
        """Ends the answer and waits, parked, for the client's end: closing on bytes that it still sends would reset the
        connection before the answer is read."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # closed by its thread, or by the client
            self._close(conn)
            return
        conn.sock.settimeout(0.0)
        conn.set_timeout()
        self.keepalived_conns.append(conn)  # which expire in their order and are closed then
        if not self.alive:
            self._cap_keepalive(time.monotonic() + STOP_KEEPALIVE_LINGER)
        self.poller.register(conn.sock, EVENT_READ, partial(self._discard, conn))

    def _discard(self, conn: Connection, client: ClientSocket) -> None:
        data = self._receive(client)
        if data is None:
            return
        conn.discarded += len(data)
        if not data or conn.discarded > FAREWELL:
            self._forget(self.keepalived_conns, conn)
            self._close(conn)

    def _receive(self, client: ClientSocket) -> bytes | None:
        """What has arrived; b"" when the client is gone, None when nothing has."""
        try:
            return client.recv(SMALL_BODY)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _forget(self, parked: Any, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        parked.remove(conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """A stopping worker does not wait for requests that have not begun."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    # --- In a thread of its own ---

    def handle_request(self, request: IncomingRequest, conn: Connection) -> bool:
        conn.sock.settimeout(self.idle_timeout)
        response, environ = wsgi.create(request, conn.sock, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        del environ["wsgi.file_wrapper"]  # no file leaves without passing through the middleware that counts it
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
                # A reader that stalled would keep the kernel's buffers; one that waits for the end of the connection would
                # take an orderly end for the end of the body.
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
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

    def handle(self, conn: Connection) -> bool:
        if not conn.needed:
            self.handle_error(None, conn.sock, conn.client, errors.LimitRequestHeaders("head"))
            return False
        conn.data_ready = True
        return bool(super().handle(conn))

    def handle_error(self, request: Any, client: socket.socket, address: Any, error: Exception) -> None:
        """Answers what never reached the application in the form of its other errors, without echo or log of the request."""
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
            self.log.debug("the client did not wait for its refusal")


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
