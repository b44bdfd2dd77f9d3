"""HTTP fields for content: dispositions (RFC 6266), ranges and conditions (RFC 9110), digests (RFC 9530). Independent of Django.

Each function takes the unparsed value of a field, or None if the request does not have it. Entity tags include their quotes.
"""

import re
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from files.filenames import UNSAFE


# --- Content-Disposition ---


def content_disposition(kind: Literal["attachment", "inline"], filename: str) -> str:
    """A Content-Disposition with `filename*`, and with an ASCII `filename` for clients that do not support the former (curl).

    Replaces characters that valid filenames never have, so that a name that was stored in another way cannot harm the client.
    """
    name = UNSAFE.sub("_", filename)
    if name in {"", ".", ".."}:
        name = "_"
    return f"{kind}; filename=\"{ascii_name(name)}\"; filename*=UTF-8''{quote(name, safe='!#$&+^`|')}"


def ascii_name(name: str) -> str:
    """The name without accents, with `_` in place of characters that are not ASCII or that a client could misinterpret.

    These are `"` and `;`, but also `%`, which some clients decode, and an initial `.` or `-`, as in hidden files and options.
    """
    base = "".join(character for character in unicodedata.normalize("NFD", name) if not unicodedata.combining(character))
    return re.sub(r"[^A-Za-z0-9 !#$&()+,.=@^_{}~\[\]-]|^[.-]", "_", base) or "_"


# --- Ranges ---


class Unsatisfiable(Exception):
    """The requested range is outside the content. Respond with 416."""


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes [start, stop) of the content. Never empty."""

    start: int
    stop: int

    def content_range(self, length: int) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{length}"


# No length has more than twenty digits. The limit prevents expensive conversions of long numbers by int().
RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,20})-([0-9]{0,20})|-([0-9]{1,20}))", re.ASCII | re.IGNORECASE)


def parse_range(header: str | None, length: int) -> Range | None:
    """The requested range, or None if the field is ignored and the whole content must be sent (RFC 9110, section 14.2).

    Ignores units other than bytes, several ranges, malformed values and suffix ranges of empty content.

    Raises: Unsatisfiable.
    """
    if header is None or not (match := RANGE.fullmatch(header.strip(" \t"))):
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        if int(suffix) == 0:
            raise Unsatisfiable
        return Range(max(0, length - int(suffix)), length) if length else None
    start, stop = int(first), int(last) + 1 if last else length
    if last and stop <= start:
        return None
    if start >= length:
        raise Unsatisfiable
    return Range(start, min(stop, length))


# --- Conditions: each function returns whether the condition is true ---


ENTITY_TAG: Final = re.compile(r'(?:[ \t]*,)*[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


def if_match(header: str | None, etag: str | None) -> bool:
    """If False, respond with 412. `etag` is None if the resource does not exist. A malformed field matches nothing."""
    if header is None:
        return True
    if etag is None:
        return False
    return header.strip(" \t") == "*" or etag in entity_tags(header)


def if_none_match(header: str | None, etag: str | None) -> bool:
    """If False, respond with 304 to GET and HEAD, and with 412 to other methods.

    Uses the weak comparison, because proxies turn the entity tags of compressed responses into weak ones.
    """
    if header is None or etag is None:
        return True
    return header.strip(" \t") != "*" and etag not in (tag.removeprefix("W/") for tag in entity_tags(header))


def if_range(header: str | None, etag: str) -> bool:
    """If False, ignore Range and send the whole content. Dates never match: they are weak, and responses do not have one."""
    return header is None or header.strip(" \t") == etag


def entity_tags(header: str) -> Iterator[str]:
    """Yields the entity tags of a list up to the first malformed one."""
    position = 0
    while match := ENTITY_TAG.match(header, position):
        yield match[1]
        position = match.end()


# --- Digests ---


DIGEST: Final = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*=*):")


def repr_digest(sha256_hex: str) -> str:
    """The value of a Repr-Digest field."""
    return f"sha-256=:{b64encode(bytes.fromhex(sha256_hex)).decode()}:"


def parse_digest(header: str | None) -> bytes | None:
    """The SHA-256 digest in a Content-Digest or Repr-Digest field, or None if it has none.

    Raises: ValueError.
    """
    if header is None or not header.strip(" \t"):
        return None
    digest = None
    for member in header.split(","):
        if not (match := DIGEST.fullmatch(member.strip(" \t"))):
            raise ValueError("A digest field must have the form 'sha-256=:<base64>:'.")
        if match[1] == "sha-256":
            digest = decode_sha256(match[2])
    return digest


def decode_sha256(text: str) -> bytes:
    """Decodes a SHA-256 digest in base64, with or without padding.

    Raises: ValueError.
    """
    try:
        digest = b64decode(text + "=" * (-len(text) % 4), validate=True)  # RFC 9651 tells parsers to accept missing padding
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError("A SHA-256 digest must be 32 bytes in base64.")
    return digest
