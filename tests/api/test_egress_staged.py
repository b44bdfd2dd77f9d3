"""Staged files as their reviewers read them, and the rounds that they belong to.

bob asks; grace and ruth decide, at the first and at the second stage; alice is admin, erin audits, carol has no part in it.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from pytest_django import Settings
from rest_framework.test import APIClient

from files.http import streaming
from files.http.streaming import TransferEnded
from files.models import Collection
from tenants.models import Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, digest, facts, problem
from tests.api.cases import Case
from tests.api.worlds import make_in_review, make_reviewable
from tests.clients import Clients
from tests.services.egress import FILES, body, decide, fill, path, see, submit, work_on
from tests.worlds import provides_world
from vault.models import Cipher


pytestmark = pytest.mark.usefixtures("vault")
REVIEWERS = ("grace", "gary", "ruth", "rick")
Api = Callable[[User | str | None], APIClient]


@pytest.fixture
@provides_world(make_reviewable)
def people() -> dict[str, User]:
    """Those who decide."""
    return {name: User.objects.get(username=name) for name in REVIEWERS}


@pytest.fixture
@provides_world(make_reviewable)
def slug() -> str:
    """Of a collection of bob's, with FILES in it."""
    return Collection.objects.get(display_name="Results").slug


@pytest.fixture
@provides_world(make_in_review)
def reviewed(people: dict[str, User], slug: str, built: Any) -> Any:
    """A request of bob's, in review."""
    return built


def test_reviewers_read_what_was_pinned(api: Api, people: dict[str, User], reviewed: Any) -> None:
    for number, name in enumerate(sorted(FILES), start=1):
        for who in ("grace", "ruth"):
            answer = api(people[who]).get(path(reviewed, f"items/{number}/content"))
            assert body(answer) == FILES[name]
            assert answer["Repr-Digest"] == digest(FILES[name])
            assert answer["Content-Disposition"].startswith("inline")
            assert answer["Content-Security-Policy"].startswith("sandbox")
            assert "no-store" in answer["Cache-Control"]


def test_part_of_a_staged_file(api: Api, people: dict[str, User], reviewed: Any) -> None:
    """F-45."""
    client, content = api(people["grace"]), FILES["b.csv"]
    address = path(reviewed, "items/2/content")
    answer = client.get(address, headers={"Range": "bytes=1000-2999"})
    assert (answer.status_code, body(answer)) == (206, content[1000:3000])
    assert answer["Content-Range"] == f"bytes 1000-2999/{len(content)}"
    assert body(client.get(address, headers={"Range": "bytes=-5"})) == content[-5:]
    problem(client.get(address, headers={"Range": f"bytes={len(content)}-"}), 416, "range_not_satisfiable")
    assert client.get(address, headers={"If-None-Match": answer["ETag"]}).status_code == 304


def test_head_of_a_staged_file_reads_nothing(api: Api, people: dict[str, User], reviewed: Any) -> None:
    answer = api(people["grace"]).head(path(reviewed, "items/2/content"))
    assert (answer.status_code, answer["Content-Length"]) == (200, str(len(FILES["b.csv"])))
    assert audited("egress.read") == []
    assert see(api(people["grace"]), reviewed)["items"][1]["opened_by"] == []


def test_number_of_no_file(api: Api, people: dict[str, User], reviewed: Any, case: Case) -> None:
    for number in ["0", "4", "99999999999999999999999", "-1", "x", "1.0"]:
        with case(number):
            problem(api(people["grace"]).get(path(reviewed, f"items/{number}/content")), 404, "not_found")


def test_staged_files_are_for_who_has_a_say(
    api: Api, reviewed: Any, alice: User, bob: User, carol: User, erin: User, root: User
) -> None:
    address = path(reviewed, "items/1/content")
    for user in (alice, bob, erin, root):
        problem(api(user).get(address), 403, "not_a_reviewer")
    problem(api(carol).get(address), 404, "not_found")
    Membership.objects.filter(user=bob).update(roles=["member", "research_it"])
    problem(api(bob).get(address), 403, "own_request")


def test_staged_files_are_read_in_review_alone(api: Api, bob: User, people: dict[str, User], slug: str) -> None:
    request = submit(api(bob), slug)
    address, graces = path(request, "items/1/content"), api(people["grace"])
    problem(graces.get(address), 409, "wrong_state")
    work_on()
    assert body(graces.get(address)) == FILES["a.csv"]
    decide(graces, request, "return")
    problem(graces.get(address), 409, "wrong_state")  # at once, and not only when the copy is gone
    assert graces.head(address).status_code == 409


def test_reading_is_on_record_and_its_parts_once_a_quarter_of_an_hour(
    api: Api, people: dict[str, User], reviewed: Any, now: datetime
) -> None:
    """INV-14."""
    address = path(reviewed, "items/2/content")

    def parts(minutes: int, who: str = "grace") -> int:
        with time_machine.travel(now + timedelta(minutes=minutes), tick=False):
            for first in (0, 100, 200):
                body(api(people[who]).get(address, headers={"Range": f"bytes={first}-{first + 99}"}))
        return len(audited("egress.read"))

    assert parts(1) == 1
    assert parts(10) == 1
    assert parts(11, "ruth") == 2
    assert parts(17) == 3
    assert facts("egress.read") == {"item": 2, "file": facts("egress.read")["file"], "first": 0, "count": 100}
    body(api(people["grace"]).get(address))
    body(api(people["grace"]).get(address))
    assert audited("egress.read")[3:] == [("egress.read", "grace")] * 2
    assert [opened["by"] for opened in see(api(people["grace"]), reviewed)["items"][1]["opened_by"]] == ["grace", "ruth"]


