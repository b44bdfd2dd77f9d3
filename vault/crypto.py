"""What an object is made of: Tink streaming AEAD `AES256-GCM-HKDF`, and the keys it is made with. No Django, no storage.

    object  = 0x28 || salt[32] || nonce_prefix[7] || segment_0 || segment_1 || ...
    key     = HKDF-SHA256(key material, salt, info=associated data, 32)
    segment = AES-GCM(key, nonce_prefix || u32be(index) || is_last, plaintext, no further associated data) || tag[16]

A ciphertext segment is `segment_size` bytes with its tag, the last one shorter; the header counts as part of the first,
so that segment i > 0 starts at byte i * segment_size. Source: Tink's wire format, "Streaming AEAD: AES-GCM-HKDF".
The object names neither its format nor its segment size: both come from the row and are bound by the associated data.

Stock Tink forgives an empty last segment and bytes behind a full one; this module knows the length from the row, so that
every segment has exactly one size and anything else is `CorruptObject`.
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
    """The key at hand is not the one this content was made with. Says nothing about the object."""


class CorruptObject(Exception):
    """The object is not, byte for byte, what was written."""


# --- Keys ---


def new_key() -> bytes:
    return os.urandom(KEY_SIZE)


def new_salt() -> bytes:
    return os.urandom(SALT_SIZE)


def encode(*fields: str | int | bytes) -> bytes:
    """Fields as bytes, one encoding per list of fields: each is preceded by its type and its length (u32be)."""
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
    """Ids of what an object belongs to, and its own: uuids in their canonical text form."""

    tenant: str
    collection: str
    file: str
    object_id: str


def associated_data(*, tenant: str, collection: str, file: str, object_id: str, cipher: str, segment_size: int) -> bytes:
    """What an object is bound to. It opens nowhere else (INV-05). Ids are uuids in their canonical text form."""
    return encode("strongroom/object", FORMAT_VERSION, tenant, collection, file, object_id, cipher, segment_size)


def hkdf(key: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of keys and salts that have the sizes of this format: it would take none at all without a word."""
    if len(key) != KEY_SIZE or len(salt) != SALT_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes and a salt {SALT_SIZE}")
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


@dataclass(frozen=True, slots=True, repr=False)
class FileKey:
    """Key material of one content, and a commitment to it that the row keeps. Neither ever shows in a repr."""

    material: bytes
    commitment: bytes


def derive_file_key(collection_key: bytes, *, key_salt: bytes, aad: bytes) -> FileKey:
    """The key of one content, from the collection's key and a salt that exists only in the file's row."""
    okm = hkdf(collection_key, salt=key_salt, info=b"strongroom/file/v1" + aad, length=2 * KEY_SIZE)
    return FileKey(material=okm[:KEY_SIZE], commitment=okm[KEY_SIZE:])


def open_file_key(collection_key: bytes, *, key_salt: bytes, aad: bytes, commitment: bytes) -> FileKey:
    """As `derive_file_key`; raises WrongKey before anything is decrypted if the row commits to another key."""
    if len(key_salt) != SALT_SIZE:
        raise WrongKey("the row's salt has another length")
    key = derive_file_key(collection_key, key_salt=key_salt, aad=aad)
    if not compare_digest(key.commitment, commitment):
        raise WrongKey("the row commits to another key")
    return key


def wrap_key(kek: bytes, key: bytes, *, context: bytes) -> bytes:
    """nonce[12] || AES-256-GCM(kek, nonce, key, context) || tag[16]. Random nonces: below 2**32 wraps per kek."""
    if len(kek) != KEY_SIZE or len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes")  # a shorter kek would be AES-128, another key would never unwrap
    nonce = os.urandom(NONCE_SIZE)
    return nonce + AESGCM(kek).encrypt(nonce, key, context)


def unwrap_key(kek: bytes, wrapped: bytes, *, context: bytes) -> bytes:
    """The key that `wrap_key` wrapped. Raises WrongKey for another kek, another context or an altered wrapping."""
    if len(wrapped) != NONCE_SIZE + KEY_SIZE + TAG_SIZE:
        raise WrongKey("a wrapped key has another length")
    try:
        return AESGCM(kek).decrypt(wrapped[:NONCE_SIZE], wrapped[NONCE_SIZE:], context)
    except InvalidTag:
        raise WrongKey("the key-encryption key or its context does not fit") from None


