"""Triggers on destructions and collections: the database refuses to change a certificate or to undo a destruction (INV-08)."""

from typing import Final

from files.triggers import COLLECTIONS
from tenants.work.triggers import Guard, register


DESTRUCTIONS: Final = "purge_destruction"

register(
    Guard(
        "destruction_done_is_final",
        DESTRUCTIONS,
        "UPDATE",
        "a certificate of destruction never changes",
        when="OLD.status = 'done'",
    ),
    Guard(
        "destruction_stays_itself",
        DESTRUCTIONS,
        "UPDATE",
        "the id and the collection of a destruction never change",
        when="NEW.id <> OLD.id OR NEW.collection_uuid <> OLD.collection_uuid OR NEW.collection_id <> OLD.collection_id",
    ),
    Guard("destruction_no_delete", DESTRUCTIONS, "DELETE", "destructions are never deleted"),
    Guard(
        "destruction_no_replace",
        DESTRUCTIONS,
        "REPLACE",
        "destructions are never deleted",
        when="rowid = NEW.rowid OR id = NEW.id OR number = NEW.number OR collection_id = NEW.collection_id"
        " OR collection_uuid = NEW.collection_uuid",
    ),
    Guard("destruction_no_truncate", DESTRUCTIONS, "TRUNCATE", "destructions are never deleted"),
    # An older dump could contain it.
    Guard(
        "collection_no_return",
        COLLECTIONS,
        "INSERT",
        "a purged collection cannot be inserted again",
        when="EXISTS (SELECT 1 FROM purge_destruction WHERE collection_uuid = NEW.uuid)",
        also_reads=DESTRUCTIONS,
    ),
)
