"""F-60: a collection of any size is deleted, and made unreadable, in the same few queries; the rest is done in shards."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from files.models import Collection, StoredFile
from purge import destruction as destroying
from purge import jobs
from purge.models import Destruction, Shard
from tenants.models import User
from tests.services.purging import Api, assert_gone, begin, fill, work_on
from vault import identity
from vault.models import Key


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]
Result = TypeVar("Result")
FEW = 10


@pytest.fixture(params=[600, pytest.param(6_000, marks=pytest.mark.long)], autouse=True)
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many that they are shared out among workers."""
    monkeypatch.setattr(destroying, "SHARDING_THRESHOLD", request.param * 5 // 6)
    return int(request.param)


def grow(collection: Collection, count: int) -> None:
    """To so many files, by rows without objects: as many as somebody else has already erased."""
    (template,) = StoredFile.objects.filter(collection=collection)[:1]
    rows = []
    for number in range(count - StoredFile.objects.filter(collection=collection).count()):
        object_id = uuid4()
        row = StoredFile(uuid=uuid4(), filename=f"{number}", name_key=f"{number}", object_id=object_id)
        row.object_key = collection.object_key(object_id)
        for field in StoredFile._meta.concrete_fields:
            if field.name not in {"id", "uuid", "filename", "name_key", "object_id", "object_key"}:
                setattr(row, field.attname, getattr(template, field.attname))
        rows.append(row)
    StoredFile.objects.bulk_create(rows, batch_size=1000)
    Collection.objects.filter(pk=collection.pk).update(file_count=count, total_length=count * template.length)


def queries(call: Callable[[], Result]) -> tuple[int, Result]:
    with CaptureQueriesContext(connection) as captured:
        result = call()
    return len(captured), result


def test_deletion_asks_no_more_for_many_files_than_for_few(filled: Collection, api: Api, alice: User, many: int) -> None:
    client, counts = api(alice), []
    for size in (FEW, many):
        collection = fill(client, f"{size} files")
        grow(collection, size)
        count, answer = queries(lambda collection=collection: client.delete(f"/api/v1/collections/{collection.slug}/"))  # type: ignore[misc]
        assert (answer.status_code, answer.json()["file_count"]) == (202, size)
        counts.append(count)
    assert counts[0] == counts[1] < 40


def test_key_is_destroyed_at_once_however_many_files_there_are(filled: Collection, api: Api, alice: User, many: int) -> None:
    identity.this_deployment()  # which the first destruction else makes
    counts = []
    for size in (FEW, many):
        collection = fill(api(alice), f"{size} files")
        grow(collection, size)
        count, destruction = queries(lambda collection=collection: begin(collection))  # type: ignore[misc]
        assert Key.objects.get(pk=collection.key_id).wrapped is None
        assert destruction.file_count == size
        counts.append(count)
    assert counts[0] == counts[1] < 40


def test_rows_of_many_files_go_in_transactions_of_their_own_and_it_goes_on_after_each(
    filled: Collection, monkeypatch: pytest.MonkeyPatch, api: Api, alice: User, many: int
) -> None:
    """What a tick does not finish the next one does; meanwhile everybody sees how far it is."""
    monkeypatch.setattr(destroying, "ROWS_PER_TRANSACTION", many // 6)
    grow(filled, many)
    begin(filled)
    seen = set()
    while destroying.run_next_step(now=timezone.now(), seconds=0):
        address = f"/api/v1/purge/destructions/{Destruction.objects.get().pk}/"
        seen.add(api(alice).get(address).json()["progress"]["parts_verified"])
    assert seen >= set(range(1, Shard.objects.count()))
    assert_gone(filled)


def test_deleted_collection_of_many_files_goes_by_ticks(filled: Collection, alice: User, api: Api, many: int) -> None:
    grow(filled, many)
    assert api(alice).delete(f"/api/v1/collections/{filled.slug}/").status_code == 202
    jobs.tick(now=timezone.now() + timedelta(days=2))
    work_on()
    assert_gone(filled)
