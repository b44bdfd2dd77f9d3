"""One worker a row (D-3, F-31, F-32). On `PendingDeletion`, which is a row like any that is leased."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection

from files.models import PendingDeletion
from tenants.work.leases import LeaseLost, claim
from tests.races import race


pytestmark = pytest.mark.both_databases
PATIENCE = timedelta(minutes=5)


@pytest.fixture
def erasure(db: None, now: datetime) -> PendingDeletion:
    return make_erasure("a", now)


def make_erasure(key: str, now: datetime) -> PendingDeletion:
    return PendingDeletion.objects.create(store="vault", object_key=key, due_at=now, requested_at=now)


def take(now: datetime, limit: int = 10) -> list[PendingDeletion]:
    return claim(PendingDeletion.objects.order_by("object_key"), now=now, limit=limit, timeout=PATIENCE)


def test_claim_takes_free_rows_up_to_the_limit_in_the_order_of_the_queryset(erasure: PendingDeletion, now: datetime) -> None:
    make_erasure("c", now)
    make_erasure("b", now)
    rows = take(now, limit=2)
    assert [row.object_key for row in rows] == ["a", "b"]
    stored = PendingDeletion.objects.get(object_key="a")
    assert (stored.lease_owner, stored.lease_at, stored.attempts) == (rows[0].lease_owner, now, 1)
    assert len({row.lease_owner for row in rows}) == 2
    assert [row.object_key for row in take(now)] == ["c"]
    assert take(now) == []


def test_claim_takes_only_rows_of_the_queryset(erasure: PendingDeletion, now: datetime) -> None:
    assert claim(PendingDeletion.objects.filter(due_at__gt=now), now=now, limit=10) == []


def test_claim_takes_over_from_a_worker_that_shows_no_sign_of_life(erasure: PendingDeletion, now: datetime) -> None:
    (first,) = take(now)
    assert take(now + PATIENCE) == []
    later = now + PATIENCE + timedelta(seconds=1)
    (second,) = take(later)
    assert second.attempts == 2
    assert second.lease_owner != first.lease_owner
    assert first.fenced().update(store="staging") == 0
    assert second.fenced().update(store="staging") == 1
    with pytest.raises(LeaseLost):
        first.heartbeat(later)
    with pytest.raises(LeaseLost):
        first.release()
    assert PendingDeletion.objects.get().lease_owner == second.lease_owner


def test_claim_leaves_a_worker_with_a_heartbeat_alone(erasure: PendingDeletion, now: datetime) -> None:
    (row,) = take(now)
    row.heartbeat(now + PATIENCE)
    assert take(now + 2 * PATIENCE) == []
    assert len(take(now + 2 * PATIENCE + timedelta(seconds=1))) == 1


def test_release_gives_the_row_back_at_once(erasure: PendingDeletion, now: datetime) -> None:
    (row,) = take(now)
    row.release()
    with pytest.raises(LeaseLost):
        row.release()
    (again,) = take(now)
    assert again.attempts == 2


def test_heartbeat_on_a_row_that_is_gone_is_a_lost_lease(erasure: PendingDeletion, now: datetime) -> None:
    (row,) = take(now)
    PendingDeletion.objects.all().delete()
    with pytest.raises(LeaseLost):
        row.heartbeat(now)


@pytest.mark.parametrize(
    ("before", "meanwhile"),
    [
        ("stale", "claim"),
        ("stale", "claim and release"),
        ("stale", "heartbeat"),
        ("free", "claim"),
        ("free", "claim and release"),
    ],
)
def test_claim_of_a_row_that_moved_since_it_was_read_leaves_it(
    erasure: PendingDeletion, now: datetime, before: str, meanwhile: str
) -> None:
    """The other worker comes between the reading of the row and its UPDATE."""
    slow = take(now)[0] if before == "stale" else None
    later = now + 2 * PATIENCE
    others: list[PendingDeletion | None] = []

    def interrupt(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if sql.startswith("UPDATE") and not others:
            others.append(slow)
            if slow is not None and meanwhile == "heartbeat":
                slow.heartbeat(later)
            else:
                (other,) = take(later)
                if meanwhile == "claim, release":
                    other.release()
        return execute(sql, *arguments)

    with connection.execute_wrapper(interrupt):
        assert take(later) == []
    assert others == [slow]


@pytest.mark.django_db(transaction=True)
def test_claim_by_many_workers_at_once_gives_each_row_to_one(now: datetime) -> None:
    for number in range(20):
        make_erasure(f"{number:02}", now)
    taken = [row.object_key for rows in race([partial(take, now, limit=20)] * 6) for row in rows]
    assert sorted(taken) == [f"{number:02}" for number in range(20)]
    assert set(PendingDeletion.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.django_db(transaction=True)
def test_claim_of_stale_rows_by_many_workers_at_once_gives_each_row_to_one(now: datetime) -> None:
    for number in range(20):
        make_erasure(f"{number:02}", now)
    assert len(take(now, limit=20)) == 20
    later = now + 2 * PATIENCE
    taken = [row.object_key for rows in race([partial(take, later, limit=20)] * 6) for row in rows]
    assert sorted(taken) == [f"{number:02}" for number in range(20)]
    assert set(PendingDeletion.objects.values_list("attempts", flat=True)) == {2}
