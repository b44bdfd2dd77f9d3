"""The audit trail: appended without gap or fork, refused every change by the database, damage named (INV-14, F-61, D-7, D-8)."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, models, transaction
from django.db.models import F
from rest_framework.test import APIClient

from tenants import audit
from tenants.models import AuditEvent, AuditHead, Tenant, User
from tenants.work import triggers
from tests.races import race


pytestmark = pytest.mark.both_databases


def append(tenant: Tenant | None, now: datetime, *, count: int = 1, by: User | None = None) -> None:
    for number in range(count):
        with transaction.atomic():
            audit.record("test.happen", by=by, tenant=tenant, target=tenant, now=now, number=number)


# --- Appending ---


def test_record_keeps_everything_in_the_body(acme: Tenant, alice: User, now: datetime) -> None:
    with transaction.atomic():
        audit.record("thing.do", by=alice, tenant=acme, target=alice, now=now, names=["x", "y"], number=3, nothing=None)
    event = AuditEvent.objects.get(action="thing.do")
    assert (event.chain, event.tenant_id, event.actor, event.actor_id) == (str(acme.pk), str(acme.pk), "alice", str(alice.pk))
    assert (event.target_kind, event.target_id) == ("user", str(alice.pk))
    body = json.loads(event.body)
    assert body["facts"] == {"names": ["x", "y"], "number": 3, "nothing": None}
    assert body["actor"] == "alice"
    assert body["at"] == now.isoformat(timespec="microseconds")
    assert list(audit.verify()) == []


def test_record_without_tenant_and_actor_is_the_platform_and_the_system(db: None, now: datetime) -> None:
    append(None, now)
    event = AuditEvent.objects.get()
    assert (event.chain, event.seq, event.actor, event.actor_id, event.tenant_id) == ("platform", 1, "system", "", "")


def test_record_numbers_each_chain_by_itself(acme: Tenant, globex: Tenant, now: datetime) -> None:
    append(acme, now, count=3)
    append(globex, now, count=2)
    assert list(AuditEvent.objects.filter(chain=acme.pk).order_by("seq").values_list("seq", flat=True)) == [1, 2, 3]
    assert AuditHead.objects.get(chain=globex.pk).seq == 2
    assert list(audit.verify()) == []


def test_record_of_unstorable_text_is_kept(acme: Tenant, now: datetime) -> None:
    """PostgreSQL stores neither NUL nor lone surrogates; a filename in a fact may have held them (D-2)."""
    with transaction.atomic():
        audit.record("thing.do", by=None, tenant=acme, target=None, now=now, name="a\x00b\ud800\u202e")
    assert json.loads(AuditEvent.objects.get().body)["facts"] == {"name": "a\x00b\ud800\u202e"}
    assert list(audit.verify()) == []


def test_record_of_a_request_names_it(api: Callable[[User | None], APIClient], alice: User) -> None:
    response = api(None).post("/api/v1/auth/token/", {"username": "alice", "password": "correct horse battery staple"})
    assert AuditEvent.objects.get(action="session.open").request_id == response["X-Request-ID"]


@pytest.mark.django_db(transaction=True)
def test_record_outside_a_transaction_is_refused(acme: Tenant, now: datetime) -> None:
    with pytest.raises(transaction.TransactionManagementError):
        audit.record("thing.do", by=None, tenant=acme, target=None, now=now)


@pytest.mark.django_db(transaction=True)
def test_record_rolled_back_with_its_change_leaves_no_gap(acme: Tenant, now: datetime) -> None:
    append(acme, now)
    with transaction.atomic():
        audit.record("thing.do", by=None, tenant=acme, target=None, now=now)
        transaction.set_rollback(True)
    append(acme, now)
    assert list(AuditEvent.objects.order_by("seq").values_list("seq", flat=True)) == [1, 2]
    assert list(audit.verify()) == []


@pytest.mark.django_db(transaction=True)
def test_record_from_many_threads_at_once_neither_gaps_nor_forks(acme: Tenant, now: datetime) -> None:
    """From the first event on, whose writers find no head to lock."""
    race([partial(append, acme, now, count=5)] * 8 + [partial(append, None, now, count=5)] * 2)
    assert list(AuditEvent.objects.filter(chain=acme.pk).order_by("seq").values_list("seq", flat=True)) == list(range(1, 41))
    assert AuditEvent.objects.filter(chain="platform").count() == 10
    assert list(audit.verify()) == []


# --- The database refuses ---


SQL = [
    "UPDATE tenants_auditevent SET actor = 'nobody'",
    "UPDATE tenants_auditevent SET body = body WHERE seq = 1",
    "DELETE FROM tenants_auditevent",
    "DELETE FROM tenants_auditevent WHERE seq = 2",
    "INSERT INTO tenants_auditevent SELECT * FROM tenants_auditevent WHERE seq = 1 ON CONFLICT (id) DO UPDATE SET actor = ''",
]
SQL_BY_VENDOR = {
    "postgresql": [*SQL, "TRUNCATE tenants_auditevent", "TRUNCATE tenants_auditevent, tenants_audithead CASCADE"],
    "sqlite": [
        *SQL,
        "UPDATE OR IGNORE tenants_auditevent SET actor = 'nobody'",
        "UPDATE OR REPLACE tenants_auditevent SET seq = 1 WHERE seq = 2",
        "INSERT OR REPLACE INTO tenants_auditevent SELECT * FROM tenants_auditevent WHERE seq = 1",
        "REPLACE INTO tenants_auditevent SELECT * FROM tenants_auditevent WHERE seq = 1",
    ],
}


def test_audit_event_changed_by_sql_is_refused_by_the_database(acme: Tenant, now: datetime) -> None:
    append(acme, now, count=2)
    before = list(AuditEvent.objects.order_by("seq").values())
    for sql in SQL_BY_VENDOR[connection.vendor]:
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(sql)
        assert list(AuditEvent.objects.order_by("seq").values()) == before, sql


@pytest.mark.parametrize(
    "attempt",
    [
        lambda event: event.save(),
        lambda event: event.delete(),
        lambda event: AuditEvent.objects.update(actor="nobody"),
        lambda event: AuditEvent.objects.all().delete(),
        lambda event: AuditEvent.objects.bulk_update([event], ["actor"]),
    ],
)
def test_audit_event_changed_by_the_orm_is_refused_by_the_database(
    acme: Tenant, now: datetime, attempt: Callable[[AuditEvent], object]
) -> None:
    append(acme, now)
    event = AuditEvent.objects.get()
    event.actor = "nobody"
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        attempt(event)
    assert AuditEvent.objects.get().actor == "system"


def test_triggers_that_are_gone_are_named_and_come_back_with_migrate(db: None) -> None:
    assert triggers.missing(connection) == []
    triggers.remove(connection)
    assert len(triggers.missing(connection)) >= 2
    call_command("migrate", verbosity=0)
    assert triggers.missing(connection) == []


def test_one_trigger_that_is_out_of_force_is_named_and_comes_back(db: None) -> None:
    name, sql = {
        "postgresql": ("audit_event_no_update", "ALTER TABLE tenants_auditevent DISABLE TRIGGER audit_event_no_update"),
        "sqlite": ("audit_event_no_replace", "DROP TRIGGER audit_event_no_replace"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(sql)
    assert triggers.missing(connection) == [name]
    triggers.install(connection)
    assert triggers.missing(connection) == []


@pytest.mark.django_db(transaction=True)
def test_triggers_survive_a_rebuild_of_the_table() -> None:
    """SQLite's schema editor drops them silently; migrate puts them back (D-8)."""
    field = AuditEvent._meta.get_field("actor")
    assert isinstance(field, models.CharField)
    longer = models.CharField(max_length=200)
    longer.set_attributes_from_name("actor")
    longer.model = AuditEvent
    with connection.schema_editor() as editor:
        editor.alter_field(AuditEvent, field, longer)
        editor.alter_field(AuditEvent, longer, field)
    assert len(triggers.missing(connection)) == (3 if connection.vendor == "sqlite" else 0)
    call_command("migrate", verbosity=0)
    assert triggers.missing(connection) == []


