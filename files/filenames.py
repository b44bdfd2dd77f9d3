"""Validation and comparison of filenames. Accepted names are stored unchanged."""

import re
import unicodedata
from typing import Final


MAX_BYTES: Final = 255  # in UTF-8; the limit of common file systems
# Path separators, C0 and C1 control characters, bidirectional controls (which change how a name is displayed) and lone surrogates
# (which UTF-8 cannot encode). Characters that only look like a separator, such as U+2215, are allowed.
UNSAFE: Final = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_filename(name: str) -> str:
    """Returns the name unchanged if it is valid. The error text never repeats the name.

    Raises: ValueError.
    """
    if not name:
        raise ValueError("A filename must not be empty.")
    if name in {".", ".."}:
        raise ValueError("A filename must not be '.' or '..'.")
    if UNSAFE.search(name):
        raise ValueError("A filename must not contain '/', '\\', control characters, text direction controls or surrogates.")
    if name != name.strip():
        raise ValueError("A filename must not begin or end with a space.")
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(f"A filename must not be longer than {MAX_BYTES} bytes in UTF-8.")
    return name


def unique_key(name: str) -> str:
    """A key that is equal for names that differ only in case or Unicode composition. At most 255 characters for a valid name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
