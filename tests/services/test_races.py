"""Contenders at once, each with a thread and a connection of its own, on SQLite and on PostgreSQL: one consistent outcome."""

import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.test.utils import override_settings
from rest_framework.test import APIClient

from files import cleanup, errors, links, uploads
from files.http.streaming import TransferEnded
from files.models import Collection, DownloadLink, PendingDeletion, StoredFile, Upload
from tenants.errors import NotFound
from tenants.models import AuditEvent, Membership, Tenant, User
from tests import invariants
from tests.api import paths
from tests.needs import mark_dependents
from tests.races import race
from tests.services import worlds
from tests.services.keyrings import RETIRED, ROTATED
from tests.worlds import starts_from
from vault import keys
from vault.models import Key


Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
MIB = 1024 * 1024
CONTENT = random.Random(1).randbytes(300_000)
DEAD_AFTER = timedelta(seconds=Upload.STALLED_AFTER_SECONDS)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]


REPEATED = pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])
MANY = pytest.mark.parametrize("many", [12, pytest.param(50, marks=pytest.mark.long)])


@pytest.fixture
@mark_dependents(starts_from(worlds.empty_november))
def november(own_buckets: Path, built: int) -> Collection:
    return Collection.objects.get(pk=built)


def put(client: APIClient, collection: Collection, filename: str, content: bytes = CONTENT, **headers: str) -> int:
    path = paths.content(collection.slug, filename)
    return int(client.put(path, content, content_type="application/octet-stream", headers=headers).status_code)


def post_form(client: APIClient, collection: Collection, filename: str) -> int:
    lines = ["--cut", f'Content-Disposition: form-data; name="file"; filename="{filename}"', "", "of a form", "--cut--", ""]
    body: Any = "\r\n".join(lines).encode()
    path = paths.files(collection.slug)
    return int(client.generic("POST", path, body, content_type="multipart/form-data; boundary=cut").status_code)


