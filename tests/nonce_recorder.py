"""Records each (key, nonce) pair that this process encrypts with (INV-04): a second use of a pair reveals the key of AES-GCM."""

import hashlib

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


used_pairs: set[bytes] = set()
repeated_lengths: list[int] = []  # plaintext lengths of the encryptions that used a pair for a second time


class RecordingAESGCM:
    """A replacement for `AESGCM` in `vault.crypto` that records what it encrypts with."""

    def __init__(self, key: bytes) -> None:
        self._aead, self._key_digest = AESGCM(key), hashlib.sha256(key).digest()[:16]

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        assert len(nonce) == 12  # C-2
        if (pair := self._key_digest + nonce) in used_pairs:
            repeated_lengths.append(len(data))
        used_pairs.add(pair)
        return self._aead.encrypt(nonce, data, associated_data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        return self._aead.decrypt(nonce, data, associated_data)
