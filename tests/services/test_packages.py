"""What an app above `files` builds packages on: collections that nobody sees, written by a worker, fetched by its rules."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as current
from django.contrib import admin
from django.test import RequestFactory
from pytest_django import Settings
from rest_framework.test import APIClient

from files import access, downloads, errors, links, quota, uploads
from files.http.responses import ByteRequest, ByteResponse
from files.http.streaming import SLOTS, Slots
from files.models import Collection, DownloadLink, StoredFile, Upload
from purge import expiry_warnings, jobs, limits, rules
from purge.models import Destruction
from tenants.errors import NotFound
from tenants.models import AuditEvent, Mail, Tenant, User
from tests import invariants
from tests.api import paths
from vault import content, keys
from vault.models import Cipher
from vault.stores import get_store


Api = Callable[[User | None], APIClient]
CONTENT = random.Random(1).randbytes(300_000)  # three segments
DAY = timedelta(days=1)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets")]


class Package(uploads.UploadSession):
    slots = Slots(1)
    limit = None

    def create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        file = self.draft
        assert Upload.objects.filter(pk=self.upload.pk).delete()[0] == 1
        file.created_at = file.updated_at = now
        file.save(force_insert=True)
        Collection.objects.filter(pk=file.collection_id).update(file_count=1, total_length=file.length)
        return file


@pytest.fixture
def release(acme: Tenant, now: datetime) -> Collection:
    """It has been there for a while, and ends tomorrow."""
    collection = Collection(
        tenant=acme,
        slug="november-7kq3",
        display_name="November",
        kind=Collection.Kind.RELEASE,
        cipher=Cipher.AES_GCM,
        purge_at=now + DAY,
        created_at=now - 100 * DAY,
    )
    collection.key = keys.create_data_key(collection, now=now)
    collection.save()
    return collection


@pytest.fixture
def package(release: Collection, now: datetime) -> StoredFile:
    with receive(release, now) as incoming:
        incoming.write(CONTENT)
        return incoming.commit(by=None, now=now)


def receive(release: Collection, now: datetime) -> Package:
    draft = StoredFile(
        collection=release,
        filename="package.zip",
        name_key="package.zip",
        content_type="application/zip",
        cipher=release.cipher,
        segment_size=current.FILES_SEGMENT_SIZE,
        object_id=uuid4(),
        store="release",
    )
    draft.object_key = release.object_key(draft.object_id)
    return Package.start(draft, by=None, size=None, now=now)


# --- Written by a worker ---


def test_package_may_be_larger_than_an_upload_and_takes_none_of_their_slots(
    release: Collection, now: datetime, settings: Settings
) -> None:
    settings.FILES_MAX_UPLOAD_BYTES = 10
    with ExitStack() as taken:
        for _ in range(current.FILES_MAX_TRANSFERS):
            SLOTS.take()
            taken.callback(SLOTS.release)
        with receive(release, now) as incoming:
            assert Upload.objects.get().started_by is None
            incoming.write(CONTENT)
            file = incoming.commit(by=None, now=now)

    assert file.open().read() == CONTENT
    assert [alias for alias, entry in invariants.entries() if entry.key == file.object_key] == ["release"]
    invariants.check_all()


@pytest.mark.both_databases
def test_package_that_was_given_up_leaves_nothing_and_another_can_be_written(release: Collection, now: datetime) -> None:
    for _ in range(2):
        with receive(release, now) as incoming:
            incoming.write(CONTENT)

    assert not Upload.objects.exists()
    assert not [entry for _, entry in invariants.entries() if entry.key.startswith(release.prefix)]


# --- Read where it was copied to ---


@pytest.fixture
def copied(package: StoredFile) -> str:
    get_store("staging").copy(package.object_key, "copy/1", source=get_store(package.store))
    return "copy/1"


def read_copy(package: StoredFile, key: str, told: list[str], *, etag: str) -> bytes:
    pieces = downloads.read_verified(
        partial(content.copied_content, package, store="staging", key=key, etag=etag),
        0,
        package.length,
        sha256=package.sha256,
        missing=lambda error: told.append("missing"),
        corrupt=lambda error: told.append("corrupt"),
        etag_changed=told.append,
    )
    return b"".join(pieces)


def test_copy_is_read_with_the_key_of_the_file(package: StoredFile, copied: str) -> None:
    told: list[str] = []
    etag = get_store("staging").stat(copied).etag

    assert read_copy(package, copied, told, etag=etag) == CONTENT
    assert told == []
    assert read_copy(package, copied, told, etag="another") == CONTENT
    assert told == [etag]


@pytest.mark.parametrize("what", ["missing", "corrupt"])
def test_copy_that_is_missing_or_corrupt_says_nothing_of_the_file(package: StoredFile, copied: str, what: str) -> None:
    """F-07, F-10."""
    store, told = get_store("staging"), list[str]()
    store.erase(list(store.entries(copied)))
    if what == "corrupt":
        with_other_bytes = store.create(copied, size=package.object_size)
        with_other_bytes.write(bytes(package.object_size))
        with_other_bytes.commit()
    etag = store.stat(copied).etag if what == "corrupt" else "gone"

    with pytest.raises(errors.ObjectMissing if what == "missing" else errors.ObjectCorrupt):
        read_copy(package, copied, told, etag=etag)

    assert told == [what]
    assert StoredFile.objects.get(pk=package.pk).status == StoredFile.Status.READY
    assert not AuditEvent.objects.filter(action__startswith="file.").exists()


# --- Fetched by the rules of another app ---


def open_for_bob(link: DownloadLink, *, by: User, byte_request: ByteRequest, now: datetime) -> ByteResponse:
    file = StoredFile.objects.select_related("collection__tenant", "collection__key").get(collection=link.collection)
    if by.username != "bob":
        raise NotFound
    source = downloads.file_source(file, by=by, still_allowed=lambda: True, now=now)
    start = links.claim_or_resume(link, file, by=by, byte_request=byte_request, now=now)
    budget = links.Budget(DownloadLink.objects.filter(pk=link.pk))
    return downloads.open_source(source, byte_request=byte_request, disposition=link.disposition, start=start, meter=budget)


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_handlers", {})
    links.register(Collection.Kind.RELEASE, open_for_bob)


def fetch(client: APIClient, token: str, **headers: str) -> tuple[int, bytes]:
    response: Any = client.get(f"/downloads/{token}", headers=headers)
    return response.status_code, b"".join(response.streaming_content) if response.streaming else b""


@pytest.mark.both_databases
@pytest.mark.usefixtures("opener")
def test_link_to_a_package_opens_once_by_the_registered_rules(
    package: StoredFile, alice: User, bob: User, api: Api, now: datetime
) -> None:
    """INV-09, F-51: alice is the tenant's admin, and that counts for nothing here."""
    of_bob, of_alice = (
        links.mint_unchecked(collection=package.collection, file=package, by=who, now=now) for who in (bob, alice)
    )

    assert fetch(api(None), of_bob) == (200, CONTENT)
    assert fetch(api(None), of_bob) == (404, b"")
    assert fetch(api(None), of_alice) == (404, b"")
    assert list(AuditEvent.objects.filter(action="link.claim").values_list("actor", flat=True)) == ["bob"]


