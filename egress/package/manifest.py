"""The signed manifest of a package: the released files, the requester and the decisions.

`manifest.json` is canonical JSON. `manifest.json.sig` is the base64 of an Ed25519 signature (RFC 8032) over `CONTEXT` followed by
the bytes of `manifest.json`. `egress.package.verify` needs only the package and a public key.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from egress.access import valid_decisions
from egress.models import EgressRequest, StagedFile
from files.models import StoredFile
from tenants.models import User
from vault import crypto, keys, signing
from vault.models import Key


CONTEXT: Final = b"strongroom/egress/v1\n"
NAME: Final = "manifest.json"
SIGNATURE: Final = "manifest.json.sig"


@dataclass(frozen=True, slots=True)
class Manifest:
    text: str  # canonical JSON
    signature: str  # base64


def digest_of(files: Iterable[dict[str, Any]]) -> str:
    """SHA-256 (hex) of the list of `{name, length, sha256}` in the order of the round. A decision is bound to it (INV-10)."""
    return hashlib.sha256(signing.canonical_json({"files": list(files)})).hexdigest()


def entries(files: Iterable[StagedFile | StoredFile]) -> list[dict[str, Any]]:
    """The entries of these files in a manifest, in the given order."""
    return [{"name": file.filename, "length": file.length, "sha256": file.sha256} for file in files]


def make(request: EgressRequest, items: Iterable[StagedFile], *, now: datetime) -> Manifest:
    """The manifest of an approved request. It is deterministic, so that the package is, too.

    Raises: WrongKey.
    """
    key = keys.ensure_signing_key(Key.Purpose.EGRESS, now=now)
    requester = User.objects.filter(pk=request.requester_id).first()
    decisions = sorted(valid_decisions(request), key=lambda decision: decision.stage)
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
        "files": entries(items),
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
    content = signing.canonical_json(body)
    return Manifest(content.decode(), signing.sign(signing.signer_for(key), CONTEXT, content))


@dataclass(frozen=True, slots=True)
class SigningKey:
    id: str
    public_key: str  # PEM
    created_at: datetime


def signing_keys() -> list[SigningKey]:
    """The public keys for verifying packages, oldest first. Omits keys that the keyring cannot decrypt."""
    return list(_signing_keys())


def _signing_keys() -> Iterator[SigningKey]:
    for key in Key.objects.filter(purpose=Key.Purpose.EGRESS, destroyed_at=None).order_by("created_at"):
        try:
            pem = signing.public_pem(key)
        except crypto.WrongKey:
            continue
        yield SigningKey(str(key.pk), pem, key.created_at)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
