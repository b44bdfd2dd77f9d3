"""GET tenants/{tenant}/audit/ and audit/, and their exports: who reads which trail, narrowed how, and what of it a spreadsheet
gets to see (INV-01, INV-16, F-43, F-62)."""

import csv
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from files import audit_export
from files.http import streaming
from files.http.streaming import TransferEnded
from tenants import audit
from tenants.models import AuditEvent, Membership, Tenant, User
from tenants.work import triggers
from tests.api.answers import problem


Api = Callable[[User | None], APIClient]
ACME, PLATFORM = "/api/v1/tenants/acme/audit", "/api/v1/audit"
BOTH = pytest.mark.parametrize("ending", ["/", ".csv"])


def record(action: str, *, tenant: Tenant | None, by: User | None = None, target: Any = None, at: datetime, **facts: Any) -> None:
    with transaction.atomic():
        audit.record(action, by=by, tenant=tenant, target=target, now=at, **facts)


@pytest.fixture
def trail(acme: Tenant, globex: Tenant, alice: User, bob: User, mallory: User, now: datetime) -> None:
    """Five events of acme, a minute apart, beside one of globex and one of the platform."""
    record("collection.create", tenant=acme, by=alice, target=acme, at=now - timedelta(minutes=5), name="November")
    record("file.upload", tenant=acme, by=bob, target=bob, at=now - timedelta(minutes=4), length=3)
    record("file.download", tenant=acme, by=alice, target=bob, at=now - timedelta(minutes=3))
    record("file.download", tenant=acme, by=bob, target=alice, at=now - timedelta(minutes=2))
    record("filex.odd", tenant=acme, at=now - timedelta(minutes=1))
    record("file.upload", tenant=globex, by=mallory, target=mallory, at=now, name="foreign")
    record("session.open", tenant=None, by=mallory, target=mallory, at=now)


def listed(client: APIClient, path: str = f"{ACME}/", **query: Any) -> list[dict[str, Any]]:
    response = client.get(path, query)
    assert response.status_code == 200, response.json()
    return list(response.json()["results"])


def numbers(client: APIClient, path: str = f"{ACME}/", **query: Any) -> list[int]:
    return [event["seq"] for event in listed(client, path, **query)]


def exported(client: APIClient, path: str = f"{ACME}.csv", **query: Any) -> list[dict[str, str]]:
    response: Any = client.get(path, query)
    assert response.status_code == 200
    return read(b"".join(response.streaming_content))


def read(content: bytes) -> list[dict[str, str]]:
    """As a program reads it that knows RFC 4180 and nothing of us."""
    return list(csv.DictReader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True))


# --- Who ---


@BOTH
@pytest.mark.parametrize("who", ["alice", "erin", "root"])
def test_trail_is_read_by_its_admins_its_auditors_and_superusers(
    api: Api, trail: None, who: str, ending: str, request: pytest.FixtureRequest
) -> None:
    client = api(request.getfixturevalue(who))
    if ending == "/":
        assert numbers(client) == [5, 4, 3, 2, 1]
    else:
        assert [row["seq"] for row in exported(client)] == ["1", "2", "3", "4", "5"]


@BOTH
@pytest.mark.parametrize(
    ("who", "status", "code"), [("bob", 403, "refused"), ("rita", 403, "refused"), ("mallory", 404, "not_found")]
)
def test_trail_is_refused_to_its_other_members_and_hidden_from_strangers(
    api: Api, trail: None, who: str, status: int, code: str, ending: str, request: pytest.FixtureRequest
) -> None:
    client = api(request.getfixturevalue(who))
    refusal = problem(client.get(f"{ACME}{ending}"), status, code)
    assert (refusal == problem(client.get(f"/api/v1/tenants/no-such-tenant/audit{ending}"), 404, "not_found")) == (status == 404)
    assert not AuditEvent.objects.filter(action="audit.export").exists()


@BOTH
def test_trail_of_the_platform_is_read_by_superusers_alone(api: Api, trail: None, root: User, alice: User, ending: str) -> None:
    problem(api(alice).get(f"{PLATFORM}{ending}"), 403, "refused")
    shown = listed(api(root), f"{PLATFORM}/") if ending == "/" else exported(api(root), f"{PLATFORM}.csv")
    assert [event["action"] for event in shown] == ["session.open"]


