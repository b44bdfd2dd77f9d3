"""Reserves free loopback ports until a server listens on them."""

import os
import socket
import weakref


def hold_port(holder: object) -> int:
    """Returns a port that the kernel assigns to no other process while `holder` exists. A server can still bind it by number."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        weakref.finalize(holder, os.close, bound.detach())
    return port
