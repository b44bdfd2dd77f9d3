"""The master keys that wrap the collections' keys: named, one of them active.

One `name base64(32 bytes)` a line, `#` begins a comment, the last line is the active key. Rotation appends a line.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from django.conf import settings

from vault.crypto import KEY_SIZE, WrongKey


NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Keyring:
    _keys: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys)}>"

    @property
    def active(self) -> tuple[str, bytes]:
        """Name and key of the one that wraps new keys."""
        return list(self._keys.items())[-1]

    def key(self, name: str) -> bytes:
        """Raises WrongKey for a name that is not, or no longer, in the keyring."""
        try:
            return self._keys[name]
        except KeyError:
            raise WrongKey(f"the keyring has no master key {name!r}") from None


def keyring() -> Keyring:
    return parse(settings.KEYRING)


@lru_cache(maxsize=1)
def parse(text: str) -> Keyring:
    """Raises ValueError that names a line by its number only: a name in the wrong place may be a key."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(f"KEYRING, line {number}: write one name and one base64 key, with a space between")
        name, key = fields[0], decode_key(fields[1])
        if not NAME.fullmatch(name):
            raise ValueError(f"KEYRING, line {number}: a name is at most 63 letters, digits, '.', '_' and '-'")
        if len(key) != KEY_SIZE:
            raise ValueError(f"KEYRING, line {number}: the key is not the base64 form of {KEY_SIZE} bytes")
        if name in keys:
            raise ValueError(f"KEYRING, line {number}: this name stands in an earlier line too")
        if key in keys.values():
            raise ValueError(f"KEYRING, line {number}: this key stands in an earlier line too; rotation needs a new one")
        keys[name] = key
    if not keys:
        raise ValueError("KEYRING holds no key")
    return Keyring(keys)


def decode_key(text: str) -> bytes:
    """The bytes, or none of them: an error of base64's own would carry no reason that is worth its risk."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
