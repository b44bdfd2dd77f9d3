"""Ports of loopback that are free, and stay it until somebody listens on them."""

import os
import socket
import weakref


def hold_port(holder: object) -> int:
    """A port that the kernel gives to nobody else while `holder` lives: who binds it by its number shares it."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        weakref.finalize(holder, os.close, bound.detach())
    return port
