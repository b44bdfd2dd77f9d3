"""What the database refuses of collections, keys and the ledger's number: nothing leads back from a destruction (INV-08)."""

from typing import Final

from tenants.triggers import Guard, register


COLLECTIONS: Final = "files_collection"
KEYS: Final = "files_key"

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
    Guard(
        "key_stays_destroyed",
        KEYS,
        "UPDATE",
        "a destroyed key stays destroyed",
        when="OLD.destroyed_at IS NOT NULL AND"
        " (NEW.wrapped IS NOT NULL OR NEW.destroyed_at IS NULL OR NEW.destroyed_at <> OLD.destroyed_at)",
    ),
    Guard(
        "key_stays_itself",
        KEYS,
        "UPDATE",
        "the id, purpose and owner of a key never change",
        when="NEW.id <> OLD.id OR NEW.purpose <> OLD.purpose OR NEW.owner <> OLD.owner",
    ),
    Guard(
        "key_no_replace",
        KEYS,
        "REPLACE",
        "a key is not written over",
        when="rowid = NEW.rowid OR id = NEW.id OR (purpose = NEW.purpose AND owner = NEW.owner)",
    ),
    Guard(
        "deployment_goes_forward",
        "files_deployment",
        "UPDATE",
        "what the database knows of the ledger is not forgotten",
        when="NEW.uuid <> OLD.uuid OR NEW.ledger_number < OLD.ledger_number OR NEW.lost_until < OLD.lost_until"
        " OR (OLD.marked_at IS NOT NULL AND NEW.marked_at IS NULL)",
    ),
    # The foreign key looks only when the transaction ends: a live key of the same id could have come in between.
    Guard(
        "key_stays_with_its_collection",
        KEYS,
        "DELETE",
        "the key of a collection goes after it",
        when="EXISTS (SELECT 1 FROM files_collection WHERE key_id = OLD.id)",
        asks=COLLECTIONS,
    ),
)
