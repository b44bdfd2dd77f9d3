"""What the database refuses of collections: nothing leads back from a destruction (INV-08)."""

from typing import Final

from tenants.work.triggers import Guard, register
from vault.triggers import KEYS


COLLECTIONS: Final = "files_collection"

register(
    Guard(
        "collection_no_way_back",
        COLLECTIONS,
        "UPDATE",
        "a collection that is being purged stays so",
        when="OLD.status IN ('purging', 'blocked') AND NEW.status NOT IN ('purging', 'blocked')",
    ),
    Guard(
        "collection_stays_itself",
        COLLECTIONS,
        "UPDATE",
        "the uuid, tenant and key of a collection never change",
        when="NEW.id <> OLD.id OR NEW.uuid <> OLD.uuid OR NEW.tenant_id <> OLD.tenant_id OR NEW.key_id <> OLD.key_id",
    ),
    Guard(
        "collection_no_replace",
        COLLECTIONS,
        "REPLACE",
        "a collection is not written over",
        when="id = NEW.id OR uuid = NEW.uuid OR slug = NEW.slug OR key_id = NEW.key_id",
    ),
    # The foreign key looks only when the transaction ends: a live key of the same id could have come in between.
    Guard(
        "key_stays_with_its_collection",
        KEYS,
        "DELETE",
        "the key of a collection goes after it",
        when="EXISTS (SELECT 1 FROM files_collection WHERE key_id = OLD.id)",
        also_reads=COLLECTIONS,
    ),
)
