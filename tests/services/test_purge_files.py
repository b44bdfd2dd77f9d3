"""The end of single files: kept long enough, or never used. The row, the salt in it and the object go; held files stay.

INV-06, INV-08, INV-14, INV-18; F-25, F-31, F-33, F-59.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings
from rest_framework.exceptions import APIException
from rest_framework.test import APIClient

from files import cleanup, holds, services
from files.models import Collection, DownloadLink, Grant, PendingDeletion, StoredFile
from purge import file_destruction as file_ends
from purge import jobs
from purge.models import Destruction
from purge.rules import KeptLongEnough, NeverUsed
from tenants.models import AuditEvent, User
from tests import invariants
from tests.api import paths
from tests.api.answers import audited, facts
from tests.faults.fault_injection import FAULT_KINDS, INJECTOR
from tests.needs import mark_dependents
from tests.races import attempts, race
from tests.services import worlds
from tests.worlds import starts_from
from vault import identity


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets")]
Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
DAY = timedelta(days=1)
CONTENT = b"a,b\n" * 25


@pytest.fixture
@mark_dependents(starts_from(worlds.empty_november))
def november(own_buckets: Path, built: int) -> Collection:
    return Collection.objects.get(pk=built)


def with_two_files() -> int:
    return worlds.november_with({"a.csv": CONTENT, "b.csv": CONTENT})


@pytest.fixture
@mark_dependents(starts_from(with_two_files))
def two_files(own_buckets: Path, built: int) -> Collection:
    return Collection.objects.get(pk=built)


def put(client: APIClient, collection: Collection, filename: str, **headers: str) -> StoredFile:
    path = paths.content(collection.slug, filename)
    assert client.put(path, CONTENT, content_type="text/csv", headers=headers).status_code in {200, 201}
    return StoredFile.objects.get(collection=collection, filename=filename)


def is_over(*files: StoredFile) -> None:
    StoredFile.objects.filter(pk__in=[file.pk for file in files]).update(keep_until=timezone.now() - timedelta(minutes=1))


def names() -> set[str]:
    return set(StoredFile.objects.values_list("filename", flat=True))


def assert_gone(file: StoredFile) -> None:
    """Row and object, and what hung on them; what is counted is what there is."""
    while cleanup.delete_due_objects(now=timezone.now()):
        pass
    assert not StoredFile.objects.filter(uuid=file.uuid).exists()
    assert file.object_key not in {entry.key for _, entry in invariants.entries()}
    assert AuditEvent.objects.filter(target_id=str(file.uuid), action="file.purge").count() == 1
    invariants.check_all()


# --- Kept long enough ---


@pytest.mark.parametrize(("seconds", "goes"), [(-1, True), (0, True), (1, False), (None, False)])
def test_file_goes_when_its_keep_until_is_over(
    november: Collection, alice: User, api: Api, now: datetime, seconds: int | None, *, goes: bool
) -> None:
    put(api(alice), november, "kept.csv")
    file = put(api(alice), november, "a.csv")
    file.keep_until = None if seconds is None else now + timedelta(seconds=seconds)
    file.save()

    jobs.purge_expired(now=now)

    assert names() == ({"kept.csv"} if goes else {"kept.csv", "a.csv"})
    assert not Destruction.objects.exists()
    if goes:
        assert_gone(file)


def test_file_that_went_is_on_record_with_why(november: Collection, alice: User, bob: User, api: Api) -> None:
    file = put(api(bob), november, "a.csv")
    assert api(alice).post(paths.file_grants(november.slug, "a.csv"), {"user": "bob", "level": "manager"}).status_code == 201
    assert api(bob).post(paths.download(november.slug, "a.csv")).status_code == 201
    is_over(file)
    file.refresh_from_db()

    jobs.purge_expired(now=timezone.now())

    assert audited("file.purge", "file.delete") == [("file.purge", "system")]
    assert facts("file.purge") == {
        "collection": str(november.uuid),
        "filename": "a.csv",
        "length": len(CONTENT),
        "sha256": file.sha256,
        "reason": "kept_long_enough",
        "explanation": f"keep_until was {file.keep_until:%Y-%m-%d %H:%M} UTC, today",
    }
    assert not DownloadLink.objects.exists()
    assert not Grant.objects.exclude(file=None).exists()
    assert_gone(file)
    shown = api(alice).get(paths.collection(november.slug)).json()
    assert (shown["file_count"], shown["total_length"]) == (0, 0)
    assert api(bob).get(paths.content(november.slug, "a.csv")).status_code == 404
    put(api(bob), november, "a.csv")  # the name is free


@pytest.mark.parametrize("status", ["deleted", "purging", "blocked"])
def test_file_of_a_collection_that_is_not_open_stays_for_its_end(
    november: Collection, alice: User, api: Api, status: str
) -> None:
    is_over(put(api(alice), november, "a.csv"))
    Collection.objects.update(status=status, deleted_at=timezone.now())

    jobs.purge_expired(now=timezone.now())

    assert names() == {"a.csv"}


@pytest.mark.parametrize("filename", ["a.csv", None])
def test_held_file_stays_until_the_hold_is_lifted(november: Collection, alice: User, api: Api, filename: str | None) -> None:
    held, free = put(api(alice), november, "a.csv"), put(api(alice), november, "b.csv")
    hold = holds.place(november, filename=filename, ref="", reason="a suit", by=alice, now=timezone.now())
    is_over(held, free)

    jobs.purge_expired(now=timezone.now())

    assert names() == ({"a.csv"} if filename else {"a.csv", "b.csv"})
    assert not file_ends.destroy(held, by=None, now=timezone.now())

    holds.lift(hold, by=alice, now=timezone.now())
    jobs.purge_expired(now=timezone.now())
    assert names() == set()
    assert_gone(held)


def test_file_whose_date_was_moved_meanwhile_stays(november: Collection, alice: User, api: Api) -> None:
    file = put(api(alice), november, "a.csv")
    is_over(file)
    (read,) = next(file_ends.find_destroyable(timezone.now()))
    services.update_file(file, by=alice, now=timezone.now(), clear_keep_until=True)

    assert not file_ends.destroy(read, by=None, now=timezone.now())
    assert names() == {"a.csv"}


def test_one_that_fails_does_not_stop_the_others(
    november: Collection, alice: User, api: Api, now: datetime, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(file_ends, "BATCH", 2)
    files = [put(api(alice), november, f"{number}.csv") for number in range(5)]
    is_over(*files)
    # Its object is queued already, which is a bug: the second row is refused.
    bad = PendingDeletion.objects.create(store="vault", object_key=files[1].object_key, due_at=now + DAY, requested_at=now)

    jobs.purge_expired(now=timezone.now())

    assert names() == {"1.csv"}
    (told,) = [record for record in caplog.records if record.name == "purge.file_destruction"]
    assert told.file == str(files[1].uuid)
    with pytest.raises(CommandError, match="1 single files could not be destroyed"):
        run()
    bad.delete()
    assert "1 single files destroyed." in run()
    for file in files:
        assert_gone(file)


# --- Never used ---


def read(client: APIClient, path: str, **headers: str) -> None:
    answer: Any = client.get(path, headers=headers)
    assert answer.status_code in {200, 206}
    b"".join(answer.streaming_content)


def follow(client: APIClient, path: str, body: Any = None) -> None:
    read(APIClient(), client.post(path, body or {}).json()["url"])


USES: dict[str, Callable[[APIClient, str], Any]] = {
    "download": lambda client, slug: read(client, paths.content(slug, "a.csv")),
    "range": lambda client, slug: read(client, paths.content(slug, "a.csv"), range="bytes=1-3"),
    "preview": lambda client, slug: read(client, paths.preview(slug, "a.csv")),
    "link": lambda client, slug: follow(client, paths.download(slug, "a.csv")),
    "archive": lambda client, slug: read(client, paths.archive(slug)),
    "archive of it": lambda client, slug: read(client, f"{paths.archive(slug)}?file=a.csv"),
    "archive by a link": lambda client, slug: follow(client, paths.archive_link(slug)),
    "replacement": lambda client, slug: put(client, Collection.objects.get(slug=slug), "a.csv", if_match="*"),
    "date": lambda client, slug: client.patch(paths.file(slug, "a.csv"), {"keep_until": "2099-01-01T00:00:00Z"}),
}
NO_USES: dict[str, Callable[[APIClient, str], Any]] = {
    "nothing": lambda client, slug: None,
    "details": lambda client, slug: client.get(paths.file(slug, "a.csv")),
    "head": lambda client, slug: client.head(paths.content(slug, "a.csv")),
    "a link that nobody followed": lambda client, slug: client.post(paths.download(slug, "a.csv"), {}),
    "notes": lambda client, slug: client.patch(paths.file(slug, "a.csv"), {"notes": "x"}),
    "another file": lambda client, slug: read(client, paths.content(slug, "b.csv")),
}


@pytest.mark.parametrize("use", [*USES, *NO_USES])
def test_file_that_nobody_used_goes_and_one_that_somebody_did_stays(
    two_files: Collection, bob: User, api: Api, settings: Settings, use: str
) -> None:
    settings.UNUSED_FILE_DAYS = 30
    file = StoredFile.objects.get(filename="a.csv")
    (USES | NO_USES)[use](api(bob), two_files.slug)

    later = timezone.now() + 31 * DAY
    assert NeverUsed().due(later).filter(pk=file.pk).exists() == (use in NO_USES)
    jobs.purge_expired(now=later)

    assert ("a.csv" in names()) == (use in USES)
    if use in NO_USES:
        assert facts("file.purge")["reason"] == "never_used"


def test_archive_from_before_a_file_came_is_no_use_of_it(november: Collection, bob: User, api: Api, settings: Settings) -> None:
    settings.UNUSED_FILE_DAYS = 30
    put(api(bob), november, "b.csv")
    read(api(bob), paths.archive(november.slug))
    put(api(bob), november, "a.csv")
    jobs.purge_expired(now=timezone.now() + 31 * DAY)
    assert names() == {"b.csv"}


@pytest.mark.parametrize(("days", "age", "goes"), [(0, 36_500, False), (30, 29, False), (30, 30, True), (36_500, 31, False)])
def test_unused_file_goes_when_it_is_so_old_and_the_operator_wants_it(
    november: Collection, bob: User, api: Api, settings: Settings, days: int, age: int, *, goes: bool
) -> None:
    settings.UNUSED_FILE_DAYS = days
    file = put(api(bob), november, "a.csv")
    jobs.purge_expired(now=file.created_at + age * DAY)
    assert StoredFile.objects.exists() != goes


def test_unused_file_whose_object_is_missing_stays(november: Collection, bob: User, api: Api, settings: Settings) -> None:
    """Somebody has to know of it."""
    settings.UNUSED_FILE_DAYS = 30
    put(api(bob), november, "a.csv")
    StoredFile.objects.update(status="missing")
    jobs.purge_expired(now=timezone.now() + 31 * DAY)
    assert names() == {"a.csv"}


def test_rules_say_why(november: Collection, bob: User, api: Api, now: datetime) -> None:
    file = put(api(bob), november, "a.csv")
    file.created_at = file.keep_until = datetime.fromisoformat("2026-11-01T10:00:00Z")
    later = file.created_at + 3 * DAY
    assert KeptLongEnough().explain(file, later) == "keep_until was 2026-11-01 10:00 UTC, 3 days ago"
    assert NeverUsed().explain(file, later) == ("never downloaded, previewed or replaced since 2026-11-01 10:00 UTC, 3 days ago")


# --- Killed, doubled and raced ---


def points(kind: str, step: int) -> Any:
    return count(1 + list(FAULT_KINDS).index(kind) % step, step)


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_broken_off_at_any_query_it_is_gone_or_there_as_a_whole(
    november: Collection, alice: User, api: Api, kind: str, step: int
) -> None:
    """Each kind at some queries, and at every one with --long."""
    for point in points(kind, step):
        file = put(api(alice), november, f"{point}.csv")
        is_over(file)
        with INJECTOR.injecting(point, kind), suppress(APIException, DatabaseError):
            file_ends.destroy(file, by=None, now=timezone.now())
        is_through = not INJECTOR.has_fired
        INJECTOR.reset()
        invariants.check_all()
        file_ends.destroy(file, by=None, now=timezone.now())
        assert_gone(file)
        if is_through:
            break
    assert point > 8


def test_many_at_once_do_it_once(november: Collection, alice: User, api: Api) -> None:
    file = put(api(alice), november, "a.csv")
    is_over(file)

    gone = race([lambda: file_ends.destroy(file, by=None, now=timezone.now())] * 6)

    assert sorted(gone) == [False] * 5 + [True]
    assert_gone(file)


@attempts(4)
def test_against_a_hold_and_against_a_delete(november: Collection, alice: User, api: Api, attempt: int) -> None:
    held, deleted = put(api(alice), november, "a.csv"), put(api(alice), november, "b.csv")
    is_over(held, deleted)
    now = timezone.now()

    def outcome(call: Callable[[], object]) -> bool:
        try:
            return call() is not False
        except APIException:
            return False

    is_placed, is_gone, is_deleted, is_purged = race(
        [
            lambda: outcome(lambda: holds.place(november, filename="a.csv", ref="", reason="a suit", by=alice, now=now)),
            lambda: file_ends.destroy(held, by=None, now=now),
            lambda: outcome(lambda: services.delete_file(deleted, by=alice, now=now)),
            lambda: file_ends.destroy(deleted, by=None, now=now),
        ]
    )

    assert is_placed != is_gone
    assert is_deleted != is_purged
    assert names() == ({"a.csv"} if is_placed else set())
    invariants.check_all()


# --- The command ---


def run(*args: str) -> str:
    out = StringIO()
    call_command("purge", *args, stdout=out)
    return out.getvalue()


@pytest.fixture
def three(make_collection: MakeCollection, november: Collection, alice: User, api: Api) -> list[Collection]:
    """With files whose time is over: a free one and a held one, two, and one in a collection that has expired itself."""
    december, january = make_collection(alice, "December"), make_collection(alice, "January")
    free, held = put(api(alice), november, "a.csv"), put(api(alice), november, "held.csv")
    holds.place(november, filename="held.csv", ref="", reason="a suit", by=alice, now=timezone.now())
    is_over(free, held, *(put(api(alice), december, name) for name in ("a.csv", "b.csv")), put(api(alice), january, "a.csv"))
    put(api(alice), december, "kept.csv")
    Collection.objects.filter(pk=january.pk).update(purge_at=timezone.now() - DAY)
    return [november, december, january]


def test_dry_run_has_a_row_for_each_collection_and_reason(three: list[Collection]) -> None:
    november, december, january = three

    lines = run("--dry-run").splitlines()

    assert [line.split()[0] for line in lines[1:5]] == [january.slug, november.slug, december.slug, november.slug]
    assert "expired on" in lines[1]
    assert ["single files: keep_until was" in line for line in lines[2:5]] == [True] * 3
    assert ["and others" in line for line in lines[2:5]] == [False, True, False]
    assert [line.endswith("a hold") for line in lines[2:5]] == [False, False, True]
    assert lines[3].split()[-2:] == ["2", "200"]
    assert lines[5:] == [
        "1 collections would be destroyed, with 1 files of 100 bytes.",
        "3 single files would be destroyed, with 300 bytes.",
    ]
    assert StoredFile.objects.count() == 6
    assert "a.csv" not in "".join(lines)


def test_command_destroys_them_with_their_objects(three: list[Collection]) -> None:
    out = run()

    assert "3 single files destroyed." in out
    assert out.endswith("1 collections destroyed.\n")
    assert names() == {"held.csv", "kept.csv"}
    there = {entry.key for _, entry in invariants.entries() if not entry.key.startswith(identity.SYSTEM_PREFIX)}
    assert there == set(StoredFile.objects.values_list("object_key", flat=True))
    assert [json.loads(body)["facts"]["reason"] for body in bodies("file.purge")] == ["kept_long_enough"] * 3
    invariants.check_all()


def test_command_keeps_to_the_collections_that_it_is_given(three: list[Collection]) -> None:
    november, december, _ = three

    assert run(december.slug) == "2 single files destroyed.\n0 collections destroyed.\n"

    assert set(Collection.objects.get(pk=december.pk).files.values_list("filename", flat=True)) == {"kept.csv"}
    assert Collection.objects.filter(status="open").count() == 3
    assert november.files.count() == 2
    with pytest.raises(CommandError, match="not due"):
        run(december.slug)


def bodies(action: str) -> list[str]:
    return list(AuditEvent.objects.filter(action=action).order_by("seq").values_list("body", flat=True))


def test_objects_go_by_a_tick_and_lie_as_noise_till_then(november: Collection, alice: User, api: Api, own_buckets: Path) -> None:
    file = put(api(alice), november, "a.csv")
    is_over(file)
    jobs.purge_expired(now=timezone.now())
    assert [entry.key for _, entry in invariants.entries()] == [file.object_key]
    invariants.check_all()
    assert_gone(file)
