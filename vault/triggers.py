"""Triggers on keys and on the deployment: the database refuses to undo a destruction (INV-08)."""

from typing import Final

from tenants.work.triggers import Guard, register


KEYS: Final = "vault_key"
DEPLOYMENT: Final = "vault_deployment"

register(
    Guard(
        "key_stays_destroyed",
        KEYS,
        "UPDATE",
        "the destruction of a key is permanent",
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
        "a key cannot be replaced",
        when="rowid = NEW.rowid OR id = NEW.id OR (purpose = NEW.purpose AND owner = NEW.owner)",
    ),
    Guard(
        "deployment_goes_forward",
        DEPLOYMENT,
        "UPDATE",
        "the identity and the ledger number of a deployment cannot be reset",
        when="NEW.uuid <> OLD.uuid OR NEW.ledger_number < OLD.ledger_number OR NEW.lost_until < OLD.lost_until"
        " OR (OLD.marked_at IS NOT NULL AND NEW.marked_at IS NULL)",
    ),
)