@pytest.mark.both_databases
@pytest.mark.usefixtures("opener")
def test_fetched_package_is_resumed_within_its_budget(package: StoredFile, bob: User, api: Api, now: datetime) -> None:
    token = links.mint_unchecked(collection=package.collection, file=package, by=bob, now=now)
    assert fetch(api(None), token) == (200, CONTENT)

    assert fetch(api(None), token, Range="bytes=299000-") == (206, CONTENT[299_000:])
    assert DownloadLink.objects.get().bytes_left == links.RESUME_ALLOWANCE - 1000


def test_link_to_a_package_that_no_app_answers_for_is_dead(package: StoredFile, alice: User, api: Api, now: datetime) -> None:
    token = links.mint_unchecked(collection=package.collection, file=package, by=alice, now=now)

    assert fetch(api(None), token) == (404, b"")


# --- Unseen ---


def test_nobody_finds_a_package_among_the_collections(package: StoredFile, alice: User, bob: User, api: Api) -> None:
    slug = package.collection.slug
    for who in (alice, bob):
        client = api(who)
        assert client.get(paths.COLLECTIONS).json()["results"] == []
        for path in (paths.collection(slug), paths.files(slug), paths.content(slug, "package.zip"), paths.archive(slug)):
            assert client.get(path).status_code == 404
        assert client.put(paths.content(slug, "package.zip"), b"1", content_type="text/csv").status_code == 404
        assert client.delete(paths.collection(slug)).status_code == 404
        assert not access.can_read(who, package.collection_id)


