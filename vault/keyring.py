"""The master keys (key-encryption keys) that wrap every data key. They are named, and one of them is active.

`KEYRING` has one `name base64(32 bytes)` a line; `#` begins a comment. The last line is the active key. Rotation appends a line.
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
        """Name and key of the master key that wraps new data keys."""
        return list(self._keys.items())[-1]

    def key(self, name: str) -> bytes:
        """Returns the master key with this name.

        Raises: WrongKey.
        """
        try:
            return self._keys[name]
        except KeyError:
            raise WrongKey(f"the keyring has no master key {name!r}") from None


def keyring() -> Keyring:
    """Returns the keyring in the settings.

    Raises: ValueError.
    """
    return parse(settings.KEYRING)


@lru_cache(maxsize=1)
def parse(text: str) -> Keyring:
    """Parses a keyring. An error names a line only by its number, because a misplaced name may be a key.

    Raises: ValueError.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(f"KEYRING, line {number}: write one name and one base64 key, separated by a space")
        name, key = fields[0], _decode_key(fields[1])
        if not NAME.fullmatch(name):
            raise ValueError(f"KEYRING, line {number}: a name is at most 63 letters, digits, '.', '_' and '-'")
        if len(key) != KEY_SIZE:
            raise ValueError(f"KEYRING, line {number}: the key is not the base64 form of {KEY_SIZE} bytes")
        if name in keys:
            raise ValueError(f"KEYRING, line {number}: an earlier line has the same name")
        if key in keys.values():
            raise ValueError(f"KEYRING, line {number}: an earlier line has the same key; rotation needs a new one")
        keys[name] = key
    if not keys:
        raise ValueError("KEYRING has no key")
    return Keyring(keys)


def _decode_key(text: str) -> bytes:
    """Returns the decoded bytes; b"" if invalid, because the message of the decoder's error could contain part of the key."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
