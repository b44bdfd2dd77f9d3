"""Egress requests, brought from state to state over HTTP, with the work in between done here and now.

alice is admin, bob asks, carol wrote nothing; grace and gary govern information, ruth and rick run research IT.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.utils import timezone
from rest_framework.test import APIClient
from time_machine import travel

from egress import jobs
from egress.models import EgressRequest, StagedFile
from files import cleanup
from files.models import Collection
from tenants.models import Tenant, User
from tests import invariants
from tests.factories import make_member


Api = Callable[[User | None], APIClient]
REASON = "It is what the protocol allows."
FILES = {"a.csv": b"a,1\n" * 100, "b.csv": b"b,2\n" * 50_000, "empty.txt": b""}


def make_reviewers(tenant: Tenant) -> dict[str, User]:
    """Those of the test's world, if it has them."""
    roles = {"grace": "information_governance", "gary": "information_governance", "ruth": "research_it", "rick": "research_it"}
    found = {user.username: user for user in User.objects.filter(username__in=roles)}
    return {name: found.get(name) or make_member(tenant, name, role) for name, role in roles.items()}


def fill(client: APIClient, display_name: str = "Results", files: dict[str, bytes] | None = None) -> str:
    """A collection of the client's; its id."""
    slug = client.post("/api/v1/collections/", {"display_name": display_name}).json()["id"]
    for name, content in (FILES if files is None else files).items():
        put = client.put(f"/api/v1/collections/{slug}/content/{name}", content, content_type="application/octet-stream")
        assert put.status_code == 201, put.content
    return str(slug)


def submit(client: APIClient, slug: str, **wish: Any) -> Any:
    answer = client.post("/api/v1/egress/requests/", {"collection": slug, "justification": REASON, **wish})
    assert answer.status_code == 201, answer.content
    return answer.json()


def path(request: Any, what: str = "") -> str:
    return f"/api/v1/egress/requests/{request['id']}/{what}"


def see(client: APIClient, request: Any) -> Any:
    answer = client.get(path(request))
    assert answer.status_code == 200, answer.content
    return answer.json()


def decide(client: APIClient, request: Any, verdict: str = "approve", reason: str = REASON) -> Any:
    return client.post(path(request, "decisions/"), {"verdict": verdict, "reason": reason})


def work_on() -> None:
    """All that goes on by itself, until there is nothing left to do, however long a busy machine takes for it."""
    for _ in range(20):
        jobs.tick(now=timezone.now())
        while jobs.process_copies(now=timezone.now(), until=float("inf")):
            pass
        if not jobs.build_package(now=timezone.now()):
            break


def work_later() -> None:
    """When whoever had a lease and showed no sign of life is taken for dead."""
    now = timezone.now() + jobs.LEASE_TIMEOUT + timedelta(minutes=1)
    while jobs.process_copies(now=now, until=float("inf")) or jobs.build_package(now=now):
        pass


def row(request: Any) -> EgressRequest:
    return EgressRequest.objects.get(pk=request["id"])


def collection_of(request: Any) -> Collection:
    return Collection.objects.get(slug=request["collection"])


def body(answer: Any) -> bytes:
    assert answer.status_code in {200, 206}, answer.content
    return bytes(answer.getvalue())


def approved(api: Api, by: User, people: dict[str, User], slug: str, **wish: Any) -> Any:
    """Submitted, staged, and let out by grace and ruth: its package is what comes next."""
    request = submit(api(by), slug, **wish)
    work_on()
    for name in ("grace", "ruth"):
        answer = decide(api(people[name]), request)
        assert answer.status_code == 201, answer.content
    return request


def released(api: Api, by: User, people: dict[str, User], slug: str, **wish: Any) -> Any:
    request = approved(api, by, people, slug, **wish)
    work_on()
    assert row(request).status == "released", row(request).problem
    return request


def go_on(minutes: int) -> None:
    """All that is to be done so much later, by which time those who work now are taken for dead if that is long enough."""
    with travel(timezone.now() + timedelta(minutes=minutes)):
        now = timezone.now()
        while jobs.process_copies(now=now, until=float("inf")) or jobs.build_package(now=now):
            pass
        cleanup.abandon_stalled_uploads(now=now)
        cleanup.delete_due_objects(now=now)


def go_on_given(minutes: int) -> None:
    """As `go_on`, but the time is only given: S3 refuses what is signed at another than its own."""
    now = timezone.now() + timedelta(minutes=minutes)
    while jobs.process_copies(now=now, until=float("inf")) or jobs.build_package(now=now):
        pass
    cleanup.abandon_stalled_uploads(now=now)
    cleanup.delete_due_objects(now=now)


def in_bucket(alias: str) -> list[str]:
    return [entry.key for store, entry in invariants.entries() if store == alias]


def assert_wiped(request: Any) -> None:
    """A tombstone for each copy, and nothing in staging."""
    assert in_bucket("staging") == []
    for item in StagedFile.objects.filter(request=request["id"]):
        assert (item.status, item.wiped_at is not None) == ("wiped", True)
        assert item.object_key
        assert len(item.sha256) == 64
