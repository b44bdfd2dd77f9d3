"""Encrypts, writes and opens the content of a row. `vault.content_reader` reads the ciphertext.

The row is a model of another app; the protocol `ContentRow` lists the fields that it must have.
"""

import hashlib
import io
from collections.abc import Generator
from typing import Any, Protocol

from django.core.files import File
from django.utils import timezone

from vault import crypto, identity, keys
from vault.content_reader import Content
from vault.errors import KeyUnavailable, StorageUnavailable
from vault.models import Cipher, Key
from vault.stores import ObjectWriter, Stat, StoreError, get_store


class ContentRow(Protocol):
    """The encryption parameters of one content. The salt is stored only here: without the row, the object cannot be decrypted."""

    cipher: str
    segment_size: int  # ciphertext bytes of a full segment
    length: int  # plaintext bytes
    header: bytes | memoryview
    key_salt: bytes | memoryview
    key_commitment: bytes | memoryview

    @property
    def data_key(self) -> Key:
        """The key from which the key of the content is derived."""

    @property
    def binding(self) -> crypto.Binding:
        """The ids to which the object is bound. It cannot be decrypted for another row."""


class StoredRow(ContentRow, Protocol):
    """A row that also has the location of its object."""

    store: str  # STORAGES alias
    object_key: str
    object_etag: str


def associated_data(row: ContentRow) -> bytes:
    return crypto.associated_data(**row.binding._asdict(), cipher=row.cipher, segment_size=row.segment_size)


# --- Writing ---


def encryptor_for(row: ContentRow) -> crypto.Encryptor:
    """Creates an encryptor for a new content. Sets the salt, the commitment and the header of the row, but does not save it.

    Raises: KeyUnavailable.
    """
    salt = row.key_salt = crypto.new_salt()
    aad = associated_data(row)
    key = crypto.derive_file_key(_unwrap_data_key(row), key_salt=salt, aad=aad)
    row.key_commitment = key.commitment
    encryptor: crypto.Encryptor = crypto.PassThroughEncryptor()
    if row.cipher != Cipher.NONE:
        encryptor = crypto.AesGcmEncryptor(key.material, aad=aad, segment_size=row.segment_size)
    row.header = encryptor.header
    return encryptor


class ContentWriter:
    """Hashes and encrypts one content, and writes it to its store. The object exists once `commit` has returned."""

    def __init__(self, encryptor: crypto.Encryptor, writer: ObjectWriter) -> None:
        self.length = 0  # plaintext bytes
        self._encryptor, self._writer = encryptor, writer
        self._sha256 = hashlib.sha256()
        self._unsent = encryptor.header  # is written with the first segment

    @property
    def sha256(self) -> bytes:
        """The digest of the plaintext written so far."""
        return self._sha256.digest()

    @property
    def has_begun(self) -> bool:
        """Whether the store may contain any part of the object."""
        return self._writer.has_begun

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and writes the next plaintext bytes, in any number.

        Raises: StorageUnavailable.
        """
        self.length += len(data)
        self._sha256.update(data)
        if ciphertext := self._encryptor.update(data):
            self._to_store(ciphertext)

    def commit(self) -> Stat:
        """Writes the last segment and creates the object.

        Raises: StorageUnavailable.
        """
        self._to_store(self._encryptor.finish())
        try:
            return self._writer.commit()
        except StoreError as error:
            raise StorageUnavailable from error

    def abort(self) -> None:
        """Removes what was written. Does nothing after `commit`."""
        self._writer.abort()

    def _to_store(self, ciphertext: bytes) -> None:
        try:
            self._writer.write(self._unsent + ciphertext if self._unsent else ciphertext)
            self._unsent = b""
        except StoreError as error:
            raise StorageUnavailable from error


# --- Reading ---


def decryptor_for(row: ContentRow) -> crypto.Decryptor:
    """Creates a decryptor for a stored content. WrongKey means that the row's commitment is to another key or another cipher.

    Raises: KeyUnavailable, WrongKey, CorruptObject.
    """
    aad = associated_data(row)
    salt, commitment = bytes(row.key_salt), bytes(row.key_commitment)
    key = crypto.recover_file_key(_unwrap_data_key(row), key_salt=salt, aad=aad, commitment=commitment)
    layout = crypto.layout_of(row.cipher, length=row.length, segment_size=row.segment_size)
    if row.cipher == Cipher.NONE:  # the commitment proves that it was also NONE when the content was written
        return crypto.PassThroughDecryptor(layout)
    return crypto.AesGcmDecryptor(key.material, aad=aad, header=bytes(row.header), layout=layout)


def stored_content(row: StoredRow) -> Content:
    """Opens the content of a row's object. Refuses in a restored database: it may have been destroyed since the backup.

    Raises: KeyUnavailable, WrongKey, CorruptObject, ForeignVault, DatabaseRestored, StorageUnavailable.
    """
    return copied_content(row, store=row.store, key=row.object_key, etag=row.object_etag)


def copied_content(row: ContentRow, *, store: str, key: str, etag: str) -> Content:
    """Like `stored_content`, but opens a copy of the object, which has another object key or is in another store.

    Raises: KeyUnavailable, WrongKey, CorruptObject, ForeignVault, DatabaseRestored, StorageUnavailable.
    """
    identity.check(now=timezone.now())
    return Content(get_store(store), key, etag, decryptor_for(row))


def _unwrap_data_key(row: ContentRow) -> bytes:
    try:
        return keys.unwrap(row.data_key)
    except crypto.WrongKey as error:
        raise KeyUnavailable from error


class PlaintextFile(File):  # type: ignore[type-arg]  # outside the stubs, File takes no type argument
    """A content as a read-only, seekable Django File. Reading raises the errors of `Content.read`."""

    def __init__(self, content: Content, *, name: str) -> None:
        super().__init__(io.BufferedReader(_RawFile(content)), name)
        self.size = content.decryptor.layout.length


class _RawFile(io.RawIOBase):
    """Consecutive reads share one stream. A seek starts a new one."""

    def __init__(self, content: Content) -> None:
        self._content, self._length = content, content.decryptor.layout.length
        self._position = 0
        self._pieces: Generator[bytes, None, None] | None = None
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if position < 0:
            raise ValueError("the position must not be negative")
        if position != self._position:
            self._drop()
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._length:
            return 0
        if self._pieces is None:
            self._pieces = self._content.read(self._position, self._length)
        while not self._left:
            self._left = memoryview(next(self._pieces))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self._position += count
        return count

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        self._pieces, self._left = None, memoryview(b"")
