"""The ledger: one signed entry in the vault for each destruction, which a restored database cannot have forgotten with its rows.

It is written when the key is destroyed and before the first object goes. A database that comes from a backup finds entries that
it does not know (`vault.identity`), serves nothing until they are applied to it, and then destroys those collections again.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.utils import timezone

from purge.models import Destruction
from vault import audit_checkpoints, identity, keys, signing
from vault.models import Key
from vault.stores import StoreRefused, get_store


CONTEXT: Final = b"strongroom/ledger/v1\n"


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    collection: UUID
    why: str
    began_at: datetime


def append_entry(destruction: Destruction) -> None:
    """Writes the entry, once. Raises StoreError; StoreRefused if the number has somebody else's entry."""
    store, name = get_store("vault"), identity.ledger_key(destruction.number)
    key = audit_checkpoints.ensure_signing_key(now=timezone.now())
    body = {
        "version": 1,
        "deployment": str(identity.this_deployment().uuid),
        "number": destruction.number,
        "destruction": str(destruction.pk),
        "tenant": str(destruction.tenant_id),
        "collection": str(destruction.collection_uuid),
        "why": destruction.why,
        "began_at": destruction.began_at.isoformat(),
        "signed_with": str(key.id),
    }
    content = signing.sign_envelope("destroyed", body, context=CONTEXT, signer=signing.signer_for(key))
    try:
        signing.write_document(store, name, content)
    except FileExistsError:
        if signing.read_document(store, name) != content:  # Ed25519 signs the same bytes the same way
            raise StoreRefused(f"{name} is there already, and is not about this destruction") from None


def unknown() -> tuple[list[Entry], list[str]]:
    """What the vault says is destroyed and this database has not heard of, in order, and what is wrong with entries that cannot
    be believed. Raises StoreError, FileNotFoundError, and WrongKey if the keyring does not open the key that signs."""
    store, here = get_store("vault"), identity.this_deployment()
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    public = signing.signer_for(key).public_key() if key else None
    entries, problems = [], []
    for name in identity.unknown_ledger_keys(store, every=True):
        try:
            if public is None:
                raise signing.BadEnvelope("there is no key that could have signed it")
            body = signing.verify_envelope("destroyed", signing.read_document(store, name), context=CONTEXT, public=public)
            if body["deployment"] != str(here.uuid) or identity.ledger_key(body["number"]) != name:
                raise signing.BadEnvelope("is another entry under this name")
            began_at = datetime.fromisoformat(body["began_at"])
            entries.append(Entry(body["number"], UUID(body["collection"]), body["why"], began_at))
        except signing.BadEnvelope as error:
            problems.append(f"{name} {error}")
    return entries, problems