# --- Rounds ---


def make_mended() -> Any:
    request = make_in_review()
    clients = Clients({name: User.objects.get(username=name) for name in ("bob", "grace")})
    body(clients["grace"].get(path(request, "items/1/content")))
    decide(clients["grace"], request, "return")
    address = paths.content(request["collection"], "a.csv")
    put = clients["bob"].put(address, b"mended", content_type="text/csv", headers={"If-Match": "*"})
    assert put.status_code == 200
    assert clients["bob"].post(path(request, "resubmit/"), {"files": ["a.csv"]}).status_code == 200
    work_on()
    return request


@pytest.fixture
@provides_world(make_mended)
def mended(reviewed: Any) -> Any:
    """The same request in its second round, with one file, which is another. grace has read it in the first."""
    return reviewed


def test_next_round_has_files_of_its_own(api: Api, people: dict[str, User], mended: Any) -> None:
    graces = api(people["grace"])
    assert body(graces.get(path(mended, "items/1/content"))) == b"mended"
    problem(graces.get(path(mended, "items/2/content")), 404, "not_found")
    seen = see(graces, mended)
    assert (seen["round"], seen["file_count"], seen["total_length"]) == (2, 1, 6)
    assert [decision["round"] for decision in seen["decisions"]] == [1]


def test_files_of_the_round_before_are_still_listed(api: Api, people: dict[str, User], reviewed: Any, mended: Any) -> None:
    """What changed since can be told, and that the copies of then are gone. Nobody reads them."""
    graces = api(people["grace"])
    first = graces.get(path(mended), {"round": 1}).json()
    assert first["round"] == 2
    names = ("number", "filename", "length", "sha256")
    assert [[item[name] for name in names] for item in first["items"]] == [
        [item[name] for name in names] for item in reviewed["items"]
    ]
    assert {(item["status"], item["wiped_at"] is not None, item["links"]["content"]) for item in first["items"]} == {
        ("wiped", True, None)
    }
    assert [[opened["by"] for opened in item["opened_by"]] for item in first["items"]] == [["grace"], [], []]
    assert graces.get(path(mended), {"round": 2}).json() == see(graces, mended)
    assert [opened["by"] for opened in see(graces, mended)["items"][0]["opened_by"]] == []


def test_round_that_there_is_not(api: Api, people: dict[str, User], mended: Any, case: Case) -> None:
    for given in ["3", "0", "-1", "x", "1.5", "9" * 2000]:
        with case(given):
            answer = api(people["grace"]).get(path(mended), {"round": given})
            assert set(problem(answer, 400, answer.json()["code"])["errors"]) == {"round"}


# --- While it is read ---


@pytest.fixture
def asked_before_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1)


def demote(api: Api, request: Any, grace: User) -> None:
    Membership.objects.filter(user=grace).update(roles=["member"])


def deactivate(api: Api, request: Any, grace: User) -> None:
    User.objects.filter(pk=grace.pk).update(is_active=False)


def expel(api: Api, request: Any, grace: User) -> None:
    Membership.objects.filter(user=grace).delete()


def suspend(api: Api, request: Any, grace: User) -> None:
    Tenant.objects.update(is_active=False)


def send_back(api: Api, request: Any, grace: User) -> None:
    assert decide(api(grace), request, "return").status_code == 201


def withdraw(api: Api, request: Any, grace: User) -> None:
    assert api(User.objects.get(username="bob")).post(path(request, "withdraw/"), {}).status_code == 200


def next_round(api: Api, request: Any, grace: User) -> None:
    send_back(api, request, grace)
    assert api(User.objects.get(username="bob")).post(path(request, "resubmit/"), {}).status_code == 200
    work_on()


def test_staged_file_ends_when_its_reader_loses_the_right_to_it(
    asked_before_every_piece: None, settings: Settings, api: Api, bob: User, people: dict[str, User], case: Case
) -> None:
    """INV-16, F-49, F-53."""
    settings.FILES_SEGMENT_SIZE = 131_072
    content = bytes(range(256)) * 4096 * 5
    request = submit(api(bob), fill(api(bob), "Large", {"large.bin": content}))
    work_on()
    for lose in [demote, deactivate, expel, suspend, send_back, withdraw, next_round]:
        with case(lose):
            pieces: Any = api(people["grace"]).get(path(request, "items/1/content"))
            assert pieces.status_code == 200
            stream = pieces.streaming_content
            received = next(stream) + next(stream)
            lose(api, request, people["grace"])
            with pytest.raises(TransferEnded):
                next(stream)
            assert content.startswith(received)


def test_file_without_encryption_is_reviewed_like_any_other(api: Api, acme: Tenant, bob: User, people: dict[str, User]) -> None:
    acme.allowed_ciphers = ["AES-GCM", "NONE"]
    acme.save()
    made = api(bob).post(paths.COLLECTIONS, {"display_name": "Open", "cipher": Cipher.NONE}).json()
    api(bob).put(paths.content(made["id"], "a.csv"), FILES["a.csv"], content_type="text/csv")
    request = submit(api(bob), made["id"])
    work_on()
    assert body(api(people["grace"]).get(path(request, "items/1/content"))) == FILES["a.csv"]
