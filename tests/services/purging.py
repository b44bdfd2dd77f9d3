"""Collections to be destroyed: filled, made due, brought to their end, and looked for afterwards."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from django.utils import timezone
from rest_framework.test import APIClient

from files.models import Collection, DownloadLink, Grant, PendingDeletion, StoredFile, Upload
from purge import destruction as destroying
from purge.models import Destruction
from tenants import audit
from tenants.models import AuditEvent, User
from tests.invariants import entries
from vault.models import Key
from vault.stores import EraseFailure, StoreEntry
from vault.stores.local import LocalStore


Api = Callable[[User | None], APIClient]
NAMES = ["a.csv", "b.csv", "c.csv"]


def fill(client: APIClient, display_name: str = "November", **wish: str) -> Collection:
    """Three files of 500 bytes, a grant to bob on the first, and a link to it."""
    made = client.post("/api/v1/collections/", {"display_name": display_name, **wish})
    slug = made.json()["id"]
    for name in NAMES:
        put = client.put(f"/api/v1/collections/{slug}/content/{name}", name.encode() * 100, content_type="text/csv")
        assert put.status_code == 201
    grant = client.post(f"/api/v1/collections/{slug}/files/{NAMES[0]}/grants/", {"user": "bob", "level": "viewer"})
    assert grant.status_code == 201
    assert client.post(f"/api/v1/collections/{slug}/files/{NAMES[0]}/download/").status_code == 201
    return Collection.objects.get(slug=slug)


def expire(collection: Collection) -> None:
    Collection.objects.filter(pk=collection.pk).update(purge_at=timezone.now() - timedelta(minutes=1))


def begin(collection: Collection) -> Destruction:
    expire(collection)
    destruction = destroying.start_destruction(collection, by=None, now=timezone.now())
    assert destruction
    return destruction


def end(collection: Collection) -> Destruction:
    """Begins it, and brings it as far as it goes."""
    begin(collection)
    work_on()
    return of(collection)


def work_on(*, now: datetime | None = None) -> None:
    while destroying.run_next_step(now=now or timezone.now(), seconds=60):
        pass


def work_later() -> None:
    """When whoever had a lease and showed no sign of life is taken for dead."""
    work_on(now=timezone.now() + destroying.LEASE_TIMEOUT + timedelta(minutes=1))


def of(collection: Collection) -> Destruction:
    return Destruction.objects.get(collection_uuid=collection.uuid)


def under(collection: Collection) -> list[StoreEntry]:
    """What is left of it in any bucket."""
    return [entry for _, entry in entries() if entry.key.startswith(collection.prefix)]


def assert_gone(collection: Collection) -> Destruction:
    """INV-07, of the only collection that had files."""
    for model in (StoredFile, Grant, DownloadLink, Upload, PendingDeletion):
        assert not model._default_manager.exists()
    return assert_destroyed(collection)


def assert_destroyed(collection: Collection) -> Destruction:
    """INV-07, whoever else has files: nothing in any bucket, no row, no key, one certificate, and one event of each kind."""
    assert under(collection) == []
    assert not Collection.objects.filter(uuid=collection.uuid).exists()
    assert not StoredFile.objects.filter(object_key__startswith=collection.prefix).exists()
    assert not Key.objects.filter(pk=collection.key_id).exists()
    actions = AuditEvent.objects.filter(target_id=str(collection.uuid)).values_list("action", flat=True)
    assert [list(actions).count(action) for action in ("collection.shred", "collection.purge")] == [1, 1]
    assert not list(audit.verify())
    destruction = of(collection)
    assert (destruction.status, destruction.collection) == ("done", None)
    return destruction


def assert_waits(collection: Collection) -> None:
    """It goes on, nobody reads it, and nobody says that it is gone."""
    destruction = of(collection)
    assert (destruction.status, destruction.certificate, destruction.blocked_by) == ("running", "", "")
    assert Collection.objects.get(pk=collection.pk).status == Collection.Status.PURGING
    assert Key.objects.get(pk=collection.key_id).wrapped is None
    assert not AuditEvent.objects.filter(action="collection.purge", target_id=str(collection.uuid)).exists()


class Stubborn(LocalStore):
    """A store that refuses, as Object Lock and a missing permission do."""

    locked = ""  # the key of an object that will not go

    def erase(self, entries: Iterable[StoreEntry]) -> list[EraseFailure]:
        entries = list(entries)
        kept = [entry for entry in entries if entry.key == self.locked]
        return super().erase([entry for entry in entries if entry not in kept]) + [
            EraseFailure(entry, "AccessDenied: Access Denied") for entry in kept
        ]
