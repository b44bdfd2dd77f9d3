"""The object format: Tink's streaming AEAD `AES256-GCM-HKDF`, and the derivation and wrapping of its keys (docs/format.md).

    object  = 0x28 || salt[32] || nonce_prefix[7] || segment_0 || segment_1 || ...
    key     = HKDF-SHA256(key material, salt, info=associated data, 32)
    segment = AES-GCM(key, nonce_prefix || u32be(index) || is_last, plaintext, no further associated data) || tag[16]

A ciphertext segment has `segment_size` bytes, including its tag; the last one may be shorter. The header counts as part of the
first segment, so segment i > 0 starts at byte i * segment_size. Source: Tink's wire format, "Streaming AEAD: AES-GCM-HKDF".
The object contains neither the format's name nor the segment size: both are in the row and in the associated data.

Stock Tink accepts an empty last segment, and bytes after a full last segment. The row states the length, so every segment
has exactly one valid size. Any other size is a `CorruptObject`. This module uses neither Django nor a store.
"""

import os
import struct
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


AES_GCM: Final = "AES-GCM"
NONE: Final = "NONE"
FORMAT_VERSION: Final = 1
KEY_SIZE: Final = 32
SALT_SIZE: Final = 32
PREFIX_SIZE: Final = 7
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
HEADER_SIZE: Final = 1 + SALT_SIZE + PREFIX_SIZE
MAX_SEGMENTS: Final = 2**32 - 1


class WrongKey(Exception):
    """The content was encrypted with another key. The object may be intact."""


class CorruptObject(Exception):
    """The object differs from what was written."""


# --- Keys ---


def new_key() -> bytes:
    return os.urandom(KEY_SIZE)


def new_salt() -> bytes:
    return os.urandom(SALT_SIZE)


def encode(*fields: str | int | bytes) -> bytes:
    """Encodes fields as bytes. The encoding is injective: each field is preceded by its type and its length (u32be)."""
    encoded = []
    for field in fields:
        if isinstance(field, int):
            kind, value = b"i", str(field).encode()
        elif isinstance(field, str):
            kind, value = b"s", field.encode()
        else:
            kind, value = b"b", field
        encoded.append(kind + struct.pack(">I", len(value)) + value)
    return b"".join(encoded)


class Binding(NamedTuple):
    """The ids of an object and of its file, collection and tenant: UUIDs in canonical text form."""

    tenant: str
    collection: str
    file: str
    object_id: str


def associated_data(*, tenant: str, collection: str, file: str, object_id: str, cipher: str, segment_size: int) -> bytes:
    """Returns the associated data that binds an object to these ids. It cannot be decrypted with others (INV-05)."""
    return encode("strongroom/object", FORMAT_VERSION, tenant, collection, file, object_id, cipher, segment_size)


