"""Signed documents in the vault, under `.strongroom/`. A person who can change the database cannot change them.

A document is an envelope in canonical JSON, `{KIND: body, "signature": ...}`. The signature is Ed25519 (RFC 8032) over a context
and the canonical body. The context names the kind and the version, so a signature is not valid for any other (docs/format.md).
"""

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vault import keys
from vault.models import Key
from vault.stores import ObjectChanged, ObjectStore


PublicKey = Ed25519PublicKey  # for the apps above, which do not import cryptography
MAX_DOCUMENT_BYTES: Final = 64 * 1024**2  # enough for the heads of half a million audit chains


class BadEnvelope(Exception):
    """This deployment did not sign the document. The text is the reason."""


def canonical_json(value: dict[str, Any]) -> bytes:
    """Encodes a value as canonical JSON, in ASCII: the only accepted form of a signed value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def signer_for(key: Key) -> Ed25519PrivateKey:
    """Returns the private key of a signing key.

    Raises: WrongKey.
    """
    return Ed25519PrivateKey.from_private_bytes(keys.unwrap(key))


def public_pem(key: Key) -> str:
    """Returns the public key of a signing key, as PEM.

    Raises: WrongKey.
    """
    public = signer_for(key).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(signer: Ed25519PrivateKey, context: bytes, content: bytes) -> str:
    """Signs context and content. Returns the signature in base64."""
    return base64.b64encode(signer.sign(context + content)).decode()


def sign_envelope(kind: str, body: dict[str, Any], *, context: bytes, signer: Ed25519PrivateKey) -> bytes:
    """Returns the signed document `{kind: body, "signature": ...}` as it is stored."""
    return canonical_json({kind: body, "signature": sign(signer, context, canonical_json(body))})


def verify_envelope(kind: str, content: bytes, *, contexts: Mapping[int, bytes], public: Ed25519PublicKey) -> dict[str, Any]:
    """Returns the body of a document after verifying its signature. `contexts` maps each accepted version to its context.

    Raises: BadEnvelope.
    """
    try:
        document = json.loads(content)
        body, signature = document[kind], base64.b64decode(document["signature"], validate=True)
        is_canonical = canonical_json(document) == content
        public.verify(signature, contexts[body["version"]] + canonical_json(body))
    except InvalidSignature:
        raise BadEnvelope("was edited, or was not signed by this deployment's key") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadEnvelope(f"is not a signed document of the kind {kind!r}") from None
    if not is_canonical:
        raise BadEnvelope("was edited")
    return dict(body)


def write_document(store: ObjectStore, key: str, content: bytes) -> None:
    """Writes a document, once. FileExistsError means that one with this object key already exists.

    Raises: FileExistsError, StoreUnavailable, StoreRefused.
    """
    writer = store.create(key, size=len(content))
    try:
        writer.write(content)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def read_document(store: ObjectStore, key: str) -> bytes:
    """Reads a document.

    Raises: FileNotFoundError, StoreUnavailable, StoreRefused.
    """
    pieces = []
    try:
        _, body = store.open(key, start=0, length=MAX_DOCUMENT_BYTES, etag=None)
    except ObjectChanged:  # the object is empty: the range is invalid
        return b""
    try:
        while piece := body.read(1024**2):
            pieces.append(piece)
    finally:
        body.close()
    return b"".join(pieces)