# --- Verifying ---


def edit(**columns: Any) -> Callable[[models.QuerySet[AuditEvent]], object]:
    return lambda events: events.filter(seq=2).update(**columns)


def rewrite(event: AuditEvent, **changes: Any) -> AuditEvent:
    """What a forger does who knows the format: columns, body and hash agree."""
    event.body = json.dumps({**json.loads(event.body), **changes}, sort_keys=True, separators=(",", ":"))
    event.hash = sha256((event.prev_hash + event.body).encode()).hexdigest()
    for name, value in changes.items():
        setattr(event, name, value)
    return event


def rewrite_one(seq: int) -> Callable[[models.QuerySet[AuditEvent]], object]:
    return lambda events: rewrite(events.get(seq=seq), actor="nobody").save()


def edit_a_fact(events: models.QuerySet[AuditEvent]) -> None:
    event = events.get(seq=2)
    events.filter(seq=2).update(body=event.body.replace('"number":1', '"number":9'))


def reorder(events: models.QuerySet[AuditEvent]) -> None:
    events.filter(seq=2).update(seq=99)
    events.filter(seq=3).update(seq=2)
    events.filter(seq=99).update(seq=3)


def cut_tail_and_head(events: models.QuerySet[AuditEvent]) -> None:
    """The head set back, but not to the event that is last now."""
    events.filter(seq__gt=2).delete()
    AuditHead.objects.filter(chain=events[0].chain).update(seq=2)


