"""One tenant with a request in every state, and everybody who may come by. Made once for a module: what a test does is undone.

bob asks, and cora, who holds the roles of both stages, wrote one of his files. grace decides first and ruth second; gary and rick
could as well. alice is admin, erin auditor, carol a member with nothing to do with it, and mallory has every role next door.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

from django.db import connection, transaction
from django.db.models import Model
from django.utils import timezone

from egress import jobs
from egress.models import Contributor, Decision, Download, EgressRequest, StagedFile, Transition
from egress.states import State
from files.models import Collection, DownloadLink, Hold
from tenants.models import AuditEvent, Mail, Membership, User
from tests.clients import Clients
from tests.factories import make_key, make_member, make_tenant, make_user
from tests.services.egress import REASON, decide, fill, path, row, submit


ROLES: Final = ["information_governance", "research_it"]
STARTS: Final[dict[str, State]] = {  # where the requests of the world are
    "submitted": State.SUBMITTED,
    "first stage": State.IN_REVIEW,
    "second stage": State.IN_REVIEW,
    "approved": State.APPROVED,
    "failed": State.FAILED,
    "returned": State.RETURNED,
    "released": State.RELEASED,
    "closed": State.CLOSED,
    "rejected": State.REJECTED,
    "withdrawn": State.WITHDRAWN,
    "expired": State.EXPIRED,
    "revoked": State.REVOKED,
}
BEYOND_FIRST: Final = ["second stage", "approved", "failed", "released", "closed", "revoked"]


@dataclass(frozen=True)
class World:
    people: dict[str, User]
    api_keys: dict[str, str]  # "key of bob" is a key of bob's
    requests: dict[str, Any]  # by where they are, as their submission was answered

    @cached_property
    def clients(self) -> Clients:
        return Clients(self.people, self.api_keys)


@contextmanager
def undone() -> Iterator[None]:
    """Whatever happens in its block has not happened afterwards, as far as the database knows."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def make_world() -> World:
    acme, globex = make_tenant("acme"), make_tenant("globex")
    governing, running = ROLES
    people: dict[str, User] = {
        "alice": make_member(acme, "alice", "admin"),
        "bob": make_member(acme, "bob", "member"),
        "carol": make_member(acme, "carol", "member"),
        "cora": make_member(acme, "cora", "member", *ROLES),
        "erin": make_member(acme, "erin", "auditor"),
        "gary": make_member(acme, "gary", governing),
        "grace": make_member(acme, "grace", governing),
        "mallory": make_member(globex, "mallory", "admin", "auditor", "member", *ROLES),
        "rick": make_member(acme, "rick", running),
        "root": make_user("root", is_superuser=True),
        "ruth": make_member(acme, "ruth", running),
    }
    api_keys = {f"key of {name}": make_key(people[name]) for name in ("bob", "grace")}
    return World(people, api_keys, _requests(Clients(people, api_keys), people["bob"]))


def _requests(clients: Clients, requester: User) -> dict[str, Any]:
    bob, grace, ruth = clients["bob"], clients["grace"], clients["ruth"]
    made = {start: _submit(clients, start) for start in STARTS if start != "submitted"}
    work_on()
    for start in BEYOND_FIRST:
        assert decide(grace, made[start]).status_code == 201
    assert decide(ruth, made["failed"]).status_code == 201
    User.objects.filter(pk=requester.pk).update(is_active=False)
    assert jobs.build_package(now=timezone.now())
    User.objects.filter(pk=requester.pk).update(is_active=True)
    for start in ("released", "closed", "revoked"):
        assert decide(ruth, made[start]).status_code == 201
        assert jobs.build_package(now=timezone.now())
    assert decide(ruth, made["approved"]).status_code == 201
    assert decide(grace, made["rejected"], "reject").status_code == 201
    assert decide(grace, made["returned"], "return").status_code == 201
    assert bob.post(path(made["withdrawn"], "withdraw/")).status_code == 200
    assert grace.post(path(made["revoked"], "revoke/"), {"reason": REASON}).status_code == 200
    past = timezone.now() - timedelta(minutes=1)
    EgressRequest.objects.filter(pk=made["expired"]["id"]).update(expires_at=past)
    EgressRequest.objects.filter(pk=made["closed"]["id"]).update(available_until=past)
    jobs.end_expired(now=timezone.now())
    work_on()
    assert not StagedFile.objects.filter(status=StagedFile.Status.WIPING).exists()
    made["submitted"] = _submit(clients, "submitted")
    assert {start: row(request).status for start, request in made.items()} == STARTS
    return made


def _submit(clients: Clients, start: str) -> Any:
    slug = fill(clients["bob"], f"Results {start}", {"a.csv": b"a,1\n" * 100})
    put = clients["cora"].put(f"/api/v1/collections/{slug}/content/b.csv", b"b,2\n", content_type="text/csv")
    assert put.status_code == 201
    return submit(clients["bob"], slug)


def work_on() -> None:
    """Copies and wiping, of all that wait for it."""
    while jobs.process_copies(now=timezone.now(), until=float("inf")):
        pass


def give_roles(person: User, *roles: str) -> None:
    Membership.objects.filter(user=person).update(roles=list(roles))


Tables = dict[str, list[dict[str, Any]]]
MODELS: Final[list[type[Model]]] = [
    EgressRequest, Transition, Decision, StagedFile, Contributor, Download, Hold, Collection, DownloadLink, AuditEvent, Mail,
]  # fmt: skip


def everything() -> Tables:
    """As the database has it: quicker than instances, and this is asked a thousand times."""
    tables = {}
    with connection.cursor() as cursor:
        for name in (model._meta.db_table for model in MODELS):
            cursor.execute(f"SELECT * FROM {name} ORDER BY id")  # noqa: S608  constants
            columns = [column[0] for column in cursor.description]
            tables[name] = [dict(zip(columns, found, strict=True)) for found in cursor.fetchall()]
    return tables
