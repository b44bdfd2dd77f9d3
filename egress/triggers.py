"""What the database itself refuses of egress requests: steps that are not in the table, decisions by the wrong person, and files
that nobody decided on (INV-10, INV-11, INV-12). The services check the same and say why; this is for whoever comes past them.
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
ROUNDS: Final = (  # each submission begins one
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


def never_deleted(table: str, *, of: str, key: str) -> tuple[Guard, ...]:
    """Rows of it are never deleted. `key` says of a row whether it is in the way of NEW."""
    refuse = partial(Guard, table=table, refusal=f"{of} are never deleted")
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
        "an egress request goes from state to state by a step that is in the table",
        when=f"({MOVES}) AND NOT (NEW.step = OLD.step + 1 AND (({LISTED}) AND {ROUNDS} AND {STEP} OLD.status) OR {BEGINS}))",
        asks=STEPS,
    ),
    Guard(
        "egressrequest_released_as_approved",
        REQUESTS,
        "UPDATE",
        "what is released was approved at every stage",
        when=f"NEW.status IN ('approved', 'released') AND OLD.status <> NEW.status AND {APPROVALS} <> NEW.stage_count",
        asks=DECISIONS,
    ),
    Guard(
        "egressrequest_stays_itself",
        REQUESTS,
        "UPDATE",
        "who asks for what, and by which rules, never changes",
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
        "what was signed at the release never changes",
        when="(NEW.manifest <> OLD.manifest OR NEW.signature <> OLD.signature OR NEW.package_sha256 <> OLD.package_sha256)"
        " AND NOT (OLD.status = 'approved' AND NEW.status = 'released')",
    ),
    Guard(
        "egressrequest_package_of_its_own",
        REQUESTS,
        "UPDATE",
        "a package is of one request",
        when="NEW.package_collection_id <> OLD.package_collection_id OR (OLD.package_collection_id IS NULL AND EXISTS"
        " (SELECT 1 FROM egress_egressrequest r WHERE r.package_collection_id = NEW.package_collection_id))",
    ),
    Guard(
        "egressrequest_begins_submitted",
        REQUESTS,
        "INSERT",
        "an egress request begins as submitted",
        when="NEW.status <> 'submitted' OR NEW.round <> 1 OR NEW.stage <> 0 OR NEW.step <> 0",
    ),
    *never_deleted(REQUESTS, of="egress requests", key="FALSE"),
    Guard("step_no_update", STEPS, "UPDATE", "steps of egress requests never change"),
    *never_deleted(STEPS, of="steps of egress requests", key="request_id = NEW.request_id AND number = NEW.number"),
    Guard(
        "item_comes_with_its_round",
        ITEMS,
        "INSERT",
        "the files of a round are named when it begins",
        when="NOT EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id"
        " AND ((r.step = 0 AND NEW.round = r.round) OR (r.status = 'returned' AND NEW.round = r.round + 1)))",
        asks=REQUESTS,
    ),
    Guard(
        "item_stays_itself",
        ITEMS,
        "UPDATE",
        "what was pinned stays as it was, and what was wiped stays wiped",
        when="NEW.id <> OLD.id OR NEW.request_id <> OLD.request_id OR NEW.round <> OLD.round OR NEW.number <> OLD.number"
        " OR NEW.file_uuid <> OLD.file_uuid OR NEW.filename <> OLD.filename OR NEW.length <> OLD.length"
        " OR NEW.sha256 <> OLD.sha256 OR NEW.object_id <> OLD.object_id OR NEW.object_key <> OLD.object_key"
        " OR (OLD.status IN ('wiping', 'wiped') AND NEW.status IN ('pinned', 'staged'))"
        " OR (OLD.status = 'wiped' AND (NEW.status <> 'wiped' OR NEW.wiped_at <> OLD.wiped_at))",
    ),
    *never_deleted(
        ITEMS,
        of="files of egress requests",
        key="object_key = NEW.object_key OR (request_id = NEW.request_id AND round = NEW.round AND number = NEW.number)",
    ),
    Guard(
        "decision_fits_the_request",
        DECISIONS,
        "INSERT",
        "a decision is about the stage, the round and the content that the request is at",
        when="NEW.voided_at IS NOT NULL OR NOT EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id"
        " AND r.status = 'in_review' AND r.round = NEW.round AND r.stage = NEW.stage AND r.awaited_role = NEW.role"
        " AND r.content_sha256 = NEW.content_sha256)",
        asks=REQUESTS,
    ),
    Guard(
        "decision_by_somebody_else",
        DECISIONS,
        "INSERT",
        "nobody decides on their own request",
        when="EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id AND r.requester_id = NEW.by_id)",
        asks=REQUESTS,
    ),
    Guard(
        "decision_by_no_contributor",
        DECISIONS,
        "INSERT",
        "nobody decides on what they contributed to",
        when="EXISTS (SELECT 1 FROM egress_contributor c WHERE c.request_id = NEW.request_id AND c.round = NEW.round"
        " AND c.user_id = NEW.by_id)",
        asks=CONTRIBUTORS,
    ),
    Guard(
        "decision_stands",
        DECISIONS,
        "UPDATE",
        "a decision stands or is void, and never changes",
        when="NEW.id <> OLD.id OR NEW.request_id <> OLD.request_id OR NEW.round <> OLD.round OR NEW.stage <> OLD.stage"
        " OR NEW.role <> OLD.role OR NEW.verdict <> OLD.verdict OR NEW.reason <> OLD.reason OR NEW.by_id <> OLD.by_id"
        " OR NEW.by_name <> OLD.by_name OR NEW.by_email <> OLD.by_email OR NEW.at <> OLD.at"
        " OR NEW.content_sha256 <> OLD.content_sha256 OR OLD.voided_at IS NOT NULL OR NEW.voided_at IS NULL",
    ),
    Guard(
        "decision_void_before_release",
        DECISIONS,
        "UPDATE",
        "a decision can become void while the package is being built",
        when="NOT EXISTS (SELECT 1 FROM egress_egressrequest r WHERE r.id = NEW.request_id AND r.status = 'approved')",
        asks=REQUESTS,
    ),
    *never_deleted(
        DECISIONS,
        of="decisions",
        key="request_id = NEW.request_id AND round = NEW.round AND (stage = NEW.stage OR by_id = NEW.by_id)"
        " AND voided_at IS NULL AND NEW.voided_at IS NULL",
    ),
    *never_deleted(
        CONTRIBUTORS,
        of="contributors to egress requests",
        key="request_id = NEW.request_id AND round = NEW.round AND user_id = NEW.user_id",
    ),
    Guard("contributor_no_update", CONTRIBUTORS, "UPDATE", "contributors to egress requests never change"),
)
