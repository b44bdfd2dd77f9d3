"""What the database refuses of destructions: the work in hand is not forgotten, and a certificate stands for ever (INV-08)."""

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
        "a destruction is of one collection for ever",
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
    # From a dump of before, say, or after a DELETE.
    Guard(
        "collection_no_return",
        COLLECTIONS,
        "INSERT",
        "a collection that was purged does not come back",
        when="EXISTS (SELECT 1 FROM purge_destruction WHERE collection_uuid = NEW.uuid)",
        also_reads=DESTRUCTIONS,
    ),
)