def test_auditor_who_lost_the_role_is_refused_on_the_next_page(api: Api, trail: None, erin: User) -> None:
    """INV-16."""
    client = api(erin)
    following = client.get(f"{ACME}/", {"page_size": 2}).json()["next"]
    Membership.objects.filter(user=erin).update(roles=["member"])
    problem(client.get(following), 403, "refused")


@BOTH
def test_trail_of_a_suspended_tenant_is_there_for_superusers(api: Api, trail: None, erin: User, root: User, ending: str) -> None:
    Tenant.objects.filter(slug="acme").update(is_active=False)
    problem(api(erin).get(f"{ACME}{ending}"), 404, "not_found")
    assert len(listed(api(root)) if ending == "/" else exported(api(root))) == 5


# --- What ---


@pytest.mark.both_databases
def test_event_is_shown_whole(api: Api, trail: None, alice: User, acme: Tenant) -> None:
    first, second = AuditEvent.objects.filter(chain=acme.pk).order_by("seq")[:2]
    assert listed(api(alice))[-1] == {
        "seq": 1,
        "at": first.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "action": "collection.create",
        "actor": "alice",
        "actor_id": str(alice.pk),
        "target_kind": "tenant",
        "target_id": str(acme.pk),
        "request_id": first.request_id,
        "facts": {"name": "November"},
        "hash": second.prev_hash,
        "prev_hash": audit.GENESIS,
    }


@pytest.mark.both_databases
def test_pages_follow_each_other_both_ways_while_events_are_added(
    api: Api, trail: None, alice: User, acme: Tenant, now: datetime
) -> None:
    client = api(alice)
    first = client.get(f"{ACME}/", {"page_size": 2}).json()
    record("file.late", tenant=acme, at=now)
    second = client.get(first["next"]).json()
    last = client.get(second["next"]).json()
    assert [[event["seq"] for event in page["results"]] for page in (first, second, last)] == [[5, 4], [3, 2], [1]]
    assert last["next"] is None
    assert client.get(last["previous"]).json()["results"] == second["results"]


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ({"action": "file.download"}, [4, 3]),
        ({"action": "file."}, [4, 3, 2]),
        ({"action": "no.such"}, []),
        ({"actor": "bob"}, [4, 2]),
        ({"actor": "system"}, [5]),
        ({"action": "file.", "actor": "alice"}, [3]),
        ({"request_id": "none"}, []),
    ],
)
def test_filter_narrows(api: Api, trail: None, alice: User, query: dict[str, str], seqs: list[int]) -> None:
    client = api(alice)
    assert numbers(client, **query) == seqs
    assert [int(row["seq"]) for row in exported(client, **query)] == seqs[::-1]


@pytest.mark.both_databases
def test_filter_by_target_time_and_request(api: Api, trail: None, alice: User, bob: User, now: datetime) -> None:
    client = api(alice)
    assert numbers(client, target=str(bob.pk)) == [3, 2]
    since, until = (now - timedelta(minutes=minutes) for minutes in (4, 2))
    assert numbers(client, since=since.isoformat(), until=until.isoformat()) == [3, 2]
    made = client.post("/api/v1/collections/", {"display_name": "December"})
    assert [event["action"] for event in listed(client, request_id=made["X-Request-ID"])] == ["collection.create"]


