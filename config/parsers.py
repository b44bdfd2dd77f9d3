"""A strict JSON parser. Attackers bypass checks with input that two parsers read differently (A-1)."""

import codecs
import json
from collections.abc import Iterable, Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from files.errors import TooLarge


MAX_DEPTH = 50


class StrictJSONParser(JSONParser):
    """Refuses JSON that parsers read differently: duplicate names, NaN, huge numbers, deep nesting, NUL and lone surrogates."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        raw = stream.read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
        if len(raw) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise TooLarge("The request body is too large.", code="body_too_large")
        if raw.startswith(codecs.BOM_UTF8):
            raise ParseError("Send JSON in UTF-8 without a byte order mark.")
        try:
            data = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        except UnicodeDecodeError:
            raise ParseError("Send JSON in UTF-8.") from None
        except RecursionError:
            raise ParseError("The JSON is nested too deeply.") from None
        except ValueError as error:
            # The decoder's messages contain a position, but no content.
            raise ParseError(f"The body is not valid JSON: {error}.") from None
        if not isinstance(data, dict):
            raise ParseError("Send a JSON object.")
        _check(data, 0)
        return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ParseError("The JSON is nested too deeply.")
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ParseError("Text must not contain NUL or lone surrogates.")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check(name, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
    elif isinstance(value, float) and value in {float("inf"), float("-inf")}:
        raise ParseError("A number is too large.")


class IgnoreAccept(BaseContentNegotiation):
    """Ignores the Accept header, because each resource has one representation (RFC 9110, 12.1 allows this)."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == kind), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type or ""