def hkdf(key: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869), restricted to the key and salt sizes of this format. The RFC also accepts an empty salt.

    Raises: ValueError.
    """
    if len(key) != KEY_SIZE or len(salt) != SALT_SIZE:
        raise ValueError(f"a key must have {KEY_SIZE} bytes and a salt {SALT_SIZE}")
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


@dataclass(frozen=True, slots=True, repr=False)
class FileKey:
    """The key material of one content, and the commitment to it that the row stores. The repr contains neither (C-5)."""

    material: bytes
    commitment: bytes


def derive_file_key(collection_key: bytes, *, key_salt: bytes, aad: bytes) -> FileKey:
    """Derives the key of one content from the collection's key and a salt that is stored only in the file's row.

    Raises: ValueError.
    """
    okm = hkdf(collection_key, salt=key_salt, info=b"strongroom/file/v1" + aad, length=2 * KEY_SIZE)
    return FileKey(material=okm[:KEY_SIZE], commitment=okm[KEY_SIZE:])


def recover_file_key(collection_key: bytes, *, key_salt: bytes, aad: bytes, commitment: bytes) -> FileKey:
    """Like `derive_file_key`, but checks the key against the row's commitment before anything is decrypted with it.

    Raises: WrongKey, ValueError.
    """
    if len(key_salt) != SALT_SIZE:
        raise WrongKey("the row's salt has the wrong length")
    key = derive_file_key(collection_key, key_salt=key_salt, aad=aad)
    if not compare_digest(key.commitment, commitment):
        raise WrongKey("the row's commitment is to another key")
    return key


def wrap_key(kek: bytes, key: bytes, *, context: bytes) -> bytes:
    """Returns nonce[12] || AES-256-GCM(kek, nonce, key, context) || tag[16].

    The nonce is random, so a kek must wrap fewer than 2**32 keys.

    Raises: ValueError.
    """
    if len(kek) != KEY_SIZE or len(key) != KEY_SIZE:
        # A shorter kek would select AES-128. A key of another length could not be unwrapped.
        raise ValueError(f"a key must have {KEY_SIZE} bytes")
    nonce = os.urandom(NONCE_SIZE)
    return nonce + AESGCM(kek).encrypt(nonce, key, context)


def unwrap_key(kek: bytes, wrapped: bytes, *, context: bytes) -> bytes:
    """Returns the key that `wrap_key` wrapped with this kek and this context.

    Raises: WrongKey.
    """
    if len(wrapped) != NONCE_SIZE + KEY_SIZE + TAG_SIZE:
        raise WrongKey("the wrapped key has the wrong length")
    try:
        return AESGCM(kek).decrypt(wrapped[:NONCE_SIZE], wrapped[NONCE_SIZE:], context)
    except InvalidTag:
        raise WrongKey("the key-encryption key or its context does not match") from None


# --- Layout ---


@dataclass(frozen=True, slots=True)
class Layout:
    """Maps the plaintext bytes of a content of this `length` to the bytes of its object. `NONE` has no header and no tags."""

    length: int
    segment_size: int
    header_size: int = HEADER_SIZE
    tag_size: int = TAG_SIZE

    def __post_init__(self) -> None:
        if self.length < 0 or self.segment_size <= self.header_size + self.tag_size:
            raise ValueError("the length must not be negative, and a segment must hold its header, its tag and one byte")

    @property
    def capacity(self) -> int:
        """Plaintext bytes in a full segment; the first one holds `header_size` fewer."""
        return self.segment_size - self.tag_size

    @property
    def segments(self) -> int:
        """The number of segments. An empty content has one empty segment; any other segment has at least one byte."""
        return max(1, -(-(self.length + self.header_size) // self.capacity))

    @property
    def object_size(self) -> int:
        return self.header_size + self.length + self.segments * self.tag_size

    def index_of(self, offset: int) -> int:
        """The index of the segment that contains plaintext byte `offset`."""
        return (offset + self.header_size) // self.capacity

    def offset_of(self, index: int) -> int:
        """The plaintext offset of the first byte of segment `index`. The index `segments` gives the end."""
        return min(self.length, max(0, index * self.capacity - self.header_size))

    def object_range(self, first: int, stop: int) -> tuple[int, int]:
        """The bytes [start, end) of the object that contain segments [first, stop); segment 0 includes the header."""
        return first * self.segment_size, min(self.object_size, stop * self.segment_size)


def layout_of(cipher: str, *, length: int, segment_size: int) -> Layout:
    """Returns the layout of a content for the cipher in its row. An unknown cipher is an error, not unauthenticated content.

    Raises: ValueError.
    """
    if cipher == AES_GCM:
        return Layout(length, segment_size)
    if cipher == NONE:
        return Layout(length, segment_size, header_size=0, tag_size=0)
    raise ValueError("the cipher is neither AES-GCM nor NONE")


# --- Encryption ---


class Encryptor(Protocol):
    """Encrypts one content, once and in order: `header`, then what `update` returns, then what `finish` returns."""

    header: bytes

    def update(self, data: bytes | bytearray | memoryview) -> bytes: ...

    def finish(self) -> bytes: ...


class PassThroughEncryptor:
    """For `NONE`: the object is the content."""

    header = b""

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)

    def finish(self) -> bytes:
        return b""


class AesGcmEncryptor:
    """Each instance generates its own salt and nonce prefix, so that a repeated upload never reuses a nonce (C-6)."""

    def __init__(self, key_material: bytes, *, aad: bytes, segment_size: int) -> None:
        salt, self._prefix = os.urandom(SALT_SIZE), os.urandom(PREFIX_SIZE)
        self.header = bytes([HEADER_SIZE]) + salt + self._prefix
        self._aead = AESGCM(hkdf(key_material, salt=salt, info=aad, length=KEY_SIZE))
        self._capacity = Layout(0, segment_size).capacity
        self._room = self._capacity - HEADER_SIZE  # plaintext bytes of the current segment
        self._buffer = bytearray()
        self._index = 0
        self._finished = False

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Returns the ciphertext of each segment that cannot be the last. A full segment is buffered until more bytes follow.

        Raises: ValueError, OverflowError.
        """
        self._buffer += data
        if len(self._buffer) <= self._room:
            return b""
        segments, start = [], 0
        with memoryview(self._buffer) as view:
            while len(view) - start > self._room:
                segments.append(self._encrypt(view[start : start + self._room], last=False))
                start += self._room
                self._room = self._capacity
        del self._buffer[:start]
        return b"".join(segments)

    def finish(self) -> bytes:
        """Returns the ciphertext of the last segment.

        Raises: ValueError, OverflowError.
        """
        return self._encrypt(self._buffer, last=True)

    def _encrypt(self, plaintext: bytearray | memoryview, *, last: bool) -> bytes:
        if self._finished:
            raise ValueError("the last segment has already been written")
        if self._index >= MAX_SEGMENTS:
            raise OverflowError("the content has more segments than the format can count")
        self._finished = last
        nonce = segment_nonce(self._prefix, self._index, last=last)
        self._index += 1
        return self._aead.encrypt(nonce, plaintext, None)


