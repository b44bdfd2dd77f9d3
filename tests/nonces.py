"""Every (key, nonce) pair that this process encrypts with, for INV-04: a second use of one gives the key away."""

import hashlib

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


used: set[bytes] = set()
repeated: list[int] = []  # lengths of what was encrypted under a pair that had been used


class Recorded:
    """The AEAD that `vault.crypto` uses, with a memory."""

    def __init__(self, key: bytes) -> None:
        self._aead, self._key = AESGCM(key), hashlib.sha256(key).digest()[:16]

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        assert len(nonce) == 12  # C-2
        if (pair := self._key + nonce) in used:
            repeated.append(len(data))
        used.add(pair)
        return self._aead.encrypt(nonce, data, associated_data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        return self._aead.decrypt(nonce, data, associated_data)