def received(client: APIClient, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of a GET; what came of it if it broke."""
    response: Any = client.get(path, headers=headers)
    if not response.streaming:
        return response.status_code, response.content
    body = bytearray()
    try:
        for piece in response.streaming_content:
            body += piece
    except TransferEnded:
        pass
    finally:
        response.close()
    return response.status_code, bytes(body)


def upload(client: APIClient, collection: Collection, filename: str, content: bytes = CONTENT) -> StoredFile:
    assert put(client, collection, filename, content) == 201
    return StoredFile.objects.get(filename=filename, collection=collection)


# --- One-off links ---


@MANY
def test_link_fetched_by_many_at_once_is_one_200_and_otherwise_the_same_404(
    api: Api, alice: User, november: Collection, many: int
) -> None:
    """INV-09, F-51."""
    upload(api(alice), november, "a.bin")
    link = api(alice).post(paths.download(november.slug, "a.bin")).json()["url"]

    answers = race([partial(received, api(None), link)] * many)

    assert Counter(status for status, _ in answers) == {200: 1, 404: many - 1}
    assert [body for status, body in answers if status == 200] == [CONTENT]
    assert len({body for status, body in answers if status == 404}) == 1
    assert AuditEvent.objects.filter(action="link.claim").count() == 1
    invariants.check_all()


@MANY
def test_archive_link_fetched_by_many_at_once_is_one_200(api: Api, alice: User, november: Collection, many: int) -> None:
    upload(api(alice), november, "a.bin")
    link = api(alice).post(paths.archive_link(november.slug)).json()["url"]

    answers = race([partial(received, api(None), link)] * many)

    assert Counter(status for status, _ in answers) == {200: 1, 404: many - 1}
    invariants.check_all()


def test_parallel_resumes_of_a_link_cannot_overdraw_its_budget(api: Api, alice: User, november: Collection) -> None:
    content = random.Random(2).randbytes(4 * MIB)
    upload(api(alice), november, "a.bin", content)
    link = api(alice).post(paths.download(november.slug, "a.bin")).json()["url"]
    assert received(api(None), link) == (200, content)

    answers = race([partial(received, api(None), link, range="bytes=1-")] * 10)

    assert {status for status, _ in answers} <= {206, 404}  # whoever comes when the others have taken all of it
    bodies = [body for status, body in answers if status == 206]
    assert all(content[1:].startswith(body) for body in bodies)
    assert any(len(body) == len(content) - 1 for body in bodies)
    assert sum(map(len, bodies)) <= links.RESUME_ALLOWANCE  # 40 MiB do not fit
    fetched = len(content) + sum(map(len, bodies))
    assert fetched + DownloadLink.objects.get().bytes_left == len(content) + links.RESUME_ALLOWANCE
    invariants.check_all()


# --- One name ---


def test_uploads_of_one_name_at_once_are_one_201_and_otherwise_conflicts(api: Api, alice: User, november: Collection) -> None:
    """F-58: case and Unicode twins are one name, by PUT and by form."""
    name = "Bericht-Ä.txt"
    twins = [name, name.upper(), name.lower(), unicodedata.normalize("NFD", name)]
    puts = [partial(put, api(alice), november, twins[number % 4]) for number in range(15)]
    forms = [partial(post_form, api(alice), november, twins[number % 4]) for number in range(5)]

    statuses = Counter(race(puts + forms))

    assert statuses[201] == 1
    assert statuses.keys() <= {201, 409, 428}
    assert len(invariants.entries()) == 1
    assert AuditEvent.objects.filter(action="file.create").count() == 1
    assert not Upload.objects.exists()
    invariants.check_all()


def test_renames_to_one_name_at_once_leave_one_winner(api: Api, alice: User, november: Collection) -> None:
    for number in range(8):
        upload(api(alice), november, f"{number}.txt", b"x")

    def rename(client: APIClient, number: int) -> int:
        return int(client.patch(paths.file(november.slug, f"{number}.txt"), {"filename": "last.txt"}).status_code)

    statuses = Counter(race([partial(rename, api(alice), number) for number in range(8)]))

    assert statuses == {200: 1, 409: 7}
    invariants.check_all()


def test_replacements_with_one_etag_at_once_are_one_200_and_otherwise_412(api: Api, alice: User, november: Collection) -> None:
    before = upload(api(alice), november, "a.bin")
    contents = [bytes([number]) * 1000 for number in range(8)]

    statuses = race([partial(put, api(alice), november, "a.bin", content, if_match=before.etag) for content in contents])

    assert Counter(statuses) == {200: 1, 412: 7}
    assert received(api(alice), paths.content(november.slug, "a.bin")) == (200, contents[statuses.index(200)])
    assert PendingDeletion.objects.get().object_key == before.object_key
    assert len(invariants.entries()) == 2
    invariants.check_all()


@REPEATED
def test_replacement_against_delete_has_one_outcome(api: Api, alice: User, november: Collection, times: int) -> None:
    client = api(alice)
    for number in range(times):
        file = upload(client, november, f"{number}.bin")
        path = paths.file(november.slug, file.filename)

        def delete(client: APIClient, path: str, etag: str) -> int:
            return int(client.delete(path, headers={"if-match": etag}).status_code)

        outcome = race(
            [
                partial(put, api(alice), november, file.filename, b"new", if_match=file.etag),
                partial(delete, api(alice), path, file.etag),
            ]
        )

        assert outcome in ([200, 412], [412, 204])
        assert StoredFile.objects.filter(pk=file.pk).exists() == (outcome[0] == 200)
    assert not Upload.objects.exists()
    invariants.check_all()


def test_deletes_of_one_file_at_once_count_it_out_once(api: Api, alice: User, november: Collection) -> None:
    upload(api(alice), november, "a.bin")
    upload(api(alice), november, "b.bin")

    def delete(client: APIClient) -> int:
        return int(client.delete(paths.file(november.slug, "a.bin")).status_code)

    assert Counter(race([partial(delete, api(alice))] * 8)) == {204: 1, 404: 7}
    november.refresh_from_db()
    assert november.file_count == 1
    assert AuditEvent.objects.filter(action="file.delete").count() == 1
    invariants.check_all()


# --- Counting ---


def test_parallel_uploads_cannot_overshoot_the_quota(
    api: Api, acme: Tenant, alice: User, make_collection: MakeCollection
) -> None:
    """INV-18: not in one collection, and not in several of the tenant."""
    Tenant.objects.filter(pk=acme.pk).update(quota_bytes=5 * len(CONTENT) + 1000)
    collections = [make_collection(alice, f"Number {number}") for number in range(4)]

    statuses = race([partial(put, api(alice), collections[number % 4], f"{number}.bin") for number in range(20)])

    assert Counter(statuses) == {201: 5, 409: 15}
    assert len(invariants.entries()) == 5
    assert not Upload.objects.exists()
    invariants.check_all()


def test_parallel_uploads_cannot_overshoot_the_number_of_files(
    api: Api, acme: Tenant, alice: User, make_collection: MakeCollection
) -> None:
    Tenant.objects.filter(pk=acme.pk).update(quota_files=3)
    collections = [make_collection(alice, f"Number {number}") for number in range(4)]

    statuses = race([partial(put, api(alice), collections[number % 4], f"{number}.bin", b"") for number in range(12)])

    assert Counter(statuses) == {201: 3, 409: 9}
    invariants.check_all()


def test_uploads_deletes_and_replacements_at_once_keep_the_counts(api: Api, alice: User, november: Collection) -> None:
    files = [upload(api(alice), november, f"old-{number}.bin", bytes(number * 1000)) for number in range(10)]

    def delete(client: APIClient, file: StoredFile) -> int:
        return int(client.delete(paths.file(november.slug, file.filename)).status_code)

    statuses = race(
        [partial(put, api(alice), november, f"new-{number}.bin") for number in range(6)]
        + [partial(delete, api(alice), file) for file in files[:5]]
        + [partial(put, api(alice), november, file.filename, b"new", if_match=file.etag) for file in files[5:]]
    )

    assert Counter(statuses) == {201: 6, 204: 5, 200: 5}
    invariants.check_all()


def test_everything_at_once_in_one_tenant_waits_for_its_turn_and_deadlocks_nowhere(
    api: Api, acme: Tenant, alice: User, november: Collection
) -> None:
    """PostgreSQL checks foreign keys at the commit by default, when the lock on the chain's head is already held."""
    Tenant.objects.filter(pk=acme.pk).update(quota_files=1000)
    files = [upload(api(alice), november, f"old-{number}.bin", b"old") for number in range(5)]
    kept = paths.file(november.slug, "old-4.bin")

    def status_of(method: str, path: str, body: Any = None) -> int:
        return int(getattr(api(alice), method)(path, body).status_code)

    statuses = race(
        [partial(put, api(alice), november, f"new-{number}.bin", b"new") for number in range(5)]
        + [partial(status_of, "delete", paths.file(november.slug, file.filename)) for file in files[:4]]
        + [partial(status_of, "post", paths.COLLECTIONS, {"display_name": f"Number {number}"}) for number in range(5)]
        + [partial(status_of, "post", f"{kept}download/") for _ in range(5)]
        + [partial(status_of, "patch", kept, {"notes": str(number)}) for number in range(5)]
        + [partial(status_of, "patch", paths.collection(november.slug), {"display_name": str(number)}) for number in range(5)]
    )

    assert Counter(statuses) == {201: 15, 204: 4, 200: 10}
    invariants.check_all()


# --- What takes the ground from under an upload ---


def begin(by: User, collection: Collection, filename: str, now: datetime) -> uploads.UploadSession:
    collection = Collection.objects.select_related("tenant", "key").get(pk=collection.pk)
    incoming = uploads.begin(
        by=by, collection=collection, filename=filename, content_type="", notes="", size=None, conditions=None, now=now
    )
    incoming.write(CONTENT)
    return incoming


def finish(incoming: uploads.UploadSession, by: User, now: datetime) -> str:
    with incoming:
        try:
            incoming.commit(by=by, now=now)
        except (errors.UploadLost, errors.NotOpen, NotFound) as refusal:
            return type(refusal).__name__
        return "committed"


@REPEATED
def test_commit_against_clean_up_gives_the_object_to_one_of_them(
    alice: User, november: Collection, now: datetime, times: int
) -> None:
    for number in range(times):
        incoming = begin(alice, november, f"{number}.bin", now)
        Upload.objects.update(heartbeat_at=now - 2 * DEAD_AFTER)

        contenders: list[Any] = [partial(finish, incoming, alice, now), partial(cleanup.abandon_stalled_uploads, now=now)]
        outcome = race(contenders)

        assert outcome in (["committed", 0], ["UploadLost", 1])
        assert StoredFile.objects.filter(filename=f"{number}.bin").exists() == (outcome[1] == 0)
    assert not Upload.objects.exists()
    cleanup.delete_due_objects(now=now)
    assert len(invariants.entries()) == StoredFile.objects.count()
    invariants.check_all()


@REPEATED
def test_commit_against_delete_of_its_collection_leaves_nothing_in_a_deleted_one_unseen(
    api: Api, alice: User, make_collection: MakeCollection, now: datetime, times: int
) -> None:
    committed = 0
    for number in range(times):
        collection = make_collection(alice, f"Number {number}")
        incoming = begin(alice, collection, "a.bin", now)

        def delete(client: APIClient, collection: Collection) -> str:
            return str(client.delete(paths.collection(collection.slug)).status_code)

        outcome, status = race([partial(finish, incoming, alice, now), partial(delete, api(alice), collection)])

        assert status == "202"
        assert outcome in {"committed", "NotOpen"}
        committed += outcome == "committed"
    assert StoredFile.objects.count() == len(invariants.entries()) == committed
    assert not Upload.objects.exists()
    invariants.check_all()


def test_commit_against_the_end_of_the_membership_keeps_a_file_or_nothing(
    acme: Tenant, alice: User, bob: User, november: Collection, now: datetime
) -> None:
    incoming = begin(bob, november, "a.bin", now)

    def expel() -> str:
        return str(Membership.objects.filter(user=bob, tenant=acme).delete()[0])

    contenders: list[Callable[[], str]] = [partial(finish, incoming, bob, now), expel]
    outcome, _ = race(contenders)

    assert outcome in {"committed", "NotFound"}
    assert len(invariants.entries()) == (outcome == "committed")
    assert not Upload.objects.exists()
    invariants.check_all()


# --- Erasing ---


def test_erasures_by_many_workers_at_once_go_once_each(api: Api, alice: User, november: Collection, now: datetime) -> None:
    client = api(alice)
    for number in range(12):
        upload(client, november, f"{number}.bin", b"x")
        client.delete(paths.file(november.slug, f"{number}.bin"))
    kept = upload(client, november, "kept.bin")
    later = now + cleanup.LINK_RETENTION

    erased = race([partial(cleanup.delete_due_objects, now=later)] * 4)

    assert sum(erased) == 12
    assert not PendingDeletion.objects.exists()
    assert [entry.key for _, entry in invariants.entries()] == [kept.object_key]
    invariants.check_all()


def test_clean_ups_of_stalled_uploads_at_once_take_each_once(alice: User, november: Collection, now: datetime) -> None:
    stalled = [begin(alice, november, f"{number}.bin", now) for number in range(10)]
    later = now + 2 * DEAD_AFTER

    assert sum(race([partial(cleanup.abandon_stalled_uploads, now=later)] * 4)) == 10
    assert PendingDeletion.objects.count() == 10
    for incoming in stalled:
        assert finish(incoming, alice, now) == "UploadLost"
    invariants.check_all()


# --- Rotation ---


def rotate(now: datetime) -> int:
    return sum(rewrapped for rewrapped, _ in keys.rotate(now=now, batch=3))


@pytest.mark.parametrize("many", [5, pytest.param(10, marks=pytest.mark.long)])
def test_rotation_twice_at_once_while_people_read_and_write_loses_nothing(
    api: Api, alice: User, make_collection: MakeCollection, now: datetime, many: int
) -> None:
    """F-59: afterwards the old master key may go."""
    collections = [make_collection(alice, f"Number {number}") for number in range(many)]
    for collection in collections:
        upload(api(alice), collection, "a.bin")

    def read(client: APIClient, collection: Collection) -> Any:
        return received(client, paths.content(collection.slug, "a.bin"))

    def write(client: APIClient, collection: Collection) -> Any:
        return put(client, collection, "b.bin")

    def create(client: APIClient, number: int) -> Any:
        return client.post(paths.COLLECTIONS, {"display_name": f"Made meanwhile {number}"}).status_code

    with override_settings(KEYRING=ROTATED):
        outcomes = race(
            [partial(rotate, now), partial(rotate, now)]
            + [partial(read, api(alice), collection) for collection in collections]
            + [partial(write, api(alice), collection) for collection in collections]
            + [partial(create, api(alice), number) for number in range(3)]
        )
    assert outcomes[0] + outcomes[1] == many  # each key once, by one of the two
    assert outcomes[2 : many + 2] == [(200, CONTENT)] * many
    assert outcomes[many + 2 :] == [201] * (many + 3)
    assert not Key.objects.exclude(kek_id="test-2027").exists()

    with override_settings(KEYRING=RETIRED):
        for collection in collections:
            assert received(api(alice), paths.content(collection.slug, "a.bin")) == (200, CONTENT)
            assert received(api(alice), paths.content(collection.slug, "b.bin")) == (200, CONTENT)
    invariants.check_all()
