"""A purge that is refused, kept waiting, killed, doubled and raced: it ends the same, and is never called done before.

INV-08; F-17, F-18, F-26, F-31, F-33.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count

import pytest
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings
from rest_framework.exceptions import APIException

from files import services
from files.models import Collection
from purge import jobs
from purge.destruction import retry_blocked, start_destruction
from purge.models import Destruction
from tenants.models import AuditEvent, User
from tests.faults.fault_injection import FAULT_KINDS, INJECTOR
from tests.races import race
from tests.services.purging import Api, Stubborn, assert_gone, assert_waits, end, expire, fill, under, work_later, work_on
from vault.models import Key
from vault.stores import StoreEntry, StoreUnavailable
from vault.stores.local import LocalStore


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]


# --- What is in its way ---


def test_object_that_will_not_go_blocks_with_its_reason(
    filled: Collection, stubborn: str, monkeypatch: pytest.MonkeyPatch, alice: User
) -> None:
    """F-18: never called purged. All else of it goes, and it goes on when the reason is gone."""
    destruction = end(filled)

    assert (destruction.status, destruction.blocked_by, destruction.certificate) == ("blocked", "AccessDenied: Access Denied", "")
    assert Collection.objects.get().status == "blocked"
    assert [entry.key for entry in under(filled)] == [stubborn]
    assert Key.objects.get(pk=filled.key_id).wrapped is None
    work_on()
    assert Destruction.objects.get().status == "blocked"

    jobs.purge_expired(now=timezone.now())  # tomorrow
    work_on()
    assert Destruction.objects.get().status == "blocked"
    assert AuditEvent.objects.filter(action="collection.purge_blocked").count() == 2

    monkeypatch.setattr(Stubborn, "locked", "")
    assert retry_blocked(destruction, by=alice, now=timezone.now())
    assert not retry_blocked(destruction, by=alice, now=timezone.now())
    work_on()
    assert_gone(filled)


def test_store_that_is_away_is_waited_for(filled: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_away(*_: object) -> Iterator[StoreEntry]:
        raise StoreUnavailable("ListObjectVersions: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "entries", is_away)
        end(filled)
    assert_waits(filled)

    work_later()
    assert_gone(filled)


# --- Killed, doubled and raced ---


@pytest.fixture
def breaking(filled: Collection, settings: Settings) -> None:
    settings.STORAGES = settings.STORAGES | {
        alias: settings.STORAGES[alias] | {"BACKEND": "tests.faults.fault_injection.FaultyLocalStore"}
        for alias in settings.BUCKETS
    }


def break_off(collection: Collection, kind: str, point: int) -> bool:
    """And take it up again: it is never readable again, and ends the same. Whether there were fewer points than that."""
    expire(collection)
    with INJECTOR.injecting(point, kind), suppress(APIException, DatabaseError):
        start_destruction(collection, by=None, now=timezone.now())
        work_on()
    is_over = not INJECTOR.has_fired
    INJECTOR.reset()

    start_destruction(collection, by=None, now=timezone.now())
    work_later()
    assert_gone(collection)
    return is_over


POINTS = [  # of the 100 that there are
    ("killed", 5), ("response-lost", 18), ("killed-after", 28), ("refused", 30), ("response-lost", 34), ("killed", 39),
    ("killed-after", 49), ("refused", 55), ("killed", 67), ("response-lost", 69), ("refused", 82), ("killed-after", 86),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "point"), POINTS)
@pytest.mark.usefixtures("breaking")
def test_broken_off_it_is_taken_up_again(filled: Collection, kind: str, point: int) -> None:
    """F-26, at a query or a request to the store. All points are tried with --long, below."""
    assert not break_off(filled, kind, point)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FAULT_KINDS)
@pytest.mark.usefixtures("breaking")
def test_broken_off_at_any_point_it_is_taken_up_again(filled: Collection, kind: str, api: Api, alice: User) -> None:
    """F-26, at every query and every request to the store."""
    is_over = break_off(filled, kind, 1)
    for point in count(2):
        if is_over:
            break
        is_over = break_off(fill(api(alice), f"Number {point}"), kind, point)
    assert point > 30


def test_many_at_once_do_it_once(filled: Collection) -> None:
    """F-31, F-33."""
    expire(filled)

    begun = race([lambda: start_destruction(filled, by=None, now=timezone.now())] * 6)
    race([work_on] * 4)
    work_on()

    assert sum(each is not None for each in begun) == 1
    assert_gone(filled)


def test_restore_against_the_end_of_the_grace(filled: Collection, alice: User, settings: Settings) -> None:
    services.delete_collection(filled, by=alice, now=timezone.now())
    later = timezone.now() + timedelta(seconds=settings.DELETE_GRACE + 1)

    def restore() -> bool:
        try:
            services.restore_collection(filled, by=alice, now=later)
        except APIException:
            return False
        return True

    is_restored, destruction = race([restore, lambda: start_destruction(filled, by=None, now=later)])

    assert is_restored == (destruction is None) == (Collection.objects.get().status == "open")
    assert (Key.objects.get(pk=filled.key_id).wrapped is None) == (destruction is not None)