# --- Layout ---


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a content of `length` plaintext bytes lies in its object. Pure arithmetic; `NONE` is the same without overhead."""

    length: int
    segment_size: int
    header_size: int = HEADER_SIZE
    tag_size: int = TAG_SIZE

    def __post_init__(self) -> None:
        if self.length < 0 or self.segment_size <= self.header_size + self.tag_size:
            raise ValueError("no content has a negative length, and no segment is too small for its header, its tag and one byte")

    @property
    def capacity(self) -> int:
        """Plaintext bytes in a full segment; the first holds `header_size` fewer."""
        return self.segment_size - self.tag_size

    @property
    def segments(self) -> int:
        """Number of segments: an empty content has one, nothing else ends with an empty one."""
        return max(1, -(-(self.length + self.header_size) // self.capacity))

    @property
    def object_size(self) -> int:
        return self.header_size + self.length + self.segments * self.tag_size

    def index_of(self, offset: int) -> int:
        """The segment that holds plaintext byte `offset`."""
        return (offset + self.header_size) // self.capacity

    def offset_of(self, index: int) -> int:
        """The plaintext offset of the first byte of segment `index`; `segments` gives the end."""
        return min(self.length, max(0, index * self.capacity - self.header_size))

    def object_range(self, first: int, stop: int) -> tuple[int, int]:
        """Bytes [start, end) of the object that hold segments [first, stop); segment 0 comes with the header."""
        return first * self.segment_size, min(self.object_size, stop * self.segment_size)


def layout_of(cipher: str, *, length: int, segment_size: int) -> Layout:
    """The layout of a content by its row's cipher. Only NONE itself means no authentication: any other name is an error."""
    if cipher == AES_GCM:
        return Layout(length, segment_size)
    if cipher == NONE:
        return Layout(length, segment_size, header_size=0, tag_size=0)
    raise ValueError("the cipher is neither AES-GCM nor NONE")


# --- Encryption ---


class Sealer(Protocol):
    header: bytes

    def update(self, data: bytes | bytearray | memoryview) -> bytes: ...

    def finish(self) -> bytes: ...


class PlainWriter:
    """`NONE`: the object is the content."""

    header = b""

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)

    def finish(self) -> bytes:
        return b""


class Encryptor:
    """Encrypts one content, once and in order: `header`, then what `update` returns, then what `finish` returns.

    Every instance draws its own salt and prefix, so that a retried upload never reuses a nonce (C-6).
    """

    def __init__(self, key_material: bytes, *, aad: bytes, segment_size: int) -> None:
        salt, self._prefix = os.urandom(SALT_SIZE), os.urandom(PREFIX_SIZE)
        self.header = bytes([HEADER_SIZE]) + salt + self._prefix
        self._aead = AESGCM(hkdf(key_material, salt=salt, info=aad, length=KEY_SIZE))
        self._capacity = Layout(0, segment_size).capacity
        self._room = self._capacity - HEADER_SIZE  # plaintext bytes of the segment that is being filled
        self._buffer = bytearray()
        self._index = 0
        self._finished = False

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Ciphertext of every segment that is now known not to be the last: a full one waits until more bytes follow it."""
        self._buffer += data
        if len(self._buffer) <= self._room:
            return b""
        segments, start = [], 0
        with memoryview(self._buffer) as view:
            while len(view) - start > self._room:
                segments.append(self._seal(view[start : start + self._room], last=False))
                start += self._room
                self._room = self._capacity
        del self._buffer[:start]
        return b"".join(segments)

    def finish(self) -> bytes:
        """The last segment."""
        return self._seal(self._buffer, last=True)

    def _seal(self, plaintext: bytearray | memoryview, *, last: bool) -> bytes:
        if self._finished:
            raise ValueError("the last segment is already written")
        if self._index >= MAX_SEGMENTS:
            raise OverflowError("the content has more segments than the format can count")
        self._finished = last
        nonce = segment_nonce(self._prefix, self._index, last=last)
        self._index += 1
        return self._aead.encrypt(nonce, plaintext, None)


def segment_nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    nonce = prefix + struct.pack(">I?", index, last)
    if len(nonce) != NONCE_SIZE:
        raise ValueError("a nonce has another length")  # AES-GCM takes it and means something else by it (C-2)
    return nonce


class Opener(Protocol):
    layout: Layout

    def open(self, index: int, segment: memoryview) -> bytes:
        """Plaintext of segment `index` from exactly the object bytes that `layout.object_range(index, index + 1)` names."""


class Decryptor:
    """Opens the segments of one object in any order. Nothing leaves it unauthenticated (INV-03)."""

    def __init__(self, key_material: bytes, *, aad: bytes, header: bytes, layout: Layout) -> None:
        if len(header) != HEADER_SIZE or header[0] != HEADER_SIZE:
            raise CorruptObject("the header has another format")
        self.layout = layout
        self._header = header
        self._prefix = header[1 + SALT_SIZE :]
        self._aead = AESGCM(hkdf(key_material, salt=header[1 : 1 + SALT_SIZE], info=aad, length=KEY_SIZE))

    def open(self, index: int, segment: memoryview) -> bytes:
        check_size(self.layout, index, segment)
        if index == 0:
            if not compare_digest(segment[:HEADER_SIZE], self._header):
                raise CorruptObject("the object begins with another header")
            segment = segment[HEADER_SIZE:]
        nonce = segment_nonce(self._prefix, index, last=index == self.layout.segments - 1)
        try:
            return self._aead.decrypt(nonce, segment, None)
        except InvalidTag:
            raise CorruptObject(f"segment {index} fails authentication") from None


class PlainReader:
    """`NONE`: the object is the content."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def open(self, index: int, segment: memoryview) -> bytes:
        check_size(self.layout, index, segment)
        return bytes(segment)


def check_size(layout: Layout, index: int, segment: memoryview) -> None:
    start, end = layout.object_range(index, index + 1)
    if len(segment) != end - start:
        raise CorruptObject(f"segment {index} has {len(segment)} bytes instead of {end - start}")
