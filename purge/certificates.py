"""Certificates of destruction: signed documents that state what was destroyed, when, why and how (docs/retention.md).

A reader verifies the signature and does not have to trust the database.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from django.db.models import Max, Sum

from egress import retention
from files.models import Collection
from purge.models import Destruction
from vault import audit_checkpoints, signing


VERSION: Final = 2  # docs/format.md also specifies version 1, which readers must still verify
CONTEXT: Final = b"strongroom/destruction/v2\n"
SHREDDED: Final = "shredded: the key was destroyed first, then every version of every object was deleted, and listed as absent"
DELETED: Final = "deleted: every version of every object was deleted, and listed as absent"


@dataclass(frozen=True, slots=True)
class Certificate:
    text: str  # canonical JSON
    signature: str  # Ed25519 over CONTEXT and the text, base64

    @property
    def sha256(self) -> str:
        return sha256(self.text.encode()).hexdigest()


def make(destruction: Destruction, collection: Collection, *, now: datetime) -> Certificate:
    """Creates the certificate of a destruction that is complete except for its last rows.

    Raises: WrongKey.
    """
    key = audit_checkpoints.ensure_signing_key(now=now)
    stores = destruction.shards.values("store").annotate(erased=Sum("erased"), verified_at=Max("verified_at")).order_by("store")
    encrypted = destruction.file_count - destruction.unencrypted_count
    text = signing.canonical_json(
        {
            "version": VERSION,
            "id": str(destruction.pk),
            "tenant": {"id": str(destruction.tenant_id), "slug": destruction.tenant.slug},
            "collection": {
                "id": destruction.slug,
                "uuid": str(destruction.collection_uuid),
                "display_name": destruction.display_name,
                "key": str(collection.key_id),
            },
            "ledger": destruction.number,
            "reason": destruction.reason,
            "due_at": _text(destruction.due_at),
            "started_at": _text(destruction.started_at),
            "started_by": destruction.started_by,
            "completed_at": _text(now),
            "total_length": destruction.total_length,
            "methods": [
                {"files": count, "method": method}
                for count, method in ((encrypted, SHREDDED), (destruction.unencrypted_count, DELETED))
                if count
            ],
            "stores": [
                {"store": each["store"], "erased": each["erased"], "verified_at": _text(each["verified_at"])} for each in stores
            ],
            "packages": [
                {
                    "request": str(each.pk),
                    "collection": str(each.package_collection.uuid) if each.package_collection else "",
                    "available_until": _text(each.available_until),
                }
                for each in retention.packages_in_window(collection)
            ],
            "signed_with": str(key.id),
        }
    )
    return Certificate(text.decode(), signing.sign(signing.signer_for(key), CONTEXT, text))


def _text(moment: datetime | Any) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
