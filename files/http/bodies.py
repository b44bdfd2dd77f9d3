"""The body of a request, read as it arrives and never kept.

Django must not touch it: its parsers write what is larger than 2.5 MB to a temporary file, in plaintext (A-5).
"""

from collections.abc import Iterator
from typing import Any

from files.errors import BadBody, BodyTimeout, UnsupportedBody


CHUNK = 256 * 1024


def announced_length(environ: dict[str, Any]) -> int | None:
    """Content-Length, or None for a chunked body."""
    value = environ.get("CONTENT_LENGTH") or ""
    return int(value) if value.isascii() and value.isdigit() else None


def read_body(environ: dict[str, Any]) -> Iterator[bytes]:
    """The body in pieces. Raises unless it arrives to its end, so that a cut upload is never taken for a whole one (T-14)."""
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() not in {"", "identity"}:
        raise UnsupportedBody("Send the body without Content-Encoding.", code="content_encoding")
    stream, left = environ["wsgi.input"], announced_length(environ)
    if left is None and not environ.get("wsgi.input_terminated"):
        return  # neither a length nor chunks: there is no body
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
    except OSError:  # gunicorn's errors for a broken chunk and for a client that went away
        raise BadBody from None
    if left:
        raise BadBody
