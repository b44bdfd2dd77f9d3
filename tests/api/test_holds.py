"""Legal holds: what they keep as it is, from whom, and who may place and lift them (INV-14, F-54)."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.db.models import ProtectedError
from django.utils import timezone
from rest_framework.test import APIClient

from files.models import Collection, Hold, StoredFile
from tenants.models import Membership, User
from tests.api import paths
from tests.api.answers import audited, facts, problem
from tests.api.cases import Case
from tests.api.worlds import make_held
from tests.factories import make_key
from tests.worlds import provides_world


Api = Callable[[User | str | None], APIClient]
HELD, FREE = "held.csv", "free.csv"


@pytest.fixture
@provides_world(make_held)
def filled(november: str) -> str:
    return november


def place(client: APIClient, slug: str, **wish: str) -> Any:
    return client.post(paths.holds(slug), {"reason": "Smith v. Acme", "ref": "2026-17", **wish})


def changes(client: APIClient, put: Any, slug: str, name: str) -> dict[str, Any]:
    """What would change or destroy a file, each on its own."""
    etag = client.get(paths.file(slug, name))["ETag"]
    return {
        "rename": lambda: client.patch(paths.file(slug, name), {"filename": "other.csv"}),
        "notes": lambda: client.patch(paths.file(slug, name), {"notes": "no longer"}),
        "replace": lambda: put(client, slug, name, b"other bytes", If_Match=etag),
        "delete": lambda: client.delete(paths.file(slug, name)),
    }


# --- What is held ---


def test_held_file_stays_as_it_is_and_can_be_read(alice: User, bob: User, filled: str, api: Api, put: Any, case: Case) -> None:
    for wish in [{}, {"file": HELD}]:
        with case(wish):
            before = api(bob).get(paths.file(filled, HELD)).json()
            place(api(alice), filled, **wish)

            for user in (alice, bob):
                for change in changes(api(user), put, filled, HELD).values():
                    document = problem(change(), 409, "held")
                    assert document["detail"] == "This cannot be changed or deleted while it is under legal hold."

            shown = api(bob).get(paths.file(filled, HELD)).json()
            assert shown == before | {"is_held": True, "allowed_actions": ["download"]}
            assert api(bob).get(paths.content(filled, HELD)).getvalue() == HELD.encode()
            assert audited("file.update", "file.replace", "file.delete") == []


def test_collection_with_anything_held_is_not_deleted(alice: User, filled: str, api: Api, case: Case) -> None:
    for wish in [{}, {"file": HELD}]:
        with case(wish):
            place(api(alice), filled, **wish)

            problem(api(alice).delete(paths.collection(filled)), 409, "held")

            shown = api(alice).get(paths.collection(filled)).json()
            assert (shown["status"], shown["is_held"]) == ("open", True)
            assert "delete" not in shown["allowed_actions"]
            assert [each["is_held"] for each in api(alice).get(paths.COLLECTIONS).json()["results"]] == [True]


def test_hold_on_one_file_leaves_the_others_alone(alice: User, filled: str, api: Api, put: Any, case: Case) -> None:
    for change in ["rename", "notes", "replace", "delete"]:
        with case(change):
            place(api(alice), filled, file=HELD)

            assert changes(api(alice), put, filled, FREE)[change]().status_code in {200, 204}

            held = {file["filename"]: file["is_held"] for file in api(alice).get(paths.files(filled)).json()["results"]}
            assert held[HELD]
            assert not any(is_held for name, is_held in held.items() if name != HELD)


def test_new_file_comes_into_a_held_collection_and_is_held_with_it(
    alice: User, filled: str, api: Api, put: Any, case: Case
) -> None:
    for wish, is_held in [({}, True), ({"file": HELD}, False)]:
        with case(wish, is_held):
            place(api(alice), filled, **wish)

            new = put(api(alice), filled, "new.csv", b"1,2")

            assert (new.status_code, new.json()["is_held"]) == (201, is_held)
            assert api(alice).delete(paths.file(filled, "new.csv")).status_code == (409 if is_held else 204)


def test_replacement_that_began_before_the_hold_is_refused_at_its_end(
    alice: User, filled: str, api: Api, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from files.views import content

    etag = api(alice).get(paths.file(filled, HELD))["ETag"]

    def slow_body(meta: dict[str, Any]) -> Any:
        place(api(alice), filled, file=HELD)
        yield b"other bytes"

    monkeypatch.setattr(content, "read_body", slow_body)
    problem(put(api(alice), filled, HELD, b"", If_Match=etag), 409, "held")

    assert api(alice).get(paths.content(filled, HELD)).getvalue() == HELD.encode()


def test_deleted_collection_can_be_held_and_restored(alice: User, filled: str, api: Api) -> None:
    api(alice).delete(paths.collection(filled))

    assert place(api(alice), filled, file=HELD).status_code == 201
    assert [hold["file"] for hold in api(alice).get(paths.holds(filled)).json()["results"]] == [HELD]
    assert api(alice).post(paths.restore(filled)).status_code == 200
    problem(api(alice).delete(paths.collection(filled)), 409, "held")


# --- Placing and lifting ---


def test_hold_says_what_and_why_and_is_on_record(alice: User, bob: User, filled: str, api: Api) -> None:
    placed = place(api(alice), filled, file=HELD)

    assert placed.status_code == 201
    hold = placed.json()
    assert placed["Location"] == f"http://testserver{paths.holds(filled)}{hold['id']}/"
    assert api(alice).get(placed["Location"]).json() == hold
    assert hold == hold | {
        "kind": "legal", "file": HELD, "reason": "Smith v. Acme", "ref": "2026-17", "placed_by": "alice",
    }  # fmt: skip
    assert audited("hold.place") == [("hold.place", "alice")]
    assert facts("hold.place") == {"hold": hold["id"], "ref": "2026-17", "reason": "Smith v. Acme"}
    problem(api(bob).get(paths.holds(filled)), 403, "refused")


def test_what_one_hold_leaves_another_keeps(alice: User, filled: str, api: Api) -> None:
    first, second = (place(api(alice), filled, **wish)["Location"] for wish in ({}, {"file": HELD}))

    assert api(alice).delete(first).status_code == 204
    problem(api(alice).delete(paths.file(filled, HELD)), 409, "held")
    assert api(alice).delete(second).status_code == 204

    assert api(alice).delete(paths.file(filled, HELD)).status_code == 204
    assert api(alice).delete(paths.collection(filled)).status_code == 202
    assert audited("hold.lift") == [("hold.lift", "alice")] * 2
    problem(api(alice).delete(first), 404, "not_found")


def test_manager_sees_holds_and_places_and_lifts_none(alice: User, bob: User, filled: str, api: Api) -> None:
    api(alice).post(paths.grants(filled), {"user": "bob", "level": "manager"})
    hold = place(api(alice), filled)

    assert len(api(bob).get(paths.holds(filled)).json()["results"]) == 1
    for answer in (place(api(bob), filled), api(bob).delete(hold["Location"])):
        assert problem(answer, 403, "refused")["detail"] == "Only an admin of the tenant can place and lift legal holds."
    Membership.objects.filter(user=bob).update(roles=["member", "admin"])
    assert api(bob).delete(hold["Location"]).status_code == 204


def test_key_places_a_hold_with_the_scope_for_it(alice: User, filled: str, api: Api) -> None:
    problem(place(api(make_key(alice, "read", "write", "share")), filled), 403, "insufficient_scope")
    assert place(api(make_key(alice, "administer")), filled).status_code == 201


def test_hold_of_an_egress_request_is_not_lifted_by_hand(alice: User, filled: str, api: Api) -> None:
    collection = Collection.objects.get()
    hold = collection.holds.create(kind=Hold.Kind.EGRESS, reason="under review", placed_at=timezone.now())

    problem(api(alice).delete(f"{paths.holds(filled)}{hold.pk}/"), 409, "hold_of_egress")
    assert "under egress hold" in problem(api(alice).delete(paths.file(filled, HELD)), 409, "held")["detail"]


def test_holds_are_paged_newest_first(alice: User, filled: str, api: Api) -> None:
    for number in range(5):
        place(api(alice), filled, ref=str(number))

    page = api(alice).get(f"{paths.holds(filled)}?page_size=3").json()
    rest = api(alice).get(page["next"]).json()

    assert [hold["ref"] for hold in page["results"] + rest["results"]] == ["4", "3", "2", "1", "0"]
    assert rest["next"] is None


def test_hold_that_makes_no_sense_names_its_field(alice: User, filled: str, api: Api, case: Case) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"reason": ""}, "reason"),
        ({"reason": " "}, "reason"),
        ({"reason": "x" * 1001}, "reason"),
        ({"reason": "a\x07b"}, "reason"),
        ({"reason": None}, "reason"),
        ({"ref": "x" * 201}, "ref"),
        ({"file": "no-such.csv"}, "file"),
        ({"file": ""}, "file"),
        ({"file": 5.5}, "file"),
    ]
    for wish, field in cases:
        with case(wish, field):
            answer = place(api(alice), filled, **wish)

            body = answer.json()
            assert (answer.status_code, list(body["errors"])) == (400, [field])
            assert not Hold.objects.exists()


def test_hold_that_is_not_there_is_404(alice: User, filled: str, api: Api, case: Case) -> None:
    for hold_id in ["x", "00000000-0000-0000-0000-000000000009", "%20"]:
        with case(hold_id):
            place(api(alice), filled)
            for method in ("get", "delete"):
                problem(getattr(api(alice), method)(f"{paths.holds(filled)}{hold_id}/"), 404, "not_found")


def test_hold_of_another_collection_is_not_found_in_this_one(alice: User, filled: str, api: Api) -> None:
    other = api(alice).post(paths.COLLECTIONS, {"display_name": "Other"}).json()["id"]
    hold = place(api(alice), other).json()["id"]
    problem(api(alice).delete(f"{paths.holds(filled)}{hold}/"), 404, "not_found")


# --- Behind the services ---


def test_rows_that_are_held_cannot_be_deleted_by_code_that_forgot_to_ask(alice: User, filled: str, api: Api, case: Case) -> None:
    """F-61."""
    models: list[type[StoredFile | Collection]] = [StoredFile, Collection]
    for model in models:
        with case(model):
            place(api(alice), filled, file=HELD)
            with pytest.raises(ProtectedError), transaction.atomic():
                model.objects.all().delete()
            assert StoredFile.objects.count() == 2