@pytest.mark.both_databases
def test_package_takes_no_name_and_no_quota(package: StoredFile, acme: Tenant, alice: User, api: Api) -> None:
    Tenant.objects.filter(pk=acme.pk).update(quota_files=1, quota_bytes=10)

    for status in (201, 409):
        made = api(alice).post(paths.COLLECTIONS, {"display_name": "November"})
        assert made.status_code == status
        if status == 201:
            put = api(alice).put(paths.content(made.json()["id"], "a.csv"), b"1,2,3", content_type="text/csv")
            assert put.status_code == 201

    usage = api(alice).get("/api/v1/tenants/acme/usage/").json()
    assert (usage["collections"], usage["file_count"], usage["total_length"], usage["uploads"]) == (1, 1, 5, 0)


@pytest.mark.both_databases
def test_name_is_free_where_the_id_of_a_package_is_drawn(
    package: StoredFile, alice: User, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter("7kq32222")
    monkeypatch.setattr("secrets.choice", lambda _: next(drawn))

    assert api(alice).post(paths.COLLECTIONS, {"display_name": "November"}).json()["id"] == "november-2222"


@pytest.mark.both_databases
def test_package_that_is_being_written_is_no_upload_of_the_tenant(
    release: Collection, alice: User, api: Api, now: datetime
) -> None:
    with receive(release, now):
        assert api(alice).get("/api/v1/tenants/acme/usage/").json()["uploads"] == 0


def test_admin_shows_no_package_among_the_collections(package: StoredFile, root: User) -> None:
    request = RequestFactory().get("/")
    request.user = root
    assert not admin.site.get_model_admin(Collection).get_queryset(request).exists()


@pytest.mark.both_databases
def test_counts_of_a_package_are_mended_too(package: StoredFile, now: datetime) -> None:
    """F-70: its certificate will say them."""
    assert quota.recount(now=now) == 0
    Collection.objects.update(file_count=7)
    assert quota.recount(now=now) == 1
    invariants.check_counts()


# --- Its end ---


def test_nobody_is_warned_of_the_end_of_a_package(package: StoredFile, alice: User, now: datetime) -> None:
    StoredFile.objects.update(keep_until=now + DAY / 2)
    expiry_warnings.announce(now=now)
    assert not Mail.objects.exists()

    Collection.objects.update(kind=Collection.Kind.FILES)
    expiry_warnings.announce(now=now)
    assert Mail.objects.count() == 2


def test_package_that_nobody_fetched_is_not_unused(package: StoredFile, now: datetime, settings: Settings) -> None:
    settings.UNUSED_FILE_DAYS = 30
    StoredFile.objects.update(created_at=now - 90 * DAY)
    assert not rules.NeverUsed().due(now).exists()

    Collection.objects.update(kind=Collection.Kind.FILES)
    assert rules.NeverUsed().due(now).exists()


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("kind", "seconds", "ends"), [("release", -1, False), ("release", 0, True), ("release", 60, True), ("files", 60, False)]
)
def test_package_goes_in_the_tick_behind_the_end_of_its_window(
    package: StoredFile, kind: str, seconds: int, now: datetime, *, ends: bool
) -> None:
    """INV-07; a collection waits for the daily run."""
    Collection.objects.update(kind=kind, purge_at=now - timedelta(seconds=seconds))

    jobs.tick(now=now)

    assert Destruction.objects.exists() == ends
    for _ in range(20):
        jobs.tick(now=now)
    assert bool([entry for _, entry in invariants.entries() if entry.key == package.object_key]) != ends
    assert Collection.objects.exists() != ends
    assert list(Destruction.objects.values_list("reason", "status")) == ([("ended", "done")] if ends else [])


@pytest.mark.both_databases
@pytest.mark.parametrize(("kind", "goes"), [("release", True), ("files", False)])
def test_package_neither_waits_for_the_limit_of_a_day_nor_counts(
    package: StoredFile, kind: str, now: datetime, settings: Settings, *, goes: bool
) -> None:
    settings.PURGE_DAILY_LIMIT = 0
    Collection.objects.update(kind=kind, purge_at=now - timedelta(seconds=60))
    jobs.purge_expired(now=now)
    assert Destruction.objects.exists() == goes
    settings.PURGE_DAILY_LIMIT = 1
    assert limits.remaining_collections(now) == 1
