"""A hold against what it would keep: whoever is first decides, and nothing that is held is gone."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from rest_framework.exceptions import APIException

from files import holds, services
from files.models import Collection, Hold, StoredFile
from tenants.models import User
from tests.races import attempts, race


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except APIException as error:
        return type(error).__name__
    return "done"


@attempts(6)
def test_hold_against_the_delete_of_its_file(
    make_collection: Callable[[User, str], Collection], api: Any, alice: User, now: datetime, attempt: int
) -> None:
    november = make_collection(alice, "November")
    api(alice).put(f"/api/v1/collections/{november.slug}/content/a.csv", b"a,b", content_type="text/csv")
    file = StoredFile.objects.get()

    placed, deleted = race(
        [
            lambda: outcome(lambda: holds.place(november, filename="a.csv", ref="", reason="a suit", by=alice, now=now)),
            lambda: outcome(lambda: services.delete_file(file, by=alice, now=now)),
        ]
    )

    assert (placed, deleted) in {("done", "Held"), ("Invalid", "done")}
    assert Hold.objects.exists() == StoredFile.objects.exists() == (placed == "done")


@attempts(6)
def test_hold_against_the_delete_of_its_collection(
    make_collection: Callable[[User, str], Collection], alice: User, now: datetime, attempt: int
) -> None:
    november = make_collection(alice, "November")

    placed, deleted = race(
        [
            lambda: outcome(lambda: holds.place(november, filename=None, ref="", reason="a suit", by=alice, now=now)),
            lambda: outcome(lambda: services.delete_collection(november, by=alice, now=now)),
        ]
    )

    assert placed == "done"  # what is deleted can be held until it is destroyed
    assert (deleted, Collection.objects.get().status) in {("done", "deleted"), ("Held", "open")}


def test_one_hold_is_lifted_once(make_collection: Callable[[User, str], Collection], alice: User, now: datetime) -> None:
    hold = holds.place(make_collection(alice, "November"), filename=None, ref="", reason="a suit", by=alice, now=now)

    outcomes = race([lambda: outcome(lambda: holds.lift(hold, by=alice, now=now))] * 6)

    assert sorted(outcomes) == ["NotFound"] * 5 + ["done"]
