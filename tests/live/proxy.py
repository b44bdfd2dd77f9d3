"""TCP between the server and what it depends on, and what can happen to that: slow, cut, reset, half-closed, swallowed."""

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


PIECE = 64 * 1024
OWN = b".strongroom"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing throws away what is unsent and resets the connection

Way = Literal["request", "answer"]
Happening = Literal["pass", "end", "half-close", "reset", "hang", "flip"]


@dataclass(frozen=True)
class Fault:
    """Befalls an exchange whose request matches: `after` bytes of one way pass, then something happens to the connection.

    `pause` is waited before every piece, `rate` is in bytes a second: both hold for all that passes that way. "flip" alters the
    next byte, and all that follows passes.
    """

    request: bytes = b""  # searched for in what the client sends
    way: Way = "answer"
    behind: bytes = b""  # searched for in what goes that way: `after` counts from its end
    after: int = 0
    then: Happening = "pass"
    pause: float = 0
    rate: float = 0
    times: int = 10**9  # exchanges that it befalls


class Proxy:
    """Listens on a port of loopback, and passes to one address what comes. `during` tells what goes wrong meanwhile."""

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
        self.befallen = 0  # exchanges that the present fault, or the last one, has met
        self.happened = 0  # of those, how many came as far as what happens then
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._connections)

    @contextmanager
    def during(self, fault: Fault) -> Iterator["Proxy"]:
        """Connections that hang are reset at its end."""
        self.befallen, self.happened, self.fault = 0, 0, fault
        try:
            yield self
        finally:
            self.fault = None

    @contextmanager
    def down(self) -> Iterator["Proxy"]:
        """Whatever is behind it has died: open connections are reset, new ones refused."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        try:
            yield self
        finally:
            self.up()

    def up(self) -> None:
        """Ends `down` before its time."""
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1000)
            threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """All that are open now."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.reset()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def meets(self, fault: Fault) -> bool:
        """Whether one more exchange is befallen."""
        with self._lock:
            if self.befallen >= fault.times:
                return False
            self.befallen += 1
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

    def forget(self, connection: "Connection") -> None:
        with self._lock:
            self._connections.discard(connection)


class Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._fault: Fault | None = None  # that befalls the present exchange
        self._left = 0
        self._is_counting = False
        self._running = count(1)
        self._is_closed = threading.Event()
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        ways: tuple[tuple[Way, socket.socket, socket.socket], ...] = (
            ("request", self._client, self._server),
            ("answer", self._server, self._client),
        )
        for way in ways:
            threading.Thread(target=self._pump, args=way, daemon=True).start()

    def reset(self) -> None:
        self._is_closed.set()
        for end in (self._client, self._server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # or close() waits for the thread that reads
            end.close()

    def _pump(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(PIECE):
                if way == "request":
                    self._note(data)
                if not self._pass(way, data, sink):
                    return
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._is_closed.set()
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        finally:
            if next(self._running) == 2:  # the other way has ended, too
                self._proxy.forget(self)
                self._client.close()
                self._server.close()

    def _note(self, data: bytes) -> None:
        """Whether a fault begins with this request, or an old one ends."""
        fault = self._proxy.fault
        if self._fault is not None and self._fault is not fault:
            self._fault = None
        if OWN in data.partition(b"\r\n")[0]:
            return  # the server looks after its vault, in the middle of any test: what is counted there is not what befell it
        if fault and self._fault is None and re.search(fault.request, data) and self._proxy.meets(fault):
            self._left, self._is_counting, self._fault = fault.after, not fault.behind, fault

    def _pass(self, way: Way, data: bytes, sink: socket.socket) -> bool:
        """False when nothing more will go this way."""
        fault = self._fault
        if fault is None or fault.way != way or fault is not self._proxy.fault:
            sink.sendall(data)
            return True
        time.sleep(fault.pause + (len(data) / fault.rate if fault.rate else 0))
        if fault.then == "pass":
            sink.sendall(data)
            return True
        if not self._is_counting and (found := re.search(fault.behind, data)):
            self._is_counting = True
            self._left += found.end()
        if not self._is_counting or self._left > len(data) - (fault.then == "flip"):
            sink.sendall(data)
            self._left -= len(data) if self._is_counting else 0
            return True
        sink.sendall(data[: self._left])
        self._proxy.happened += 1
        if fault.then == "flip":
            sink.sendall(bytes([data[self._left] ^ 1]) + data[self._left + 1 :])
            self._fault = None
            return True
        self._happen(fault, sink)
        return False

    def _happen(self, fault: Fault, sink: socket.socket) -> None:
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