def append_past_the_head(events: models.QuerySet[AuditEvent]) -> None:
    forged = events.get(seq=4)
    forged.prev_hash = forged.hash
    rewrite(forged, id=str(uuid4()), seq=5).save(force_insert=True)


SECOND = timedelta(seconds=1)
DAMAGES: list[tuple[str, Callable[[models.QuerySet[AuditEvent]], object], int, str]] = [
    ("edited actor", edit(actor="nobody"), 2, "differs from its body in actor"),
    ("edited action", edit(action="thing.undo"), 2, "differs from its body in action"),
    ("edited target", edit(target_id="7", target_kind="user"), 2, "differs from its body in target_id, target_kind"),
    ("edited time", lambda events: events.filter(seq=2).update(at=F("at") + SECOND), 2, "differs from its body in at"),
    ("edited request", edit(request_id="x"), 2, "differs from its body in request_id"),
    ("edited tenant", edit(tenant_id=""), 2, "differs from its body in tenant_id"),
    ("edited fact", edit_a_fact, 2, "its hash does not match its body"),
    ("body no JSON", edit(body="{"), 2, "its hash does not match its body"),
    ("edited hash", edit(hash="f" * 64), 2, "its hash does not match its body"),
    ("edited and hashed again", rewrite_one(2), 3, "does not follow the event before it"),
    ("last edited and hashed again", rewrite_one(4), 4, "is not the event that the chain's head names"),
    ("gap", lambda events: events.filter(seq=2).delete(), 2, "gap: the next event has number 3"),
    ("first gone", lambda events: events.filter(seq=1).delete(), 1, "gap: the next event has number 2"),
    ("gap closed by renumbering", lambda events: (events.filter(seq=4).delete(), events.filter(seq=3).update(seq=4)), 3, "gap"),
    ("reordered", reorder, 2, "does not follow the event before it"),
    ("tail cut", lambda events: events.filter(seq__gt=2).delete(), 3, "truncated chain: the chain's head is at 4"),
    ("all cut", lambda events: events.delete(), 1, "truncated chain: the chain's head is at 4"),
    ("tail cut, head set back", cut_tail_and_head, 2, "is not the event that the chain's head names"),
    ("head gone", lambda events: AuditHead.objects.filter(chain=events[0].chain).delete(), 4, "the chain has no head"),
    ("appended past the head", append_past_the_head, 5, "the chain's head is at 4, before its last event"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inflict", "seq", "problem"), [case[1:] for case in DAMAGES], ids=[case[0].replace(" ", "-") for case in DAMAGES]
)
def test_verify_audit_of_damage_names_the_first_bad_event(
    acme: Tenant,
    globex: Tenant,
    now: datetime,
    inflict: Callable[[models.QuerySet[AuditEvent]], object],
    seq: int,
    problem: str,
) -> None:
    append(acme, now, count=4)
    append(globex, now, count=2)
    append(None, now, count=1)
    assert list(audit.verify()) == []
    triggers.remove(connection)
    inflict(AuditEvent.objects.filter(chain=acme.pk).order_by("seq"))
    (damage,) = audit.verify()
    assert (damage.chain, damage.seq) == (str(acme.pk), seq)
    assert damage.problem.startswith(problem)
    is_missing = problem.startswith(("gap", "truncated chain", "the chain's head"))
    assert damage.event_id == ("" if is_missing else str(AuditEvent.objects.get(chain=acme.pk, seq=seq).pk))
    output = StringIO()
    with pytest.raises(CommandError, match="Damaged chains: 1"):
        call_command("verify_audit", stdout=output)
    assert output.getvalue().startswith(f"{damage}\n")


def test_verify_audit_of_two_damaged_chains_names_both(acme: Tenant, globex: Tenant, now: datetime) -> None:
    append(acme, now, count=3)
    append(globex, now, count=3)
    triggers.remove(connection)
    AuditEvent.objects.filter(seq__gte=2).update(actor="nobody")
    assert sorted((damage.chain, damage.seq) for damage in audit.verify()) == sorted([(str(acme.pk), 2), (str(globex.pk), 2)])


def test_verify_audit_of_a_whole_trail_says_so(acme: Tenant, now: datetime) -> None:
    append(acme, now, count=3)
    append(None, now)
    output = StringIO()
    call_command("verify_audit", stdout=output)
    assert output.getvalue().endswith("\nThe audit trail is intact: 2 chains.\n")


@pytest.mark.django_db(transaction=True)
def test_verify_while_others_append_sees_no_damage(acme: Tenant, now: datetime) -> None:
    append(acme, now)

    def verify() -> list[audit.Damage]:
        return [damage for _ in range(15) for damage in audit.verify()]

    def write() -> list[audit.Damage]:
        append(acme, now, count=30)
        return []

    assert race([write, write, verify, verify]) == [[], [], [], []]
    assert AuditEvent.objects.count() == 61
