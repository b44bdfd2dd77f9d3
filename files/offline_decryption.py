"""Emergency decryption without a server or a database: needs the exported row of a file, its object and the keyring."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Self

from files.models import StoredFile
from vault import content, crypto
from vault.errors import KeyUnavailable
from vault.models import Key


FORMAT: Final = "strongroom/row/v1"


def export_row(file: StoredFile) -> dict[str, Any]:
    """Everything that is needed to decrypt the object of `file`, except for the master key. Bytes are encoded in hex.

    Protect the result as you protect the database.
    """
    key = file.collection.key
    return {
        "format": FORMAT,
        "tenant": str(file.collection.tenant_id),
        "collection": str(file.collection.uuid),
        "file": str(file.uuid),
        "object_id": str(file.object_id),
        "object_key": file.object_key,
        "filename": file.filename,
        "length": file.length,
        "sha256": file.sha256,
        "cipher": file.cipher,
        "segment_size": file.segment_size,
        "header": bytes(file.header).hex(),
        "key_salt": bytes(file.key_salt).hex(),
        "key_commitment": bytes(file.key_commitment).hex(),
        "key": {
            "id": str(key.id),
            "purpose": key.purpose,
            "owner": key.owner,
            "kek_id": key.kek_id,
            "wrapped": bytes(key.wrapped or b"").hex(),
        },
    }


def decrypt(row: dict[str, Any], source: BinaryIO) -> Iterator[bytes]:
    """Yields the plaintext of the object that `source` reads. `row` comes from `export_row`; ValueError means another format.

    Raises: CorruptObject, ValueError, WrongKey.
    """
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise ValueError(f"the row is not of the format {FORMAT}")
    layout = crypto.layout_of(row["cipher"], length=row["length"], segment_size=row["segment_size"])
    try:
        decryptor = content.decryptor_for(_ExportedRow.parse(row))
    except KeyUnavailable as error:
        raise crypto.WrongKey(str(error.__cause__)) from None  # KeyUnavailable is an HTTP error, and there is no request here
    digest = hashlib.sha256()
    for index in range(layout.segments):
        start, end = layout.object_range(index, index + 1)
        piece = decryptor.decrypt(index, memoryview(source.read(end - start)))
        digest.update(piece)
        yield piece
    if source.read(1):
        raise crypto.CorruptObject("the object has bytes after its last segment")
    if digest.hexdigest() != row["sha256"]:
        raise crypto.CorruptObject("the SHA-256 of the plaintext differs from the row")


@dataclass
class _ExportedRow:
    """A `content.ContentRow` that was read from JSON."""

    cipher: str
    segment_size: int
    length: int
    header: bytes | memoryview
    key_salt: bytes | memoryview
    key_commitment: bytes | memoryview
    data_key: Key
    binding: crypto.Binding

    @classmethod
    def parse(cls, row: dict[str, Any]) -> Self:
        wrapping = row["key"]
        key = Key(id=wrapping["id"], purpose=wrapping["purpose"], owner=wrapping["owner"], kek_id=wrapping["kek_id"])
        key.wrapped = bytes.fromhex(wrapping["wrapped"])
        return cls(
            cipher=row["cipher"],
            segment_size=row["segment_size"],
            length=row["length"],
            header=bytes.fromhex(row["header"]),
            key_salt=bytes.fromhex(row["key_salt"]),
            key_commitment=bytes.fromhex(row["key_commitment"]),
            data_key=key,
            binding=crypto.Binding(row["tenant"], row["collection"], row["file"], row["object_id"]),
        )
