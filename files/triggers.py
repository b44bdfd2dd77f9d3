"""Database triggers that protect collections. They ensure that a purge cannot be undone (INV-08)."""

from typing import Final

from tenants.work.triggers import Guard, register
from vault.triggers import KEYS


COLLECTIONS: Final = "files_collection"

register(
    Guard(
        "collection_no_way_back",
        COLLECTIONS,
        "UPDATE",
        "the purge of a collection cannot be undone",
        when="OLD.status IN ('purging', 'blocked') AND NEW.status NOT IN ('purging', 'blocked')",
    ),
    Guard(
        "collection_stays_itself",
        COLLECTIONS,
        "UPDATE",
        "the id, uuid, tenant and key of a collection are immutable",
        when="NEW.id <> OLD.id OR NEW.uuid <> OLD.uuid OR NEW.tenant_id <> OLD.tenant_id OR NEW.key_id <> OLD.key_id",
    ),
    Guard(
        "collection_no_replace",
        COLLECTIONS,
        "REPLACE",
        "a collection cannot be replaced",
        when="id = NEW.id OR uuid = NEW.uuid OR slug = NEW.slug OR key_id = NEW.key_id",
    ),
    # The foreign key is only checked at the end of the transaction, when another key could have been inserted with the same id.
    Guard(
        "key_stays_with_its_collection",
        KEYS,
        "DELETE",
        "the key of a collection cannot be deleted before the collection",
        when="EXISTS (SELECT 1 FROM files_collection WHERE key_id = OLD.id)",
        also_reads=COLLECTIONS,
    ),
)
