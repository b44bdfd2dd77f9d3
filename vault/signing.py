"""Signed documents in the vault, under `.strongroom/`: what whoever rewrites the database cannot rewrite with it.

Each is canonical JSON with a signature beside what is signed: Ed25519 (RFC 8032), by the key of purpose `audit`, over a context
and the canonical bytes. The context names the kind, so that a signature means nothing in another place (docs/format.md).
"""

import base64
import json
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vault import keys
from vault.models import Key
from vault.stores import ObjectChanged, ObjectStore


MAX_BYTES: Final = 64 * 1024**2  # of one document: the heads of half a million chains


class BadDocument(Exception):
    """It is not what was signed here. The text says why."""


def canonical(value: dict[str, Any]) -> bytes:
    """One text per value, in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def signer_of(key: Key) -> Ed25519PrivateKey:
    """Raises WrongKey if the keyring does not open the key."""
    return Ed25519PrivateKey.from_private_bytes(keys.unwrap(key))


def public_pem(key: Key) -> str:
    """The key that verifies what this one signs. Raises WrongKey if the keyring does not open the key."""
    public = signer_of(key).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(signer: Ed25519PrivateKey, context: bytes, content: bytes) -> str:
    return base64.b64encode(signer.sign(context + content)).decode()


def sealed(kind: str, body: dict[str, Any], *, context: bytes, signer: Ed25519PrivateKey) -> bytes:
    """`{kind: body, "signature": …}`, as it is stored."""
    return canonical({kind: body, "signature": sign(signer, context, canonical(body))})


def opened(kind: str, content: bytes, *, context: bytes, public: Ed25519PublicKey) -> dict[str, Any]:
    """The body of a document. Nothing of it is believed before the signature fits; BadDocument otherwise."""
    try:
        document = json.loads(content)
        body, signature = document[kind], base64.b64decode(document["signature"], validate=True)
        is_canonical = canonical(document) == content
        public.verify(signature, context + canonical(body))
    except InvalidSignature:
        raise BadDocument("was not signed by this deployment's key, or was edited") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadDocument(f"is no {kind}") from None
    if not is_canonical:
        raise BadDocument("was edited")
    return dict(body)


def put(store: ObjectStore, name: str, content: bytes) -> None:
    """Raises FileExistsError if there is one of this name: documents are written once."""
    writer = store.create(name, size=len(content))
    try:
        writer.write(content)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def fetch(store: ObjectStore, name: str) -> bytes:
    pieces = []
    try:
        _, body = store.open(name, start=0, length=MAX_BYTES, etag=None)
    except ObjectChanged:  # it has no first byte
        return b""
    try:
        while piece := body.read(1024**2):
            pieces.append(piece)
    finally:
        body.close()
    return b"".join(pieces)
