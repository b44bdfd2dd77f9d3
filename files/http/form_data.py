"""Reads forms (multipart/form-data, RFC 7578) incrementally and never stores them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    StrictParserError,
    content_disposition_unquote,
    parse_options_header,
)

from files.errors import BadBody, FormTooLarge, TooLarge, UnsupportedBody
from files.http.bodies import announced_length, read_body


Bytes = bytes | bytearray | memoryview
MAX_FORM_PARTS = 1000
MAX_FORM_OVERHEAD = 1024**2  # bytes of a form that are not content of its files
MAX_FIELD_BYTES = 64 * 1024  # bytes of one plain form field


@dataclass
class Part:
    """One part of a form. `filename` is None for a plain field. Read `data` before the next part."""

    name: str
    filename: str | None
    content_type: str
    data: Iterator[Bytes]


def read_form(environ: dict[str, Any]) -> Iterator[Part]:
    """Yields the parts of a multipart/form-data body in their order.

    Raises: BadBody, BodyTimeout, FormTooLarge, UnsupportedBody.
    """
    if (announced_length(environ) or 0) > settings.FILES_MAX_UPLOAD_BYTES + MAX_FORM_OVERHEAD:
        raise FormTooLarge
    kind, options = parse_options_header(environ.get("CONTENT_TYPE", ""))
    if kind != "multipart/form-data":
        raise UnsupportedBody("This is not a form. Send multipart/form-data with a part named `file`.", code="not_a_form")
    boundary = options.get("boundary", "")
    if not 0 < len(boundary) <= 70 or not boundary.isascii() or not boundary.isprintable():
        raise BadBody("The Content-Type has no valid boundary (RFC 2046, section 5.1.1).", code="bad_form")
    events = _events(environ, boundary)
    for event in events:
        if not isinstance(event, MultipartSegment):
            raise _unknown_event(event)
        if any(
            header == "Content-Transfer-Encoding" and value.lower() not in {"7bit", "8bit", "binary"}
            for header, value in event.headerlist
        ):
            problem = "Send the parts without Content-Transfer-Encoding (RFC 7578, section 4.7)."
            raise UnsupportedBody(problem, code="transfer_encoding")
        data = _data(events)
        yield Part(event.name, _filename(event), event.content_type or "", data)
        for _ in data:  # skip the data that the caller did not read
            pass


def read_field(part: Part) -> str:
    """The text of a plain form field.

    Raises: BadBody, TooLarge.
    """
    value = bytearray()
    for piece in part.data:
        value += piece
        if len(value) > MAX_FIELD_BYTES:
            raise TooLarge(f"The form field is longer than {MAX_FIELD_BYTES} bytes.", code="field_too_large")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadBody("The form field is not encoded in UTF-8.", code="bad_form") from None


def _filename(segment: MultipartSegment) -> str | None:
    """The filename as the client sent it. The library would remove what looks like a path, but files must keep their names."""
    _, options = parse_options_header(segment["Content-Disposition"], unquote=lambda value, _: content_disposition_unquote(value))
    filename: str | None = options.get("filename")
    return filename


def _events(environ: dict[str, Any], boundary: str) -> Iterator[object]:
    parser = PushMultipartParser(boundary, max_segment_count=MAX_FORM_PARTS, strict=True)
    received = 0
    try:
        for piece in read_body(environ):
            received += len(piece)
            if received > settings.FILES_MAX_UPLOAD_BYTES + MAX_FORM_OVERHEAD:  # a chunked body has no announced length
                raise FormTooLarge
            try:
                if not parser.closed:
                    yield from parser.parse(piece)
            except StrictParserError:
                parser.close()  # raises if the form is incomplete; bytes after a complete form are ignored (RFC 2046, 5.1.1)
        parser.close()
    except ParserLimitReached:
        raise FormTooLarge("The form has too many parts, or the headers of a part are too large.") from None
    except MultipartError:
        raise BadBody("The form is malformed.", code="bad_form") from None


def _data(events: Iterator[object]) -> Iterator[Bytes]:
    """Yields the content of a part. Accepts all types of bytes, because the type differs between releases of the library."""
    for event in events:
        if event is None:
            return  # the end of the part
        if not isinstance(event, Bytes):
            raise _unknown_event(event)
        yield event


def _unknown_event(event: object) -> TypeError:
    """A programming error. Skipping the event could store an incomplete file."""
    return TypeError(f"The multipart parser emitted an unexpected {type(event).__name__}.")
