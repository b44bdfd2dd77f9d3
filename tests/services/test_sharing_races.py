"""Grants when everybody changes them at once: one outcome, and none that outlives its reason (INV-14, INV-16)."""

from collections.abc import Callable
from datetime import datetime

import pytest
from rest_framework.exceptions import APIException
from rest_framework.test import APIClient

from files import grants
from files.models import Collection, Grant, Level
from tenants import services
from tenants.errors import Invalid, NotFound
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.races import attempts, race


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]
Api = Callable[[User | None], APIClient]


@pytest.fixture
def november(make_collection: Callable[[User, str], Collection], alice: User) -> Collection:
    Tenant.objects.update(new_collections="private")
    return make_collection(alice, "November")


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except APIException as error:
        return type(error).__name__
    return "done"


def test_grants_to_one_person_at_once_are_one_grant(november: Collection, alice: User, bob: User, now: datetime) -> None:
    levels = [Level.VIEWER, Level.EDITOR, Level.MANAGER] * 3

    def give(level: Level) -> tuple[Grant, bool]:
        return grants.grant_access(november, username="bob", level=level, by=alice, now=now)

    given = race([lambda level=level: give(level) for level in levels])  # type: ignore[misc]

    assert sum(is_new for _, is_new in given) == 1
    assert Grant.objects.filter(user=bob).count() == 1
    events = AuditEvent.objects.filter(action__startswith="grant.").order_by("seq")
    assert [event.action for event in events][:1] == ["grant.create"]
    assert Level(Grant.objects.get(user=bob).level).label in events.last().body  # type: ignore[union-attr]


def test_revokes_of_one_grant_at_once_are_one(november: Collection, alice: User, bob: User, now: datetime) -> None:
    grant, _ = grants.grant_access(november, username="bob", level=Level.VIEWER, by=alice, now=now)

    outcomes = race([lambda: outcome(lambda: grants.revoke_grant(grant, by=alice, now=now))] * 8)

    assert sorted(outcomes) == ["NotFound"] * 7 + ["done"]
    assert AuditEvent.objects.filter(action="grant.revoke").count() == 1


@attempts(10)
def test_a_grant_against_the_end_of_the_membership_never_outlives_it(
    november: Collection, alice: User, bob: User, now: datetime, attempt: int
) -> None:
    """Even with external sharing: who was given access as a member has none when they are no member."""
    Tenant.objects.update(allow_external_sharing=True)
    membership = Membership.objects.get(user=bob)

    def give() -> str:
        try:
            grant, _ = grants.grant_access(november, username="bob", level=Level.VIEWER, by=alice, now=now)
        except (Invalid, NotFound) as error:
            return type(error).__name__
        return "external" if grant.is_external else "member"

    given, removed = race([give, lambda: outcome(lambda: services.remove_member(membership=membership, by=alice, now=now))])

    assert removed == "done"
    assert given in {"member", "external"}
    # Given before the end, it went with the membership. Given after it, it was given to somebody of outside, and says so.
    assert Grant.objects.filter(user=bob).exists() == (given == "external")


def test_a_grant_against_the_delete_of_the_collection_leaves_no_open_door(
    november: Collection, alice: User, bob: User, now: datetime, api: Api
) -> None:
    outcomes = race(
        [
            lambda: outcome(lambda: grants.grant_access(november, username="bob", level=Level.VIEWER, by=alice, now=now)),
            lambda: str(api(alice).delete(f"/api/v1/collections/{november.slug}/").status_code),
        ]
    )
    assert outcomes in (["done", "202"], ["NotOpen", "202"])
    assert api(bob).get(f"/api/v1/collections/{november.slug}/").status_code == 404
