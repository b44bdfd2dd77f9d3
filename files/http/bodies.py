"""Reads request bodies incrementally and never stores them.

Django's parsers must not read them, because they write files larger than 2.5 MB to a temporary file in plaintext (A-5).
"""

from collections.abc import Iterator
from typing import Any

from files.errors import BadBody, BodyTimeout, UnsupportedBody


CHUNK = 256 * 1024  # bytes


def announced_length(environ: dict[str, Any]) -> int | None:
    """The Content-Length in bytes, or None if it is missing, for example for a chunked body."""
    value = environ.get("CONTENT_LENGTH") or ""
    return int(value) if value.isascii() and value.isdigit() else None


def read_body(environ: dict[str, Any]) -> Iterator[bytes]:
    """Yields the body in pieces. An incomplete body is an error, so that it never looks like a complete upload (T-14).

    Raises: BadBody, BodyTimeout, UnsupportedBody.
    """
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() not in {"", "identity"}:
        raise UnsupportedBody("Send the body without Content-Encoding.", code="content_encoding")
    if begin_transfer := environ.get("strongroom.begin_transfer"):  # of config/worker.py
        begin_transfer()
    stream, left = environ["wsgi.input"], announced_length(environ)
    if left is None and not environ.get("wsgi.input_terminated"):
        return  # neither Content-Length nor chunks, so there is no body
    try:
        while left is None or left > 0:
            piece = stream.read(CHUNK if left is None else min(CHUNK, left))
            if not piece:
                break
            if left is not None:
                left -= len(piece)
            yield piece
    except TimeoutError:
        raise BodyTimeout from None
    except OSError:  # gunicorn's errors for a malformed chunk and for a closed connection
        raise BadBody from None
    if left:
        raise BadBody
