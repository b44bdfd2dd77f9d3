"""The manifest of a package: what left, who asked for it, and who let it out. Signed, and to be verified without this server.

`manifest.json` is canonical JSON; `manifest.json.sig` is the base64 of Ed25519 (RFC 8032) over CONTEXT and exactly its bytes.
"""

import base64
import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from egress.access import standing_decisions
from egress.models import EgressRequest, Item
from files import crypto, keys, signing
from files.models import Key, StoredFile
from tenants.models import User


CONTEXT: Final = b"strongroom/egress/v1\n"
NAME: Final = "manifest.json"
SIGNATURE: Final = "manifest.json.sig"
CHUNK: Final = 1024**2
MOST: Final = 64 * 1024**2  # bytes of a manifest


# --- Making one ---


@dataclass(frozen=True, slots=True)
class Manifest:
    text: str  # canonical JSON
    signature: str  # base64


def digest_of(files: Iterable[dict[str, Any]]) -> str:
    """Of `{name, length, sha256}` in the order of the round: what a decision is bound to (INV-10). Hex of SHA-256."""
    return hashlib.sha256(signing.canonical({"files": list(files)})).hexdigest()


def listed(files: Iterable[Item | StoredFile]) -> list[dict[str, Any]]:
    return [{"name": file.filename, "length": file.length, "sha256": file.sha256} for file in files]


def make(request: EgressRequest, items: Iterable[Item], *, now: datetime) -> Manifest:
    """Of a request that was approved at every stage: the same each time, so that its package is, too. Raises WrongKey."""
    key = keys.signing_key(Key.Purpose.EGRESS, now=now)
    requester = User.objects.filter(pk=request.requester_id).first()
    decisions = sorted(standing_decisions(request), key=lambda decision: decision.stage)
    body = {
        "version": 1,
        "request": {
            "id": str(request.pk),
            "round": request.round,
            "requester": {"username": request.requester_name, "email": requester.email if requester else ""},
            "justification": request.justification,
            "submitted_at": _text(request.submitted_at),
        },
        "tenant": {"id": str(request.tenant_id), "slug": request.tenant.slug, "name": request.tenant.name},
        "collection": {
            "id": request.collection_slug,
            "uuid": str(request.collection_uuid),
            "display_name": request.collection_name,
        },
        "content_sha256": request.content_sha256,
        "files": listed(items),
        "decisions": [
            {
                "stage": decision.stage + 1,
                "role": decision.role,
                "verdict": decision.verdict,
                "by": {"username": decision.by_name, "email": decision.by_email},
                "reason": decision.reason,
                "at": _text(decision.at),
                "content_sha256": decision.content_sha256,
            }
            for decision in decisions
        ],
        "policy": request.policy,
        "signed_with": str(key.pk),
    }
    content = signing.canonical(body)
    return Manifest(content.decode(), signing.sign(signing.signer_of(key), CONTEXT, content))


@dataclass(frozen=True, slots=True)
class SigningKey:
    id: str
    public_key: str  # PEM
    created_at: datetime


def signing_keys() -> list[SigningKey]:
    """Those that the keyring opens. Whoever has one can verify packages, and sign none."""
    return list(_signing_keys())


def _signing_keys() -> Iterator[SigningKey]:
    for key in Key.objects.filter(purpose=Key.Purpose.EGRESS, destroyed_at=None).order_by("created_at"):
        try:
            public = signing.signer_of(key).public_key()
        except crypto.WrongKey:
            continue
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        yield SigningKey(str(key.pk), pem, key.created_at)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- Verifying a package: no database ---


class BadPackage(Exception):
    """It is not what was released. The text says why."""


def verify(path: Path, public_keys: Iterable[Ed25519PublicKey]) -> dict[str, Any]:
    """The manifest of a package whose every byte is what was released. Raises BadPackage, OSError."""
    try:
        with zipfile.ZipFile(path) as package:
            if any(member.compress_type != zipfile.ZIP_STORED for member in package.infolist()):
                raise BadPackage("it was packed anew")  # whose decompressor would fail in ways of its own
            content, signature = _read(package, NAME), _read(package, SIGNATURE)
            if not any(_is_signed(content, signature, key) for key in public_keys):
                raise BadPackage("its manifest was not signed by this key")
            manifest: dict[str, Any] = json.loads(content)
            if digest_of(manifest["files"]) != manifest["content_sha256"]:
                raise BadPackage("its manifest names other files than were decided on")
            _check_files(package, manifest["files"])
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadPackage(f"it cannot be read as a package: {error}") from None
    return manifest


def _read(package: zipfile.ZipFile, name: str) -> bytes:
    try:
        with package.open(name) as member:
            return member.read(MOST)
    except KeyError:
        raise BadPackage(f"it has no {name}") from None


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
        raise BadPackage(f"it lacks {missing[0]!r}")
    if more := sorted((found - expected).elements()):
        raise BadPackage(f"it has {more[0]!r}, which was not released")
    for file in files:
        digest, length = hashlib.sha256(), 0
        with package.open(file["name"]) as member:
            while piece := member.read(CHUNK):
                digest.update(piece)
                length += len(piece)
        if (length, digest.hexdigest()) != (file["length"], file["sha256"]):
            raise BadPackage(f"{file['name']!r} has other bytes than were released")
