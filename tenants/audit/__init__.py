"""The audit trail: an append-only hash chain for each tenant, and one for the platform."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

from django.db import connection, models, transaction
from django.db.models import QuerySet

from tenants.models import AuditEvent, AuditHead, Tenant, User
from tenants.request_context import request_id


PLATFORM: Final = "platform"
GENESIS: Final = "0" * 64

Fact = str | int | bool | None | Sequence[str] | Sequence[int]


def record(
    action: str, *, by: User | None, tenant: Tenant | None, target: models.Model | None, now: datetime, **facts: Fact
) -> None:
    """Writes an event in the caller's transaction, to the chain of the tenant, or of the platform if `tenant` is None.

    `action` is "<noun>.<verb>". `by=None` means the system. Facts hold no secrets and no content. If the request used an API key,
    its prefix is added as the fact `key`. Call this function as the last statement of the transaction: until the commit, all
    other writers of the chain wait. A transaction that writes to two chains must write to the tenant's chain first.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("Write an audit event in the transaction of the change that it describes.")
    chain = chain_of(tenant)
    if connection.vendor == "postgresql":
        # Django defers foreign key checks to the commit, and each check locks the referenced row. After the lock on the head,
        # that would deadlock with a transaction that has locked one of these rows and waits for the head.
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    # Lock the head before the insert, so that concurrent writers use each number exactly once (SQLite has one writer).
    head, _ = AuditHead.objects.select_for_update().get_or_create(chain=chain, defaults={"seq": 0, "hash": GENESIS})
    event = AuditEvent(
        id=uuid4(),
        chain=chain,
        seq=head.seq + 1,
        at=now,
        action=action,
        actor_id="" if by is None else str(by.pk),
        actor="system" if by is None else by.username,
        tenant_id="" if tenant is None else str(tenant.pk),
        target_kind="" if target is None else str(target._meta.model_name),
        target_id="" if target is None else str(getattr(target, "uuid", target.pk)),
        request_id=request_id.get()[:100],
        prev_hash=head.hash,
    )
    if by is not None and by.key is not None:
        facts["key"] = by.key.prefix
    event.body = _canonical({**_columns(event), "facts": facts})
    event.hash = _hash(event.prev_hash, event.body)
    event.save(force_insert=True)
    AuditHead.objects.filter(chain=chain).update(seq=event.seq, hash=event.hash)


def chain_of(tenant: Tenant | None) -> str:
    """Returns the name of the tenant's chain, or of the platform's if `tenant` is None."""
    return PLATFORM if tenant is None else str(tenant.pk)


def events(
    tenant: Tenant | None,
    *,
    action: str = "",
    actor: str = "",
    target: str = "",
    request_id: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[AuditEvent]:
    """Returns the events of a chain that match all filters. An `action` that ends in a dot matches all actions with that prefix.

    `since` is included, `until` is not.
    """
    filters = {
        "action__startswith" if action.endswith(".") else "action": action,
        "actor": actor,
        "target_id": target,
        "request_id": request_id,
        "at__gte": since,
        "at__lt": until,
    }
    return AuditEvent.objects.filter(chain=chain_of(tenant), **{name: value for name, value in filters.items() if value})


def facts_of(body: str) -> dict[str, Any] | None:
    """Returns the facts, or None if the body is malformed, so that a tampered event does not make the whole trail unreadable."""
    try:
        return dict(json.loads(body)["facts"])
    except (ValueError, KeyError, TypeError):
        return None


def has_event(action: str, *, by: User, target: models.Model, since: datetime) -> bool:
    """Returns whether the user has a recent event on this target. Reads that use many requests need only one event."""
    target_id = str(getattr(target, "uuid", target.pk))
    return AuditEvent.objects.filter(target_id=target_id, action=action, actor_id=str(by.pk), at__gte=since).exists()


@dataclass(frozen=True, slots=True)
class Damage:
    """The first inconsistency of a chain. `event_id` is empty if the event is missing."""

    chain: str
    seq: int
    event_id: str
    problem: str

    def __str__(self) -> str:
        return f"chain {self.chain}: event {self.seq} {self.event_id or '(missing)'}: {self.problem}"


def verify(chain: str | None = None) -> Iterator[Damage]:
    """Yields the first inconsistency of the given chain, or of each damaged chain.

    It uses constant memory, and can run while events are appended.
    """
    if chain is not None:
        chains = [chain]
    else:
        heads, events = AuditHead.objects.values_list("chain"), AuditEvent.objects.order_by().values_list("chain")
        chains = sorted(name for (name,) in heads.union(events))
    for name in chains:
        if damage := _first_damage(name):
            yield damage


def _first_damage(chain: str) -> Damage | None:
    # Events can be appended during the loop. The chain must include the head read before it, and not exceed the head read after.
    before = AuditHead.objects.filter(chain=chain).first()
    seq, last_hash, last_id = 0, GENESIS, ""
    for event in AuditEvent.objects.filter(chain=chain).order_by("seq").iterator(chunk_size=1000):
        if event.seq != seq + 1:
            return Damage(chain, seq + 1, "", f"gap: the next event has number {event.seq}")
        if problem := _problem(event, last_hash):
            return Damage(chain, event.seq, str(event.id), problem)
        seq, last_hash, last_id = event.seq, event.hash, str(event.id)
        if before is not None and seq == before.seq and last_hash != before.hash:
            return Damage(chain, seq, last_id, "is not the event that the chain's head names")
    after = AuditHead.objects.filter(chain=chain).first()
    if before is None or after is None:
        return Damage(chain, seq, last_id, "the chain has no head") if seq else None
    if seq < before.seq:
        return Damage(chain, seq + 1, "", f"truncated chain: the chain's head is at {before.seq}")
    if seq > after.seq:
        return Damage(chain, after.seq + 1, "", f"the chain's head is at {after.seq}, before its last event")
    return None


def _problem(event: AuditEvent, last_hash: str) -> str:
    if event.prev_hash != last_hash:
        return "does not follow the event before it"
    if event.hash != _hash(event.prev_hash, event.body):
        return "its hash does not match its body"
    try:
        body = json.loads(event.body)
        facts = body.pop("facts")
    except (ValueError, KeyError, AttributeError):
        return "its body is not that of an event"
    if _canonical({**body, "facts": facts}) != event.body:
        return "its body is not canonical"
    columns = _columns(event)
    if differing := sorted(name for name in columns.keys() | body.keys() if columns.get(name) != body.get(name)):
        return f"differs from its body in {', '.join(differing)}"
    return ""


def _columns(event: AuditEvent) -> dict[str, str | int]:
    return {
        "id": str(event.id),
        "chain": event.chain,
        "seq": event.seq,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "action": event.action,
        "actor_id": event.actor_id,
        "actor": event.actor,
        "tenant_id": event.tenant_id,
        "target_kind": event.target_kind,
        "target_id": event.target_id,
        "request_id": event.request_id,
    }


def _canonical(value: dict[str, Any]) -> str:
    """Returns the canonical JSON. It is ASCII, so that no NUL and no lone surrogate reaches the database."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _hash(prev_hash: str, body: str) -> str:
    return sha256((prev_hash + body).encode()).hexdigest()
