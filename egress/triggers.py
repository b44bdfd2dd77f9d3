"""Database triggers on egress requests. They reject unlisted transitions, decisions by users without the right, and files that
were not reviewed (INV-10, INV-11, INV-12).

The services check the same rules and give better messages. The triggers protect against code that bypasses the services.
"""

from functools import partial
from typing import Final

from egress.states import allowed_transitions
from tenants.work.triggers import Guard, register


REQUESTS: Final = "egress_egressrequest"
STEPS: Final = "egress_transition"
ITEMS: Final = "egress_stagedfile"
DECISIONS: Final = "egress_decision"
CONTRIBUTORS: Final = "egress_contributor"

MOVES: Final = (
    "OLD.status <> NEW.status OR OLD.round <> NEW.round OR OLD.stage <> NEW.stage OR OLD.step <> NEW.step"
    " OR OLD.awaited_role <> NEW.awaited_role"
)
LISTED: Final = " OR ".join(
    f"(OLD.status = '{source}' AND NEW.status = '{target}')" for source, target, _ in allowed_transitions()
)
ROUNDS: Final = (  # each submission starts a round
    "((NEW.status = 'submitted' AND NEW.round = OLD.round + 1) OR (NEW.status <> 'submitted' AND NEW.round = OLD.round))"
)
APPROVALS: Final = (
    "(SELECT COUNT(*) FROM egress_decision WHERE request_id = NEW.id AND round = NEW.round AND verdict = 'approve'"
    " AND voided_at IS NULL AND content_sha256 = NEW.content_sha256)"
)
STEP: Final = (
    "EXISTS (SELECT 1 FROM egress_transition WHERE request_id = NEW.id AND number = NEW.step AND to_status = NEW.status"
    " AND round = NEW.round AND stage = NEW.stage AND from_status ="
)
BEGINS: Final = (
    "OLD.step = 0 AND NEW.status = OLD.status AND NEW.round = OLD.round AND NEW.stage = OLD.stage"
    f" AND NEW.awaited_role = OLD.awaited_role AND {STEP} '')"
)


def never_deleted(table: str, *, rows: str, key: str) -> tuple[Guard, ...]:
    """Triggers against the deletion of rows. `key` is an SQL condition for rows that conflict with NEW."""
    refuse = partial(Guard, table=table, refusal=f"{rows} cannot be deleted")
    name = table.removeprefix("egress_")
    return (
        refuse(f"{name}_no_delete", on="DELETE"),
        refuse(f"{name}_no_replace", on="REPLACE", when=f"rowid = NEW.rowid OR id = NEW.id OR ({key})"),
        refuse(f"{name}_no_truncate", on="TRUNCATE"),
    )


