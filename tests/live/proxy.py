"""A TCP proxy between the server and its dependencies that injects faults: delays, resets, half-closed and silent connections."""

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Literal
from urllib.parse import urlsplit

from tests.live.ports import hold_port


CHUNK_SIZE = 64 * 1024
OWN_PREFIX = b".strongroom"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() discards unsent data and resets the connection

Direction = Literal["request", "response"]
Effect = Literal["pass", "end", "half-close", "reset", "hang", "flip"]


@dataclass(frozen=True)
class Fault:
    """A fault of every exchange whose request matches: after a number of bytes in one direction, an effect on the connection.

    `pause` (seconds before each chunk) and `rate` (bytes per second) apply to all data in that direction. The effect "flip"
    inverts one bit of the next byte; all later bytes pass.
    """

    request: bytes = b""  # regular expression, searched in the data that the client sends
    direction: Direction = "response"
    after_match: bytes = b""  # regular expression, searched in that direction: `after` counts from the end of the match
    after: int = 0  # bytes
    then: Effect = "pass"
    pause: float = 0
    rate: float = 0
    times: int = 10**9  # the number of exchanges that get the fault


class Proxy:
    """Listens on a loopback port and forwards connections to one address. `during` injects a fault."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._target = (target.hostname or "", target.port or 0)
        self.port = hold_port(self)
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1000)
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        here = target.netloc.replace(f"{target.hostname}:{target.port}", f"127.0.0.1:{self.port}")
        self.url = target._replace(netloc=here).geturl()
        self.fault: Fault | None = None
        self.matched = 0  # exchanges that matched the current or latest fault
        self.triggered = 0  # exchanges in which the effect of that fault occurred
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        with self._lock:
            return len(self._connections)

    @contextmanager
    def during(self, fault: Fault) -> Iterator["Proxy"]:
        """Injects the fault inside the block. Connections that hang are reset at its end."""
        self.matched, self.triggered, self.fault = 0, 0, fault
        try:
            yield self
        finally:
            self.fault = None

    @contextmanager
    def down(self) -> Iterator["Proxy"]:
        """Simulates a dead dependency inside the block: resets open connections and refuses new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        try:
            yield self
        finally:
            self.up()

    def up(self) -> None:
        """Ends `down` before the end of its block."""
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1000)
            threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Resets all open connections."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.reset()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def claim(self, fault: Fault) -> bool:
        """Returns whether one more exchange gets the fault, and counts that exchange."""
        with self._lock:
            if self.matched >= fault.times:
                return False
            self.matched += 1
            return True

    def _accept(self) -> None:
        listener = self._listener
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                connection = Connection(self, client, server)
                with self._lock:
                    self._connections.add(connection)
                connection.start()

    def discard(self, connection: "Connection") -> None:
        with self._lock:
            self._connections.discard(connection)


class Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._fault: Fault | None = None  # the fault of the current exchange
        self._remaining = 0
        self._is_counting = False
        self._ended_directions = count(1)
        self._is_closed = threading.Event()
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        directions: tuple[tuple[Direction, socket.socket, socket.socket], ...] = (
            ("request", self._client, self._server),
            ("response", self._server, self._client),
        )
        for direction in directions:
            threading.Thread(target=self._pump, args=direction, daemon=True).start()

    def reset(self) -> None:
        self._is_closed.set()
        for end in (self._client, self._server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # without it, close() waits for the reading thread
            end.close()

    def _pump(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK_SIZE):
                if direction == "request":
                    self._select_fault(data)
                if not self._forward(direction, data, sink):
                    return
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._is_closed.set()
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        finally:
            if next(self._ended_directions) == 2:  # the other direction has ended, too
                self._proxy.discard(self)
                self._client.close()
                self._server.close()

    def _select_fault(self, data: bytes) -> None:
        """Starts the proxy's fault if this request matches it, and ends an earlier fault."""
        fault = self._proxy.fault
        if self._fault is not None and self._fault is not fault:
            self._fault = None
        if OWN_PREFIX in data.partition(b"\r\n")[0]:
            return  # the server maintains its own objects in the vault during any test; those requests never get a fault
        if fault and self._fault is None and re.search(fault.request, data) and self._proxy.claim(fault):
            self._remaining, self._is_counting, self._fault = fault.after, not fault.after_match, fault

    def _forward(self, direction: Direction, data: bytes, sink: socket.socket) -> bool:
        """Returns False when no more data may pass in this direction."""
        fault = self._fault
        if fault is None or fault.direction != direction or fault is not self._proxy.fault:
            sink.sendall(data)
            return True
        time.sleep(fault.pause + (len(data) / fault.rate if fault.rate else 0))
        if fault.then == "pass":
            sink.sendall(data)
            return True
        if not self._is_counting and (found := re.search(fault.after_match, data)):
            self._is_counting = True
            self._remaining += found.end()
        if not self._is_counting or self._remaining > len(data) - (fault.then == "flip"):
            sink.sendall(data)
            self._remaining -= len(data) if self._is_counting else 0
            return True
        sink.sendall(data[: self._remaining])
        self._proxy.triggered += 1
        if fault.then == "flip":
            sink.sendall(bytes([data[self._remaining] ^ 1]) + data[self._remaining + 1 :])
            self._fault = None
            return True
        self._apply(fault, sink)
        return False

    def _apply(self, fault: Fault, sink: socket.socket) -> None:
        if fault.then == "reset":
            self.reset()
        elif fault.then == "end":
            for end in (self._client, self._server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        elif fault.then == "half-close":
            sink.shutdown(socket.SHUT_WR)
        else:
            while self._proxy.fault is fault and not self._is_closed.wait(0.05):
                pass
            self.reset()


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    with closing(Proxy(url)) as proxy:
        yield proxy
