"""Triggers that keep the audit trail append-only."""

from functools import partial
from typing import Final

from tenants.work.triggers import Guard, register


TABLE: Final = "tenants_auditevent"
audit_guard = partial(Guard, table=TABLE, refusal="audit events are append-only")

register(
    audit_guard("audit_event_no_update", on="UPDATE"),
    audit_guard("audit_event_no_delete", on="DELETE"),
    audit_guard(
        "audit_event_no_replace", on="REPLACE", when="rowid = NEW.rowid OR id = NEW.id OR (chain = NEW.chain AND seq = NEW.seq)"
    ),
    audit_guard("audit_event_no_truncate", on="TRUNCATE"),
)