register(
    Guard(
        "egressrequest_moves_by_the_table",
        REQUESTS,
        "UPDATE",
        "an egress request can only make a listed and recorded transition",
        when=f"({MOVES}) AND NOT (NEW.step = OLD.step + 1 AND (({LISTED}) AND {ROUNDS} AND {STEP} OLD.status) OR {BEGINS}))",
        also_reads=STEPS,
    ),
    Guard(
        "egressrequest_released_as_approved",
        REQUESTS,
        "UPDATE",
        "an egress request can only be released after an approval at every stage",
        when=f"NEW.status IN ('approved', 'released') AND OLD.status <> NEW.status AND {APPROVALS} <> NEW.stage_count",
        also_reads=DECISIONS,
    ),
    Guard(
        "egressrequest_stays_itself",
        REQUESTS,
        "UPDATE",
        "requester, collection, policy and files of an egress request are immutable",
        when="NEW.id <> OLD.id OR NEW.tenant_id <> OLD.tenant_id OR NEW.collection_uuid <> OLD.collection_uuid"
        " OR NEW.collection_id <> OLD.collection_id OR NEW.requester_id <> OLD.requester_id OR NEW.stage_count <> OLD.stage_count"
        " OR NEW.requester_name <> OLD.requester_name OR NEW.stages <> OLD.stages OR NEW.policy <> OLD.policy"
        " OR (NEW.round = OLD.round AND (NEW.content_sha256 <> OLD.content_sha256 OR NEW.justification <> OLD.justification"
        " OR NEW.file_count <> OLD.file_count OR NEW.total_length <> OLD.total_length))",
    ),
    Guard(
        "egressrequest_signed_once",
        REQUESTS,
        "UPDATE",
        "a signed manifest is immutable",
        when="(NEW.manifest <> OLD.manifest OR NEW.signature <> OLD.signature OR NEW.package_sha256 <> OLD.package_sha256)"
        " AND NOT (OLD.status = 'approved' AND NEW.status = 'released')",
    ),
    Guard(
        "egressrequest_package_of_its_own",
        REQUESTS,
        "UPDATE",
        "a package belongs to one egress request",
        when="NEW.package_collection_id <> OLD.package_collection_id OR (OLD.package_collection_id IS NULL AND EXISTS"
        " (SELECT 1 FROM egress_egressrequest r WHERE r.package_collection_id = NEW.package_collection_id))",
    ),
    Guard(
        "egressrequest_begins_submitted",
        REQUESTS,
        "INSERT",
        "a new egress request must be submitted",
        when="NEW.status <> 'submitted' OR NEW.round <> 1 OR NEW.stage <> 0 OR NEW.step <> 0",
    ),
    *never_deleted(REQUESTS, rows="egress requests", key="FALSE"),
    Guard("step_no_update", STEPS, "UPDATE", "transitions of egress requests are immutable"),
    *never_deleted(STEPS, rows="transitions of egress requests", key="request_id = NEW.request_id AND number = NEW.number"),
    Guard(
        "item_comes_with_its_round",
        ITEMS,
        "INSERT",
        "files can only be added to an egress request at the start of a round",
        when="NOT EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id"
        " AND ((r.step = 0 AND NEW.round = r.round) OR (r.status = 'returned' AND NEW.round = r.round + 1)))",
        also_reads=REQUESTS,
    ),
    Guard(
        "item_stays_itself",
        ITEMS,
        "UPDATE",
        "a pinned file is immutable, and a deleted copy stays deleted",
        when="NEW.id <> OLD.id OR NEW.request_id <> OLD.request_id OR NEW.round <> OLD.round OR NEW.number <> OLD.number"
        " OR NEW.file_uuid <> OLD.file_uuid OR NEW.filename <> OLD.filename OR NEW.length <> OLD.length"
        " OR NEW.sha256 <> OLD.sha256 OR NEW.object_id <> OLD.object_id OR NEW.object_key <> OLD.object_key"
        " OR (OLD.status IN ('wiping', 'wiped') AND NEW.status IN ('pinned', 'staged'))"
        " OR (OLD.status = 'wiped' AND (NEW.status <> 'wiped' OR NEW.wiped_at <> OLD.wiped_at))",
    ),
    *never_deleted(
        ITEMS,
        rows="files of egress requests",
        key="object_key = NEW.object_key OR (request_id = NEW.request_id AND round = NEW.round AND number = NEW.number)",
    ),
    Guard(
        "decision_fits_the_request",
        DECISIONS,
        "INSERT",
        "a decision must match the current stage, round and content of its request",
        when="NEW.voided_at IS NOT NULL OR NOT EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id"
        " AND r.status = 'in_review' AND r.round = NEW.round AND r.stage = NEW.stage AND r.awaited_role = NEW.role"
        " AND r.content_sha256 = NEW.content_sha256)",
        also_reads=REQUESTS,
    ),
    Guard(
        "decision_by_somebody_else",
        DECISIONS,
        "INSERT",
        "a requester cannot decide on their own request",
        when="EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id AND r.requester_id = NEW.by_id)",
        also_reads=REQUESTS,
    ),
    Guard(
        "decision_by_no_contributor",
        DECISIONS,
        "INSERT",
        "a contributor cannot decide on their own files",
        when="EXISTS (SELECT 1 FROM egress_contributor c WHERE c.request_id = NEW.request_id AND c.round = NEW.round"
        " AND c.user_id = NEW.by_id)",
        also_reads=CONTRIBUTORS,
    ),
    Guard(
        "decision_stands",
        DECISIONS,
        "UPDATE",
        "a decision is immutable, except that it can become void once",
        when="NEW.id <> OLD.id OR NEW.request_id <> OLD.request_id OR NEW.round <> OLD.round OR NEW.stage <> OLD.stage"
        " OR NEW.role <> OLD.role OR NEW.verdict <> OLD.verdict OR NEW.reason <> OLD.reason OR NEW.by_id <> OLD.by_id"
        " OR NEW.by_name <> OLD.by_name OR NEW.by_email <> OLD.by_email OR NEW.at <> OLD.at"
        " OR NEW.content_sha256 <> OLD.content_sha256 OR OLD.voided_at IS NOT NULL OR NEW.voided_at IS NULL",
    ),
    Guard(
        "decision_void_before_release",
        DECISIONS,
        "UPDATE",
        "a decision can only become void while the package is being built",
        when="NOT EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id AND r.status = 'approved')",
        also_reads=REQUESTS,
    ),
    *never_deleted(
        DECISIONS,
        rows="decisions",
        key="request_id = NEW.request_id AND round = NEW.round AND (stage = NEW.stage OR by_id = NEW.by_id)"
        " AND voided_at IS NULL AND NEW.voided_at IS NULL",
    ),
    *never_deleted(
        CONTRIBUTORS,
        rows="contributors to egress requests",
        key="request_id = NEW.request_id AND round = NEW.round AND user_id = NEW.user_id",
    ),
    Guard("contributor_no_update", CONTRIBUTORS, "UPDATE", "contributors to egress requests are immutable"),
)
