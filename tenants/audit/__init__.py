"""The audit trail: one append-only chain of hashes per tenant, and one for the platform."""

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
    """Writes one event in the caller's transaction, into the tenant's chain or, without a tenant, the platform's.

    `action` is "<noun>.<verb>"; `by=None` is the system; facts hold no secrets and no content. What was done with an API key
    names it, as the fact `key`. Call it as the last statement of the transaction: from here to the commit every other writer of
    the chain waits. Who writes to two chains in one transaction writes to the tenant's first.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("An audit event is written in the transaction of the change it describes.")
    chain = chain_of(tenant)
    if connection.vendor == "postgresql":
        # Django has foreign keys checked at the commit, which locks the rows that they name. Behind the head that is a deadlock
        # with whoever holds one of those rows and waits for the head.
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    # Locked before the insert, so that two writers neither take one number twice nor leave one out (SQLite has one writer).
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
    """The events of one chain that are all of this. An `action` that ends in a dot means all that begin so."""
    wanted = {
        "action__startswith" if action.endswith(".") else "action": action,
        "actor": actor,
        "target_id": target,
        "request_id": request_id,
        "at__gte": since,
        "at__lt": until,
    }
    return AuditEvent.objects.filter(chain=chain_of(tenant), **{name: value for name, value in wanted.items() if value})


def facts_of(body: str) -> dict[str, Any] | None:
    """None if it is no event's body: whoever got past the triggers must not make the rest of the trail unreadable."""
    try:
        return dict(json.loads(body)["facts"])
    except (ValueError, KeyError, TypeError):
        return None


def seen(action: str, *, by: User, target: models.Model, since: datetime) -> bool:
    """Whether this person's event on this target is on record already: for reads that come in many pieces."""
    target_id = str(getattr(target, "uuid", target.pk))
    return AuditEvent.objects.filter(target_id=target_id, action=action, actor_id=str(by.pk), at__gte=since).exists()


@dataclass(frozen=True, slots=True)
class Damage:
    """The first bad place of a chain. `event_id` is empty when the event itself is what is missing."""

    chain: str
    seq: int
    event_id: str
    problem: str

    def __str__(self) -> str:
        return f"chain {self.chain}: event {self.seq} {self.event_id or '(missing)'}: {self.problem}"


def verify(chain: str | None = None) -> Iterator[Damage]:
    """The first damage of the given chain, or of each chain that has any. Reads in flat memory, while others may append."""
    if chain is not None:
        chains = [chain]
    else:
        heads, events = AuditHead.objects.values_list("chain"), AuditEvent.objects.order_by().values_list("chain")
        chains = sorted(name for (name,) in heads.union(events))
    for name in chains:
        if damage := _first_damage(name):
            yield damage


def _first_damage(chain: str) -> Damage | None:
    # Events are appended while this reads: the head read before them must be among them, the head read after not behind them.
    before = AuditHead.objects.filter(chain=chain).first()
    seq, last_hash, last_id = 0, GENESIS, ""
    for event in AuditEvent.objects.filter(chain=chain).order_by("seq").iterator(chunk_size=1000):
        if event.seq != seq + 1:
            return Damage(chain, seq + 1, "", f"gap: the next event that is there has number {event.seq}")
        if problem := _problem(event, last_hash):
            return Damage(chain, event.seq, str(event.id), problem)
        seq, last_hash, last_id = event.seq, event.hash, str(event.id)
        if before is not None and seq == before.seq and last_hash != before.hash:
            return Damage(chain, seq, last_id, "is not the event that the chain's head names")
    after = AuditHead.objects.filter(chain=chain).first()
    if before is None or after is None:
        return Damage(chain, seq, last_id, "the chain has no head") if seq else None
    if seq < before.seq:
        return Damage(chain, seq + 1, "", f"cut tail: the chain's head is at {before.seq}")
    if seq > after.seq:
        return Damage(chain, after.seq + 1, "", f"the chain's head is at {after.seq}, behind its events")
    return None


def _problem(event: AuditEvent, last_hash: str) -> str:
    if event.prev_hash != last_hash:
        return "does not follow the event before it"
    if event.hash != _hash(event.prev_hash, event.body):
        return "its body is not what was hashed"
    try:
        body = json.loads(event.body)
        facts = body.pop("facts")
    except (ValueError, KeyError, AttributeError):
        return "its body is not an event's"
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
    """One text per value. ASCII, so that neither NUL nor a lone surrogate reaches the database."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _hash(prev_hash: str, body: str) -> str:
    return sha256((prev_hash + body).encode()).hexdigest()
