"""HTTP fields of byte responses: dispositions (RFC 6266), ranges and conditions (RFC 9110), digests (RFC 9530). No Django.

Every function takes a field's value as it came, `None` if it was not sent. Entity tags come and go with their quotes.
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
    """Both names: `filename*` as it is, and `filename` in ASCII for clients that know no other (curl is one).

    Characters that no accepted filename has are replaced, so that nothing of a name stored by other means acts on the reader.
    """
    name = UNSAFE.sub("_", filename)
    if name in {"", ".", ".."}:
        name = "_"
    return f"{kind}; filename=\"{ascii_name(name)}\"; filename*=UTF-8''{quote(name, safe='!#$&+^`|')}"


def ascii_name(name: str) -> str:
    """`name` without accents, and `_` for all that is not ASCII or that a client may read as more than itself.

    That is `"` and `;`, but also `%`, which some decode, and a first `.` or `-`, which makes hidden files and options.
    """
    base = "".join(character for character in unicodedata.normalize("NFD", name) if not unicodedata.combining(character))
    return re.sub(r"[^A-Za-z0-9 !#$&()+,.=@^_{}~\[\]-]|^[.-]", "_", base) or "_"


# --- Ranges ---


class Unsatisfiable(Exception):
    """None of the range asked for exists: 416."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [start, stop) of a content, never empty."""

    start: int
    stop: int

    def content_range(self, length: int) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{length}"


# Twenty digits are more than any length has, and keep int() from work that the client decides.
RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,20})-([0-9]{0,20})|-([0-9]{1,20}))", re.ASCII | re.IGNORECASE)


def parse_range(header: str | None, length: int) -> Range | None:
    """The one range asked for, or None where RFC 9110 14.2 lets a server ignore the field and send everything.

    Ignored are other units, several ranges, anything malformed and, since it has no bytes to name, any suffix of an
    empty content. Raises Unsatisfiable.
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


# --- Conditions: each function answers whether the request may go on ---


ENTITY_TAG: Final = re.compile(r'(?:[ \t]*,)*[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


def if_match(header: str | None, etag: str | None) -> bool:
    """False: answer 412. `etag` is None if there is nothing yet. A field that cannot be read matches nothing."""
    if header is None:
        return True
    if etag is None:
        return False
    return header.strip(" \t") == "*" or etag in entity_tags(header)


def if_none_match(header: str | None, etag: str | None) -> bool:
    """False: answer 304 to GET and HEAD, else 412. Weak comparison, for proxies weaken the tags of what they compress."""
    if header is None or etag is None:
        return True
    return header.strip(" \t") != "*" and etag not in (tag.removeprefix("W/") for tag in entity_tags(header))


def if_range(header: str | None, etag: str) -> bool:
    """False: ignore Range and send everything. Dates never hold: they are weak, and no content here has one."""
    return header is None or header.strip(" \t") == etag


def entity_tags(header: str) -> Iterator[str]:
    """The entity tags of a list, up to the first thing that is none."""
    position = 0
    while match := ENTITY_TAG.match(header, position):
        yield match[1]
        position = match.end()


# --- Digests ---


DIGEST: Final = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*=*):")


def repr_digest(sha256_hex: str) -> str:
    return f"sha-256=:{b64encode(bytes.fromhex(sha256_hex)).decode()}:"


def parse_digest(header: str | None) -> bytes | None:
    """The SHA-256 in a Content-Digest or Repr-Digest, None if it has none. Raises ValueError if it cannot be read."""
    if header is None or not header.strip(" \t"):
        return None
    digest = None
    for member in header.split(","):
        if not (match := DIGEST.fullmatch(member.strip(" \t"))):
            raise ValueError("A digest field must read like 'sha-256=:<base64>:'.")
        if match[1] == "sha-256":
            digest = sha256_of(match[2])
    return digest


def sha256_of(text: str) -> bytes:
    try:
        digest = b64decode(text + "=" * (-len(text) % 4), validate=True)  # RFC 9651 asks readers to do without padding
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError("A SHA-256 digest must be the base64 form of 32 bytes.")
    return digest
