"""Many slow readers, in a process of their own: `python -m tests.live.crowd --help`.

Each takes `rate` bytes a second of the same file and compares them with the source. The first line of standard input is the value
of the Authorization header. When every reader has received bytes, `complete` is printed. The readers go on for `seconds` or
until standard input is closed; then all of them hang up in mid-stream, and a line of JSON with the result is printed.
"""

import argparse
import json
import mmap
import select
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit


WINDOW = 32 * 1024  # of each reader's socket: what the kernel may take ahead of it
BEATS = 10  # a second
MAX_DELAY = 240  # seconds in which the last reader must have received bytes


class Reader:
    def __init__(self, request: bytes, address: tuple[str, int]) -> None:
        self.position = 0
        self.outcome = ""
        self._head = b""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        self._socket.settimeout(20)
        self._socket.connect(address)
        self._socket.sendall(request)
        self._socket.settimeout(0)

    def read(self, size: int, source: mmap.mmap) -> None:
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            return
        except OSError as error:
            self.outcome = type(error).__name__
            return
        if not data:
            self.outcome = "end"
        if not self.position and data:
            data = self._begin(data)
        if data != source[self.position : self.position + len(data)]:
            self.outcome = "wrong bytes"
        self.position += len(data)

    def _begin(self, data: bytes) -> bytes:
        """What of this lies behind the head."""
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if end and not head.startswith(b"HTTP/1.1 200 "):
            self.outcome = head.split(b"\r\n")[0].decode()
        return body if end and not self.outcome else b""

    def close(self) -> None:
        self._socket.close()


def is_closed(stream: TextIO) -> bool:
    """Whether the other end of a pipe that nobody writes to has closed it."""
    return bool(select.select([stream], [], [], 0)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("source", type=Path, help="what the file holds")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--arriving", type=float, default=20, help="new readers a second")
    parser.add_argument("--rate", type=int, default=16 * 1024, help="bytes a second that each of them takes")
    parser.add_argument("--seconds", type=float, default=180, help="to go on for after the crowd is complete")
    options = parser.parse_args()
    authorization = sys.stdin.readline().strip()
    url = urlsplit(options.url)
    request = f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: {authorization}\r\n\r\n".encode()
    readers: list[Reader] = []
    started = now = time.monotonic()
    end = started + options.count / options.arriving + MAX_DELAY
    is_complete = False
    with options.source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source:
        while now < end and not is_closed(sys.stdin):
            due = min(options.count, int((now - started) * options.arriving) + 1)
            readers += [Reader(request, (url.hostname or "", url.port or 80)) for _ in range(due - len(readers))]
            for reader in readers:
                if not reader.outcome:
                    reader.read(options.rate // BEATS, source)
            if not is_complete and len(readers) == options.count and all(reader.position or reader.outcome for reader in readers):
                is_complete = True
                end = now + options.seconds
                print("complete", flush=True)  # noqa: T201  read by the test
            time.sleep(max(0, now + 1 / BEATS - time.monotonic()))
            now = time.monotonic()
    for reader in readers:
        reader.close()
    slowest = min(reader.position for reader in readers)
    outcomes = Counter(reader.outcome or "reading" for reader in readers)
    print(json.dumps({"outcomes": outcomes, "bytes": sum(reader.position for reader in readers), "slowest": slowest}))  # noqa: T201  read by the test
    return 0


if __name__ == "__main__":
    sys.exit(main())
