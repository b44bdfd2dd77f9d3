"""F-65: a clock that jumps ahead destroys nothing that the vault's clock does not confirm, and never more than a day's limit."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files import services
from files.models import Collection, StoredFile
from purge import destruction, jobs, limits, tasks
from purge import file_destruction as file_ends
from purge.models import Destruction
from tenants.models import User
from tests import stores
from tests.api import paths
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import fill
from tests.worlds import starts_from
from vault.stores import StoreRefused, StoreUnavailable, get_store
from vault.stores.local import LocalStore
from vault.stores.s3_client import sent_at


pytestmark = pytest.mark.django_db(transaction=True)
Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
DAY = timedelta(days=1)
NAMES = ["a.csv", "b.csv", "c.csv", "d.csv", "e.csv"]


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_logged_at", {})


def told(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "purge.limits" and record.levelname == "ERROR"]


def expire_all() -> None:
    Collection.objects.filter(status="open").update(purge_at=timezone.now() - timedelta(minutes=1))


# --- The day's limit ---


def make_five() -> None:
    client = worlds.make_people()["alice"]
    for number in range(5):
        fill(client, f"Number {number}", {})


@pytest.fixture
@mark_dependents(starts_from(make_five))
def five(own_buckets: Path) -> list[Collection]:
    return list(Collection.objects.order_by("pk"))


def test_expired_collections_beyond_the_limit_wait_for_the_next_day(
    five: list[Collection], settings: Settings, now: datetime, caplog: Any
) -> None:
    settings.PURGE_DAILY_LIMIT = 2
    expire_all()
    began = []
    for run in range(4):
        began.append(jobs.purge_expired(now=now + run * DAY - run * timedelta(seconds=2)))  # beat is not so exact
        assert jobs.purge_expired(now=now + run * DAY + timedelta(hours=1)) == 0
    assert began == [2, 2, 1, 0]
    assert len(told(caplog)) == 1  # of the many times: an hour has not passed
    assert "manage.py purge --dry-run" in told(caplog)[0]


def test_limit_that_is_just_reached_is_no_error(five: list[Collection], settings: Settings, now: datetime, caplog: Any) -> None:
    settings.PURGE_DAILY_LIMIT = 5
    expire_all()
    assert jobs.purge_expired(now=now) == 5
    jobs.tick(now=now)
    assert told(caplog) == []


def test_deleted_collections_share_the_limit(
    five: list[Collection], settings: Settings, alice: User, now: datetime, caplog: Any
) -> None:
    settings.PURGE_DAILY_LIMIT = 4
    for collection in five[:3]:
        services.delete_collection(collection, by=alice, now=now)
    expire_all()
    later = now + timedelta(seconds=settings.DELETE_GRACE)
    jobs.tick(now=later)
    assert Destruction.objects.filter(reason="deleted").count() == 3
    assert jobs.purge_expired(now=later) == 1

    services.delete_collection(Collection.objects.get(status="open"), by=alice, now=now)
    for _ in range(3):
        jobs.tick(now=later)
    assert Collection.objects.filter(status="deleted").count() == 1
    assert len(told(caplog)) == 1
    jobs.tick(now=later + DAY)
    assert not Collection.objects.exists()


def test_files_beyond_their_limit_wait_for_the_next_day(
    five: list[Collection], settings: Settings, alice: User, api: Api, now: datetime, monkeypatch: Any, caplog: Any
) -> None:
    settings.PURGE_DAILY_FILE_LIMIT = 3
    monkeypatch.setattr(file_ends, "BATCH", 2)
    for name in NAMES:
        api(alice).put(paths.content(five[0].slug, name), b"x", content_type="text/csv")
    StoredFile.objects.update(keep_until=now)
    left = []
    for day in range(3):
        for _ in range(2):
            jobs.purge_expired(now=now + day * DAY)
            left.append(StoredFile.objects.count())
    assert left == [2, 2, 0, 0, 0, 0]
    assert len(told(caplog)) == 1
    assert "more files are due" in told(caplog)[0]


def test_what_goes_by_hand_knows_no_limit(
    five: list[Collection], settings: Settings, alice: User, api: Api, now: datetime
) -> None:
    settings.PURGE_DAILY_LIMIT = settings.PURGE_DAILY_FILE_LIMIT = 1
    for name in NAMES:
        api(alice).put(paths.content(five[0].slug, name), b"x", content_type="text/csv")
    StoredFile.objects.update(keep_until=now)
    Collection.objects.exclude(pk=five[0].pk).update(purge_at=now)

    assert "5 single files destroyed." in run()

    assert (Destruction.objects.filter(status="done").count(), Collection.objects.count()) == (4, 1)


def test_limit_of_none_leaves_all_of_it_to_the_operator(five: list[Collection], settings: Settings, now: datetime) -> None:
    settings.PURGE_DAILY_LIMIT = 0
    expire_all()
    assert jobs.purge_expired(now=now) == 0
    assert run().endswith("5 collections destroyed.\n")


def run(*args: str) -> str:
    out = StringIO()
    call_command("purge", *args, stdout=out)
    return out.getvalue()


# --- The vault's clock ---


class Timed(LocalStore):
    """A store that has a clock of its own, as S3 has."""

    says: Callable[[], datetime | None]

    def clock(self) -> datetime | None:  # type: ignore[override]
        return type(self).says()


@pytest.fixture
def said(five: list[Collection], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the vault's clock says; an exception is raised."""
    settings.STORAGES = settings.STORAGES | {"vault": settings.STORAGES["vault"] | {"BACKEND": f"{__name__}.Timed"}}

    def say(answer: datetime | Exception | None) -> None:
        def says() -> datetime | None:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(Timed, "says", says, raising=False)

    return say


