"""Contents: what a row needs for encryption and decryption, how content is written, and how it is read.

The row is not a model of this app: `ContentRow` is what it has to offer. `vault.content_reader` reads the ciphertext.
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
    """How one content is encrypted. The salt exists only here: without the row, the object is noise."""

    cipher: str
    segment_size: int  # ciphertext bytes of a full segment
    length: int  # plaintext bytes
    header: bytes | memoryview
    key_salt: bytes | memoryview
    key_commitment: bytes | memoryview

    @property
    def data_key(self) -> Key:
        """The key that the content's own key is derived from."""

    @property
    def binding(self) -> crypto.Binding:
        """The ids that the object is bound to: it decrypts for no other row."""


class StoredRow(ContentRow, Protocol):
    """A row that also knows where its object is."""

    store: str  # STORAGES alias
    object_key: str
    object_etag: str


def associated_data(row: ContentRow) -> bytes:
    return crypto.associated_data(**row.binding._asdict(), cipher=row.cipher, segment_size=row.segment_size)


# --- Writing ---


def encryptor_for(row: ContentRow) -> crypto.Encryptor:
    """An encryptor for a new content. Sets the salt, the commitment and the header of the row, which is not saved yet.

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
        """The digest of the plaintext that was written."""
        return self._sha256.digest()

    @property
    def has_begun(self) -> bool:
        """Whether the store may hold anything of the object."""
        return self._writer.has_begun

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next plaintext bytes, any number of them.

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
    """A decryptor for a stored content. WrongKey means that the row commits to another key, or to another cipher.

    Raises: KeyUnavailable, WrongKey, CorruptObject.
    """
    aad = associated_data(row)
    salt, commitment = bytes(row.key_salt), bytes(row.key_commitment)
    key = crypto.recover_file_key(_unwrap_data_key(row), key_salt=salt, aad=aad, commitment=commitment)
    layout = crypto.layout_of(row.cipher, length=row.length, segment_size=row.segment_size)
    if row.cipher == Cipher.NONE:  # and it was NONE when the content was written: the commitment binds it
        return crypto.PassThroughDecryptor(layout)
    return crypto.AesGcmDecryptor(key.material, aad=aad, header=bytes(row.header), layout=layout)


def stored_content(row: StoredRow) -> Content:
    """The content of a row's object. A restored database opens none: it may have been destroyed since (`identity.check`).

    Raises: KeyUnavailable, WrongKey, CorruptObject, ForeignVault, DatabaseRestored, StorageUnavailable.
    """
    return copied_content(row, store=row.store, key=row.object_key, etag=row.object_etag)


def copied_content(row: ContentRow, *, store: str, key: str, etag: str) -> Content:
    """As `stored_content`, from a copy of the object with another key or in another store. The row does not know the copy.

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
    """A content as a read-only, seekable Django File, for code of this process. Reading raises what `Content.read` raises."""

    def __init__(self, content: Content, *, name: str) -> None:
        super().__init__(io.BufferedReader(_RawFile(content)), name)
        self.size = content.decryptor.layout.length


class _RawFile(io.RawIOBase):
    """Consecutive reads share one stream; a seek begins another."""

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
            raise ValueError("a position is not negative")
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
