"""A variant of gunicorn's threaded worker for transfers that take hours, and for clients that are slow on purpose.

It differs from `gthread` of gunicorn 27 in these points, and in those of `config.worker_connection`:

* In gthread, a thread waits for a slow request head. Here, the accept loop collects the head and a small body before a thread
  handles the request. The bytes of incomplete requests are limited for the process and for each network.
* In gthread, a liveness probe needs a free thread. Here, the accept loop answers /healthz.
* In gthread, the accept loop waits while it closes a connection. Here, it never waits for a client.
* gthread subtracts a failed stream from `nr_conns` twice. Here, a connection is subtracted only when it is closed.
* gthread drains bodies that the application refuses. Here, a refused request gets `Connection: close`.
* gthread runs the whole body generator for HEAD, and a client waits if a generator ends early. Here, neither happens.

It does not support TLS, which a proxy terminates, nor HTTP/2, the PROXY protocol and `max_requests`.
"""

import errno
import json
import os
import socket
import struct
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from django.conf import settings
from gunicorn.http import errors, wsgi
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from config.worker_connection import MAX_SMALL_BODY, ClientConnection, ClientSocket, IncomingRequest


MAX_UNSENT = 256 * 1024  # bytes that the kernel buffers for a slow client; its default is megabytes for each connection
# Of a refused body, which is read and discarded, so that closing does not reset the response
MAX_DISCARDED = 64 * 1024 * 1024  # bytes
LINGER_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing discards unsent data and resets the connection
HEALTHY = b'{"status": "ok"}'  # as config.probes answers where another server runs the application


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no type hints
    idle_timeout = 60.0  # seconds of waiting over which the transfer rate is measured
    head_timeout = 30.0  # seconds for the head and a small body
    body_timeout = 30.0  # seconds for a body that is no transfer
    max_parked = 64 * 1024 * 1024  # bytes of incomplete requests in a process; a quarter for one network if there is no proxy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parked = 0
        self._parked_by_network: Counter[str] = Counter()

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
        self._park(conn, len(data))
        if not data:
            self._unregister(self.pending_conns, conn)
            self._close(conn)
        elif conn.has_request():
            self._unregister(self.pending_conns, conn)
            self._serve(conn)
        elif self._is_full(conn):
            self._unregister(self.pending_conns, conn)
            self._answer(conn, *_refusal(HTTPStatus.SERVICE_UNAVAILABLE, retry_after=5))

    def _serve(self, conn: ClientConnection) -> None:
        """Queues a complete request for a thread, or answers a liveness probe."""
        if method := conn.probe_method():
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            self._answer(conn, head, HEALTHY, is_head=method == b"HEAD")
        else:
            self.enqueue_req(conn)

    def _answer(self, conn: ClientConnection, head: bytes, body: bytes, *, is_head: bool = False) -> None:
        """Responds without waiting, and closes the connection. A response this small fits into the send buffer of the kernel."""
        head += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        with suppress(OSError):
            conn.sock.send(head + (b"" if is_head else body))
        self._close_gracefully(conn)

    def _park(self, conn: ClientConnection, size: int) -> None:
        """Counts bytes of an incomplete request, until it is complete or its connection is closed."""
        conn.parked += size
        self._parked += size
        self._parked_by_network[conn.network] += size

    def _is_full(self, conn: ClientConnection) -> bool:
        is_direct = not settings.BEHIND_PROXY
        return self._parked > self.max_parked or (is_direct and self._parked_by_network[conn.network] > self.max_parked // 4)

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
        conn.sock.stop_blocking()
        if conn.has_request():
            self._serve(conn)
            return
        self._park(conn, conn.parser.unreader.buf.getbuffer().nbytes)
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
        conn.sock.stop_blocking()
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
        self._unpark(conn)

    def murder_pending(self) -> None:
        """Closes connections whose request has not arrived in time."""
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            conn = self.pending_conns[0]
            self._unregister(self.pending_conns, conn)
            self._close(conn)

    def _unpark(self, conn: ClientConnection) -> None:
        self._parked -= conn.parked
        self._parked_by_network[conn.network] -= conn.parked
        if self._parked_by_network[conn.network] <= 0:
            del self._parked_by_network[conn.network]
        conn.parked = 0

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
        conn.sock.start_blocking(self.body_timeout)
        response, environ = wsgi.create(request, conn.sock, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        environ["strongroom.begin_transfer"] = conn.sock.begin_transfer
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
        head, body = _refusal(status)
        head += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        try:
            client.sendall(head + (b"" if request and request.method == "HEAD" else body))
        except OSError:
            self.log.debug("the client disconnected before the error response")


def _refusal(status: HTTPStatus, *, retry_after: int | None = None) -> tuple[bytes, bytes]:
    """Returns the head, without Connection and Content-Length, and the body of a problem document."""
    problem = {"type": "about:blank", "title": status.phrase, "status": status, "detail": status.description or status.phrase}
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nCache-Control: no-store\r\nContent-Type: application/problem+json\r\n"
    if retry_after is not None:
        head += f"Retry-After: {retry_after}\r\n"
    return head.encode(), json.dumps(problem | {"code": status.name.lower()}).encode()


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
