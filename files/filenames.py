"""Which filenames are accepted, and when two of them are the same. Accepted names are kept exactly as they came."""

import re
import unicodedata
from typing import Final


MAX_BYTES: Final = 255  # of UTF-8; what file systems allow
# Path separators, C0 and C1 controls, bidi controls (which show another name than is stored) and lone surrogates
# (which no encoding can store). What reads as a separator only to the eye, as U+2215 does, separates nothing and stays.
UNSAFE: Final = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_filename(name: str) -> str:
    """`name` itself; raises ValueError with a reason, which never repeats the name, if it must not be stored."""
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
    """Equal for names that differ only in case or in how accents are composed; at most 255 characters for an accepted name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