@BOTH
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", "download"),
        ("action", "file.%"),
        ("actor", "x" * 151),
        ("target", "x" * 101),
        ("request_id", "x" * 101),
        ("since", "yesterday"),
        ("since", "0001-01-01T00:00:00+14:00"),
        ("until", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_filter_that_means_nothing_names_its_field(
    api: Api, trail: None, alice: User, field: str, value: str, ending: str
) -> None:
    refusal = problem(api(alice).get(f"{ACME}{ending}", {field: value}), 400, refused_as(field, value))
    assert list(refusal["errors"]) == [field]


def refused_as(field: str, value: str) -> str:
    if len(value) > 100:
        return "max_length"
    return "overflow" if value[:4] in {"0001", "9999"} else "invalid"


def test_time_that_ends_before_it_begins_names_its_field(api: Api, trail: None, alice: User, now: datetime) -> None:
    query = {"since": now.isoformat(), "until": (now - timedelta(seconds=1)).isoformat()}
    assert list(problem(api(alice).get(f"{ACME}/", query), 400, "invalid")["errors"]) == ["until"]


@pytest.mark.both_databases
@pytest.mark.parametrize("cursor", ["cD1hYmM=", "cD0xLjU=", "cD0xMjM0NQ", "cD0tOTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk=", "xyz", "%00"])
def test_cursor_that_was_made_up_never_breaks(api: Api, trail: None, alice: User, cursor: str) -> None:
    """Positions that are no number, a fraction, cut off, below every number (that one is a position, with nothing behind it)."""
    response = api(alice).get(f"{ACME}/", {"cursor": cursor})
    if response.status_code == 200:
        assert response.json()["results"] == []
    else:
        assert list(problem(response, 400, "bad_cursor")["errors"]) == ["cursor"]


@pytest.mark.parametrize("size", ["0", "1001", "many"])
def test_page_size_that_cannot_be_had_names_its_field(api: Api, trail: None, alice: User, size: str) -> None:
    assert list(problem(api(alice).get(f"{ACME}/", {"page_size": size}), 400, "invalid")["errors"]) == ["page_size"]


@pytest.mark.both_databases
def test_facts_that_no_json_or_body_can_carry_break_nothing(api: Api, acme: Tenant, alice: User, now: datetime) -> None:
    record("file.odd", tenant=acme, at=now, name="a\x00\ud800\u202eb")
    record("file.edited", tenant=acme, at=now)
    triggers.remove(connection)
    AuditEvent.objects.filter(action="file.edited").update(body="{")
    assert [event["facts"] for event in listed(api(alice))] == [None, {"name": "a\x00?\u202eb"}]
    assert [row["facts"] for row in exported(api(alice))] == [r'{"name": "a\u0000\ud800\u202eb"}', "null"]


@pytest.mark.both_databases
@pytest.mark.parametrize("query", [{}, {"cursor": "cD0z"}, {"cursor": "cj0xJnA9Mw=="}, {"action": "file."}])
def test_page_is_read_from_the_index_in_its_order(api: Api, trail: None, alice: User, query: dict[str, str]) -> None:
    """Whichever page: nothing is sorted, and nothing counted."""
    client = api(alice)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        listed(client, **query)
    (page,) = [entry["sql"] for entry in queries if '"tenants_auditevent"."seq"' in entry["sql"].partition("ORDER BY")[2]]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # five rows lie in one block, which it would rather read
            cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{page}")
        plan = str(cursor.fetchall())
    index = "audit_event_chain_seq" if connection.vendor == "postgresql" else "(chain=?"
    assert index in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
    assert not [entry for entry in queries if "COUNT(" in entry["sql"]]


# --- The export ---


def test_export_is_a_file_for_spreadsheets(api: Api, trail: None, alice: User, now: datetime) -> None:
    response: Any = api(alice).get(f"{ACME}.csv")
    content = b"".join(response.streaming_content)
    assert response["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert response["Content-Disposition"].startswith(f'attachment; filename="acme-audit-{now:%Y-%m-%d}.csv"')
    assert response["Cache-Control"] == "private, no-store"
    assert "Content-Length" not in response
    assert content.startswith(b"\xef\xbb\xbfseq,at,action,actor,")
    assert content.count(b"\r\n") == content.count(b"\n") == 6
    shown = [{name: value for name, value in event.items() if name != "facts"} for event in listed(api(alice))[1:]]
    rows = [{name: value for name, value in row.items() if name != "facts"} for row in read(content)]
    assert rows == [event | {"seq": str(event["seq"])} for event in reversed(shown)]
    assert json.loads(read(content)[0]["facts"]) == {"name": "November"}


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0"]
FORMULAS += ["\uff1d1", "\uff0b1", "\uff0d1", "\uff20x"]  # full-width


@pytest.mark.parametrize("text", FORMULAS)
def test_export_disarms_what_a_spreadsheet_takes_for_a_formula(
    api: Api, acme: Tenant, alice: User, now: datetime, text: str
) -> None:
    """F-62. Behind a semicolon too: where that parts cells, the quotes of another cell do not hold it back."""
    mallory = User(pk=7, username=text)
    record("file.odd", tenant=acme, by=mallory, at=now, name=f"x;{text}")
    (row,) = exported(api(alice))
    assert row["actor"] == f"'{text}"
    printable = json.dumps({"name": f"x;'{text}"}, ensure_ascii=False)
    assert row["facts"] == (printable if text.isprintable() else json.dumps({"name": f"x;{text}"}))


@pytest.mark.parametrize("text", ['a,b"c', "a\r\nb", "Müller", "日本", "a;b", "a-b@c=d+e"])
def test_export_keeps_what_is_no_formula(api: Api, acme: Tenant, alice: User, now: datetime, text: str) -> None:
    record("file.odd", tenant=acme, by=User(pk=7, username=text), at=now, name=text)
    (row,) = exported(api(alice))
    assert row["actor"] == text
    assert json.loads(row["facts"]) == {"name": text}
    assert ("Müller" in row["facts"]) == (text == "Müller")  # as people write it


@pytest.mark.both_databases
def test_export_is_on_record_once_and_before_its_first_byte(api: Api, trail: None, alice: User, monkeypatch: Any) -> None:
    monkeypatch.setattr(audit_export, "PAGE_SIZE", 2)
    response: Any = api(alice).get(f"{ACME}.csv", {"action": "file.", "since": "2026-01-01T00:00:00Z"})
    event = AuditEvent.objects.get(action="audit.export")
    assert (event.actor, event.seq, event.request_id) == ("alice", 6, response["X-Request-ID"])
    filters = ["action=file.", "since=2026-01-01 00:00:00+00:00"]
    assert audit.facts_of(event.body) == {"last": 5, "filters": filters}
    assert len(read(b"".join(response.streaming_content))) == 3
    api(alice).get(f"{ACME}/")
    api(alice).head(f"{ACME}.csv")
    assert AuditEvent.objects.filter(action__startswith="audit.").count() == 1
    assert list(audit.verify()) == []


@pytest.mark.both_databases
@pytest.mark.parametrize("page", [1, 2, 5, 6])
def test_export_comes_whole_whatever_the_page_holds(api: Api, trail: None, alice: User, monkeypatch: Any, page: int) -> None:
    monkeypatch.setattr(audit_export, "PAGE_SIZE", page)
    assert [row["seq"] for row in exported(api(alice))] == ["1", "2", "3", "4", "5"]


@pytest.mark.both_databases
def test_export_ends_where_the_trail_ended_when_it_began(
    api: Api, trail: None, alice: User, acme: Tenant, now: datetime, monkeypatch: Any
) -> None:
    monkeypatch.setattr(audit_export, "PAGE_SIZE", 2)
    response: Any = api(alice).get(f"{ACME}.csv")
    record("file.late", tenant=acme, at=now)
    assert [row["seq"] for row in read(b"".join(response.streaming_content))] == ["1", "2", "3", "4", "5"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks before each page whether it may go on, and has pages of one event."""
    monkeypatch.setattr(audit_export, "PAGE_SIZE", 1)
    monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1.0)


def test_export_ends_short_when_its_reader_loses_the_role(api: Api, trail: None, erin: User, impatient: None) -> None:
    """INV-16."""
    response: Any = api(erin).get(f"{ACME}.csv")
    pieces = response.streaming_content
    assert len(read(next(pieces))) == 1
    Membership.objects.filter(user=erin).update(roles=["member"])
    with pytest.raises(TransferEnded, match="no longer has access"):
        list(pieces)


def test_export_takes_a_slot_and_without_one_leaves_no_record(api: Api, trail: None, alice: User, monkeypatch: Any) -> None:
    slots = streaming.Slots(1)
    monkeypatch.setattr(audit_export, "SLOTS", slots)
    slots.take()
    refusal = api(alice).get(f"{ACME}.csv")
    problem(refusal, 503, "transfers_full")
    assert refusal["Retry-After"]
    assert not AuditEvent.objects.filter(action="audit.export").exists()
    for _ in range(2):  # and gives it back
        slots.release()
        exported(api(alice))
        slots.take()


@pytest.mark.both_databases
def test_admin_search_asks_for_whole_values_by_their_indexes(client: Any, trail: None, root: User, acme: Tenant) -> None:
    client.force_login(root)
    for searched, found in {"file.download": 2, str(acme.pk): 5, "mallory": 2, "download": 0}.items():
        page = client.get("/admin/tenants/auditevent/", {"q": searched})
        assert page.context["cl"].result_count == found, searched
