"""What admins and auditors see of destructions, and how far one is (INV-01)."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from rest_framework.test import APIClient

from files.models import Collection
from purge.destruction import run_next_step, start_destruction
from purge.models import Destruction, Shard
from tenants.models import Tenant, User
from tests.api.answers import problem
from tests.factories import make_destruction, make_key
from vault import audit_checkpoints


Api = Callable[[User | str | None], APIClient]
DESTRUCTIONS, CERTIFICATES = "/api/v1/purge/destructions/", "/api/v1/purge/certificates/"


@pytest.fixture
def begun(november: str, alice: User, api: Api, put: Any) -> Destruction:
    for name in ("a.csv", "b.csv"):
        put(api(alice), november, name, b"a,b")
    Collection.objects.update(purge_at=timezone.now() - timedelta(minutes=1))
    destruction = start_destruction(Collection.objects.get(), by=None, now=timezone.now())
    assert destruction
    return destruction


def work_on() -> None:
    while run_next_step(now=timezone.now(), seconds=60):
        pass


def test_destruction_shows_how_far_it_is_and_then_its_certificate(begun: Destruction, alice: User, erin: User, api: Api) -> None:
    address = f"{DESTRUCTIONS}{begun.pk}/"
    for user in (alice, erin):
        shown = api(user).get(address).json()
        assert shown == shown | {
            "tenant": "acme", "collection": begun.slug, "display_name": "November 2012", "reason": "expired",
            "started_by": "system", "status": "running", "blocked_by": "", "completed_at": None, "file_count": 2,
            "total_length": 6,
            "progress": {"erased": 0, "parts": 3, "parts_verified": 0},
            "links": {"self": f"http://testserver{address}", "certificate": None},
        }  # fmt: skip
        problem(api(user).get(f"{CERTIFICATES}{begun.pk}/"), 404, "not_found")

    work_on()

    shown = api(erin).get(address).json()
    assert (shown["status"], shown["progress"]) == ("done", {"erased": 2, "parts": 3, "parts_verified": 3})
    certificate = api(erin).get(shown["links"]["certificate"]).json()
    assert certificate["certificate"]["collection"]["id"] == begun.slug
    assert certificate["signed"] == Destruction.objects.get().certificate
    assert api(erin).get(CERTIFICATES).json()["results"] == [certificate]


def test_blocked_destruction_says_by_what(begun: Destruction, alice: User, api: Api) -> None:
    Destruction.objects.update(status="blocked", blocked_by="AccessDenied: Access Denied")
    shown = api(alice).get(f"{DESTRUCTIONS}?status=blocked").json()["results"]
    assert [(each["status"], each["blocked_by"]) for each in shown] == [("blocked", "AccessDenied: Access Denied")]


def test_destructions_are_filtered_and_paged(acme: Tenant, globex: Tenant, alice: User, mallory: User, api: Api) -> None:
    mine = [make_destruction(acme, name) for name in ("October", "November", "December")]
    make_destruction(globex, "Theirs")
    Shard.objects.create(destruction=mine[0], store="vault", prefix="x/", erased=7)

    client = api(alice)
    page = client.get(f"{DESTRUCTIONS}?page_size=2").json()
    rest = client.get(page["next"]).json()
    assert [each["display_name"] for each in page["results"] + rest["results"]] == ["December", "November", "October"]
    assert rest["results"][0]["progress"]["erased"] == 7

    for query, names in (
        ("tenant=acme", ["December", "November", "October"]),
        ("tenant=globex", []),
        (f"collection={mine[1].slug}", ["November"]),
        ("status=running", []),
    ):
        assert [each["display_name"] for each in client.get(f"{DESTRUCTIONS}?{query}").json()["results"]] == names
    problem(client.get(f"{DESTRUCTIONS}?status=gone"), 400, "invalid_choice")
    problem(client.get(f"{DESTRUCTIONS}?cursor=x"), 400, "bad_cursor")


@pytest.mark.parametrize("address", [DESTRUCTIONS, CERTIFICATES])
@pytest.mark.parametrize("which", ["x", "00000000-0000-0000-0000-000000000009", "theirs"])
def test_destruction_of_others_is_as_none(globex: Tenant, alice: User, mallory: User, api: Api, address: str, which: str) -> None:
    theirs = make_destruction(globex, "Theirs")
    problem(api(alice).get(f"{address}{theirs.pk if which == 'theirs' else which}/"), 404, "not_found")


def test_key_needs_the_scope_of_an_auditor(acme: Tenant, alice: User, api: Api) -> None:
    make_destruction(acme, "October")
    problem(api(make_key(alice, "read")).get(DESTRUCTIONS), 403, "insufficient_scope")
    assert len(api(make_key(alice, "audit")).get(CERTIFICATES).json()["results"]) == 1


def test_lists_take_as_many_queries_however_long(acme: Tenant, alice: User, api: Api, django_assert_num_queries: Any) -> None:
    client = api(alice)
    for name in range(5):
        make_destruction(acme, f"Number {name}")
        with django_assert_num_queries(3):
            assert client.get(DESTRUCTIONS).status_code == 200


def test_certificate_is_checked_as_the_page_says(begun: Destruction, alice: User, api: Api, tmp_path: Path) -> None:
    """docs/retention.md, word for word: without us, and nothing altered passes."""
    page = (Path(settings.BASE_DIR) / "docs" / "retention.md").read_text()
    program = re.findall(r"```python\n(.+?)```", page, re.DOTALL)[0]
    work_on()
    answer = api(alice).get(f"{CERTIFICATES}{begun.pk}/").json()
    (tmp_path / "key.pem").write_text(audit_checkpoints.public_key() or "")

    def check(certificate: dict[str, Any]) -> int:
        (tmp_path / "certificate.json").write_text(json.dumps(certificate))
        command = [sys.executable, "-c", program, "certificate.json", "key.pem"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert check(answer) == 0
    assert check(answer | {"signed": answer["signed"].replace("November", "December")}) == 1