@pytest.mark.parametrize(
    ("minutes", "begins"),
    [
        *((None, True), (10, True), (10.1, False)),
        *(pytest.param(*each, marks=pytest.mark.long) for each in ((-1440, True), (0, True), (1440, False))),
    ],
)
def test_nothing_begins_while_it_is_earlier_by_the_vault(
    said: Callable[..., None],
    five: list[Collection],
    alice: User,
    api: Api,
    now: datetime,
    minutes: float | None,
    caplog: Any,
    *,
    begins: bool,
) -> None:
    """Expired and deleted collections and single files alike; what has begun goes on."""
    api(alice).put(paths.content(five[4].slug, "a.csv"), b"x", content_type="text/csv")
    StoredFile.objects.update(keep_until=now)
    Collection.objects.filter(pk__in=[each.pk for each in five[:2]]).update(purge_at=now)
    Collection.objects.filter(pk=five[2].pk).update(status="deleted", deleted_at=now - 2 * DAY)
    assert destruction.start_destruction(five[0], by=None, now=now)
    said(None if minutes is None else now - timedelta(minutes=minutes))

    assert jobs.purge_expired(now=now) == (2 if begins else 0)
    jobs.tick(now=now)

    assert Collection.objects.count() == (2 if begins else 4)
    assert StoredFile.objects.exists() != begins
    assert (told(caplog) == []) == begins
    if not begins:
        assert "clock" in told(caplog)[0]


@pytest.mark.parametrize("error", [StoreUnavailable("HeadBucket: no answer"), StoreRefused("HeadBucket: no such bucket")])
def test_nothing_begins_while_the_vault_does_not_say(
    said: Callable[..., None], five: list[Collection], now: datetime, caplog: Any, error: Exception
) -> None:
    expire_all()
    said(error)
    assert jobs.purge_expired(now=now + timedelta(minutes=2)) == 0
    assert len(told(caplog)) == 1
    with pytest.raises(CommandError, match="Nothing was changed: HeadBucket: no"):
        run()
    said(timezone.now())
    assert jobs.purge_expired(now=timezone.now()) == 5


def test_vault_is_not_asked_while_nothing_is_due(said: Callable[..., None], five: list[Collection], now: datetime) -> None:
    """The tick comes every five seconds."""
    said(AssertionError("nobody needs to know"))
    jobs.tick(now=now)
    jobs.purge_expired(now=now)


def test_command_refuses_and_says_both_times(said: Callable[..., None], five: list[Collection]) -> None:
    expire_all()
    said(datetime(2026, 11, 22, 4, tzinfo=UTC))
    with time_machine.travel(datetime(2026, 11, 23, 4, 0, 7, tzinfo=UTC), tick=False):
        expire_all()
        with pytest.raises(
            CommandError, match="2026-11-23 04:00:07 UTC, is ahead of the clock of the vault, 2026-11-22 04:00:00 UTC"
        ):
            run()
        assert run("--dry-run").count("expired on") == 5  # which harms nobody
    assert not Destruction.objects.exists()


def test_an_hour_later_it_is_told_again(five: list[Collection], settings: Settings, now: datetime, caplog: Any) -> None:
    settings.PURGE_DAILY_LIMIT = 0
    expire_all()
    jobs.purge_expired(now=now)
    limits._logged_at = {problem: at - limits.LOG_INTERVAL_SECONDS for problem, at in limits._logged_at.items()}
    jobs.purge_expired(now=now)
    jobs.purge_expired(now=now)
    assert len(told(caplog)) == 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"date": "Sun, 22 Nov 2026 04:00:00 GMT"}, datetime(2026, 11, 22, 4, tzinfo=UTC)),
        ({"date": "Sun, 22 Nov 2026 06:00:00 +0200"}, datetime(2026, 11, 22, 4, tzinfo=UTC)),
        ({"date": "Sun, 22 Nov 2026 04:00:00 -0000"}, None),
        ({"date": "Sun, 99 Nov 2026 04:00:00 GMT"}, None),
        ({"date": "yesterday"}, None),
        ({"date": ""}, None),
        ({}, None),
    ],
)
def test_date_of_an_answer_is_a_time_or_none(headers: dict[str, str], expected: datetime | None) -> None:
    assert sent_at({"ResponseMetadata": {"HTTPHeaders": headers}}) == expected
    assert sent_at({}) is None


@pytest.fixture
@mark_dependents(pytest.mark.needs("ceph"))
def ceph(settings: Settings) -> Iterator[None]:
    with stores.use_new_buckets(stores.ceph(), settings):
        yield


@pytest.mark.parametrize("ahead", [timedelta(minutes=11), DAY, 400 * DAY])
def test_host_whose_clock_jumped_destroys_nothing_on_a_real_s3(
    ceph: None, make_collection: MakeCollection, alice: User, ahead: timedelta, caplog: Any
) -> None:
    """From a quarter of an hour on S3 refuses each request, and its refusal tells the time."""
    collection = make_collection(alice, "November")
    Collection.objects.update(purge_at=timezone.now() + timedelta(minutes=5))
    with time_machine.travel(timezone.now() + ahead):
        assert abs(timezone.now() - (get_store("vault").clock() or timezone.now()) - ahead) < timedelta(seconds=10)
        tasks.purge_expired()
        tasks.tick()
        with pytest.raises(CommandError, match="ahead of the clock of the vault"):
            run()
    assert Collection.objects.get().status == "open"
    assert len(told(caplog)) == 1

    Collection.objects.update(purge_at=timezone.now())
    tasks.purge_expired()
    assert Destruction.objects.get().slug == collection.slug
