"""The ledger: one signed entry in the vault for each destruction. Restoring a database backup does not remove it.

An entry is written after the key is destroyed and before the first object is deleted. A restored database finds entries that it
does not know (`vault.identity`). It serves no content until they are applied: the collections that they name are destroyed again.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.utils import timezone

from purge.models import Destruction
from vault import audit_checkpoints, identity, keys, signing
from vault.models import Key
from vault.stores import StoreRefused, get_store


KIND: Final = "destroyed"  # the envelope's member
VERSION: Final = 2
CONTEXTS: Final = {1: b"strongroom/ledger/v1\n", 2: b"strongroom/ledger/v2\n"}  # by version; entries are never rewritten


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An entry whose signature is verified."""

    number: int
    deployment: str
    destruction: UUID
    collection: UUID
    reason: str
    started_at: datetime


def append_entry(destruction: Destruction) -> None:
    """Writes the entry of a destruction to the vault, once. StoreRefused can mean that the object key has another entry.

    Raises: StoreRefused, StoreUnavailable, WrongKey.
    """
    store, object_key = get_store("vault"), identity.ledger_key(destruction.number)
    key = audit_checkpoints.ensure_signing_key(now=timezone.now())
    signer = signing.signer_for(key)
    deployment = str(identity.this_deployment().uuid)
    body = {
        "version": VERSION,
        "deployment": deployment,
        "number": destruction.number,
        "destruction": str(destruction.pk),
        "tenant": str(destruction.tenant_id),
        "collection": str(destruction.collection_uuid),
        "reason": destruction.reason,
        "started_at": destruction.started_at.isoformat(),
        "signed_with": str(key.id),
    }
    content = signing.sign_envelope(KIND, body, context=CONTEXTS[VERSION], signer=signer)
    try:
        signing.write_document(store, object_key, content)
    except FileExistsError:
        # An attempt that was interrupted may have written it; so may an earlier release, with another version.
        with suppress(signing.BadEnvelope):
            entry = parse_entry(signing.read_document(store, object_key), public=signer.public_key())
            if (entry.deployment, entry.number, entry.destruction) == (deployment, destruction.number, destruction.pk):
                return
        raise StoreRefused(f"{object_key} already exists and is not the ledger entry of this destruction") from None


def find_unknown_entries() -> tuple[list[LedgerEntry], list[str]]:
    """Returns the entries in the vault that this database does not know, by number, and one line for each entry whose signature
    is invalid.

    Raises: StoreUnavailable, StoreRefused, FileNotFoundError, WrongKey.
    """
    store, deployment = get_store("vault"), str(identity.this_deployment().uuid)
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    public = signing.signer_for(key).public_key() if key else None
    entries, problems = [], []
    for object_key in identity.unknown_ledger_keys(store, every=True):
        try:
            if public is None:
                raise signing.BadEnvelope("cannot be verified: the database has no signing key")
            entry = parse_entry(signing.read_document(store, object_key), public=public)
            if entry.deployment != deployment or identity.ledger_key(entry.number) != object_key:
                raise signing.BadEnvelope("is another entry under this object key")
            entries.append(entry)
        except signing.BadEnvelope as error:
            problems.append(f"{object_key} {error}")
    return entries, problems


def parse_entry(content: bytes, *, public: signing.PublicKey) -> LedgerEntry:
    """Verifies an entry of any version (docs/format.md).

    Raises: BadEnvelope.
    """
    body = signing.verify_envelope(KIND, content, contexts=CONTEXTS, public=public)
    is_first = body["version"] == 1
    return LedgerEntry(
        number=body["number"],
        deployment=body["deployment"],
        destruction=UUID(body["destruction"]),
        collection=UUID(body["collection"]),
        reason=body["why" if is_first else "reason"],
        started_at=datetime.fromisoformat(body["began_at" if is_first else "started_at"]),
    )