def segment_nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    """Returns the nonce of one segment.

    Raises: ValueError.
    """
    nonce = prefix + struct.pack(">I?", index, last)
    if len(nonce) != NONCE_SIZE:
        # AES-GCM accepts other lengths and derives another counter from them (C-2).
        raise ValueError("the nonce has the wrong length")
    return nonce


# --- Decryption ---


class Decryptor(Protocol):
    """Decrypts the segments of one object, in any order."""

    layout: Layout

    def decrypt(self, index: int, segment: memoryview) -> bytes:
        """Returns the plaintext of segment `index`. `segment` is exactly `layout.object_range(index, index + 1)` of the object.
        CorruptObject means that the segment is not authentic.
        """


class PassThroughDecryptor:
    """For `NONE`: the object is the content."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def decrypt(self, index: int, segment: memoryview) -> bytes:
        check_segment_size(self.layout, index, segment)
        return bytes(segment)


class AesGcmDecryptor:
    """Returns only authenticated plaintext (INV-03)."""

    def __init__(self, key_material: bytes, *, aad: bytes, header: bytes, layout: Layout) -> None:
        if len(header) != HEADER_SIZE or header[0] != HEADER_SIZE:
            raise CorruptObject("the header is invalid")
        self.layout = layout
        self._header = header
        self._prefix = header[1 + SALT_SIZE :]
        self._aead = AESGCM(hkdf(key_material, salt=header[1 : 1 + SALT_SIZE], info=aad, length=KEY_SIZE))

    def decrypt(self, index: int, segment: memoryview) -> bytes:
        check_segment_size(self.layout, index, segment)
        if index == 0:
            if not compare_digest(segment[:HEADER_SIZE], self._header):
                raise CorruptObject("the object begins with another header")
            segment = segment[HEADER_SIZE:]
        nonce = segment_nonce(self._prefix, index, last=index == self.layout.segments - 1)
        try:
            return self._aead.decrypt(nonce, segment, None)
        except InvalidTag:
            raise CorruptObject(f"segment {index} fails authentication") from None


def check_segment_size(layout: Layout, index: int, segment: memoryview) -> None:
    """Refuses a segment whose size is not the size for its index.

    Raises: CorruptObject.
    """
    start, end = layout.object_range(index, index + 1)
    if len(segment) != end - start:
        raise CorruptObject(f"segment {index} has {len(segment)} bytes instead of {end - start}")
