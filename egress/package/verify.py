"""Verifies that a zip is an authentic package. Needs a public key, but no database and no server."""

import base64
import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from egress.package.manifest import CONTEXT, NAME, SIGNATURE, digest_of
from egress.package.zip_format import NonCanonicalZip, check


# Errors of zipfile and json for malformed bytes and for offsets outside the file.
UNREADABLE: Final = (zipfile.BadZipFile, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, EOFError, OSError)
CHUNK_BYTES: Final = 1024**2
MAX_MANIFEST_BYTES: Final = 64 * 1024**2


class BadPackage(Exception):
    """The package is not authentic. The message gives the reason."""


def verify(path: Path, public_keys: Iterable[Ed25519PublicKey]) -> dict[str, Any]:
    """Verifies every byte of a package and returns its manifest. Any one of the keys must verify the signature.

    Raises: BadPackage.
    """
    with path.open("rb") as file:
        return _verify(file, list(public_keys))


def _verify(file: BinaryIO, public_keys: list[Ed25519PublicKey]) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as package:
            if any(member.compress_type != zipfile.ZIP_STORED for member in package.infolist()):
                raise BadPackage("it was repacked")  # Rejected before a decompressor can fail with other errors.
            content, signature = _read(package, NAME), _read(package, SIGNATURE)
            if not any(_is_signed(content, signature, key) for key in public_keys):
                raise BadPackage("its manifest is not signed by any of the given keys")
            manifest: dict[str, Any] = json.loads(content)
            if digest_of(manifest["files"]) != manifest["content_sha256"]:
                raise BadPackage("its manifest lists other files than were approved")
            _check_files(package, manifest["files"])
            check(package, file)
    except NonCanonicalZip:
        raise BadPackage("its files are authentic, but it was repacked or contains bytes that belong to no file") from None
    except UNREADABLE as error:
        raise BadPackage(f"it is not a readable package: {error}") from None
    return manifest


def _read(package: zipfile.ZipFile, name: str) -> bytes:
    try:
        with package.open(name) as member:
            return member.read(MAX_MANIFEST_BYTES)
    except KeyError:
        raise BadPackage(f"{name} is missing") from None


def _is_signed(content: bytes, signature: bytes, key: Ed25519PublicKey) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), CONTEXT + content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_files(package: zipfile.ZipFile, files: list[dict[str, Any]]) -> None:
    expected = Counter([NAME, SIGNATURE, *(file["name"] for file in files)])
    found = Counter(package.namelist())
    if missing := sorted((expected - found).elements()):
        raise BadPackage(f"{missing[0]!r} is missing")
    if more := sorted((found - expected).elements()):
        raise BadPackage(f"{more[0]!r} was not released")
    for file in files:
        digest, length = hashlib.sha256(), 0
        with package.open(file["name"]) as member:
            while piece := member.read(CHUNK_BYTES):
                digest.update(piece)
                length += len(piece)
        if (length, digest.hexdigest()) != (file["length"], file["sha256"]):
            raise BadPackage(f"{file['name']!r} differs from the released file")
