"""Mails ahead of a destruction: to whom, when, once, and dropped when there is no reason for them any more.

INV-15, INV-16; F-31, F-32, F-34, F-40.
"""

import json
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from config.celery import app
from files import holds, services
from files.models import Collection, Grant, StoredFile
from purge import expiry_warnings, tasks
from tenants import services as tenants
from tenants.models import Mail, Membership, Role, Tenant, User
from tenants.work import outbox
from tests.api import paths
from tests.factories import make_member
from tests.mailbox import Mailbox
from tests.needs import mark_dependents
from tests.races import race
from tests.services import worlds
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets")]
Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def bobs_november() -> int:
    return worlds.november_with({}, by="bob")


@pytest.fixture
@mark_dependents(starts_from(bobs_november))
def november(own_buckets: Path, built: int) -> Collection:
    """bob made it, so that he is its manager; alice is the tenant's admin."""
    return Collection.objects.get(pk=built)


def expires(november: Collection, at: datetime | None) -> None:
    Collection.objects.filter(pk=november.pk).update(purge_at=at)


def put(client: APIClient, collection: Collection, filename: str, keep_until: datetime | None = None) -> StoredFile:
    assert client.put(paths.content(collection.slug, filename), b"a,b", content_type="text/csv").status_code == 201
    file = StoredFile.objects.get(collection=collection, filename=filename)
    StoredFile.objects.filter(pk=file.pk).update(keep_until=keep_until)
    return file


def announce(now: datetime) -> None:
    """As an hourly run and the ticks behind it do."""
    expiry_warnings.announce(now=now)
    outbox.send_due(now=now)


def text_of(message: EmailMessage, kind: str = "plain") -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def queued() -> list[tuple[str, str]]:
    return sorted((mail.kind, mail.facts["days"]) for mail in Mail.objects.all())


# --- When ---


@pytest.mark.parametrize(
    ("left", "days"),
    [
        (-1 * HOUR, None), (timedelta(0), None), (timedelta(seconds=1), "1"), (DAY, "1"), (DAY + timedelta(seconds=1), "7"),
        (7 * DAY, "7"), (7 * DAY + timedelta(seconds=1), None), (None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["collection", "file"])
def test_owner_is_told_a_week_and_a_day_ahead(
    november: Collection, bob: User, api: Api, mailbox: Mailbox, left: timedelta | None, days: str | None, what: str
) -> None:
    at = None if left is None else NOON + left
    if what == "collection":
        expires(november, at)
    else:
        put(api(bob), november, "a.csv", at)

    announce(NOON)

    assert mailbox.recipients == ([] if days is None else ["bob@example.org"])
    kind = {"collection": "collection_expires", "file": "files_expire"}[what]
    assert queued() == ([] if days is None else [(kind, days)])


@pytest.mark.parametrize("hours", [range(24 * 8, -6, -5), pytest.param(range(24 * 10, -24, -1), marks=pytest.mark.long)])
def test_each_stage_is_told_once_however_often_it_is_looked_for(
    november: Collection, bob: User, api: Api, mailbox: Mailbox, hours: range
) -> None:
    expires(november, NOON)
    put(api(bob), november, "a.csv", NOON - HOUR)
    for before in hours:
        announce(NOON - before * HOUR)
    assert mailbox.recipients == ["bob@example.org"] * 4
    assert [each[:8] for each in sorted(str(message["Subject"]) for message in mailbox.messages)] == ["Files of"] * 2 + [
        "November"
    ] * 2
    assert queued() == [
        ("collection_expires", "1"), ("collection_expires", "7"), ("files_expire", "1"), ("files_expire", "7"),
    ]  # fmt: skip


def test_runs_at_once_tell_once(november: Collection, alice: User, bob: User, carol: User, api: Api, mailbox: Mailbox) -> None:
    """F-31, F-32."""
    for user in ("alice", "carol"):
        assert api(bob).post(paths.grants(november.slug), {"user": user, "level": "manager"}).status_code == 201
    expires(november, NOON + DAY)
    put(api(bob), november, "a.csv", NOON + HOUR)

    race([lambda: expiry_warnings.announce(now=NOON)] * 6)

    assert Mail.objects.count() == 6
    assert outbox.send_due(now=NOON) == 6
    assert sorted(mailbox.recipients) == sorted(f"{name}@example.org" for name in ("alice", "bob", "carol") * 2)


def test_a_date_that_was_moved_is_told_again(november: Collection, mailbox: Mailbox) -> None:
    for days in (3, 5, 3):  # which was told already
        expires(november, NOON + days * DAY)
        announce(NOON)
    assert len(mailbox.messages) == 2
    assert {message["Subject"] for message in mailbox.messages} == {
        f"November will be destroyed on {day} November 2026, 12:00 UTC" for day in (25, 27)
    }


def test_files_of_a_day_are_one_mail_and_those_of_the_next_another(
    november: Collection, make_collection: MakeCollection, bob: User, api: Api, mailbox: Mailbox
) -> None:
    midnight = datetime(2026, 11, 25, tzinfo=UTC)
    for number, at in enumerate((midnight, midnight + HOUR, midnight + DAY - timedelta(microseconds=1), midnight + DAY)):
        put(api(bob), november, f"{number}.csv", at)
    put(api(bob), make_collection(bob, "December"), "a.csv", midnight)

    announce(NOON)

    told = {str(message["Subject"]): text_of(message) for message in mailbox.messages}
    assert sorted(told) == [
        "Files of December will be destroyed on 25 November 2026",
        "Files of November will be destroyed on 25 November 2026",
        "Files of November will be destroyed on 26 November 2026",
    ]
    counts = [re.findall(r"^(\d+) files? in the collection", text, re.MULTILINE)[0] for _, text in sorted(told.items())]
    assert counts == ["1", "3", "1"]


def test_file_that_goes_with_its_collection_is_not_told_of(november: Collection, bob: User, api: Api, mailbox: Mailbox) -> None:
    expires(november, NOON + 2 * DAY)
    put(api(bob), november, "later.csv", NOON + 3 * DAY)
    put(api(bob), november, "as-late.csv", NOON + 2 * DAY)
    announce(NOON)
    assert [message["Subject"] for message in mailbox.messages] == ["November will be destroyed on 24 November 2026, 12:00 UTC"]


# --- To whom ---


def test_managers_by_name_are_told_and_nobody_else(
    november: Collection, acme: Tenant, globex: Tenant, bob: User, mallory: User, api: Api, mailbox: Mailbox
) -> None:
    acme.allow_external_sharing = True
    acme.save()
    make_member(globex, "trudy", "member")
    make_member(acme, "dave", "member")
    file = put(api(bob), november, "a.csv")
    for user, level in (("mallory", "manager"), ("carol", "editor"), ("trudy", "viewer")):
        assert api(bob).post(paths.grants(november.slug), {"user": user, "level": level}).status_code == 201
    assert api(bob).post(paths.file_grants(november.slug, file.filename), {"user": "dave", "level": "manager"}).status_code == 201
    assert api(bob).post(paths.grants(november.slug), {"everyone": True, "level": "manager"}).status_code == 200
    expires(november, NOON + DAY)

    announce(NOON)

    assert sorted(mailbox.recipients) == ["bob@example.org", "mallory@example.org"]


def leave(bob: User, acme: Tenant) -> None:
    tenants.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())


def deactivate(bob: User, acme: Tenant) -> None:
    User.objects.filter(pk=bob.pk).update(is_active=False)


def audit_only(bob: User, acme: Tenant) -> None:
    Membership.objects.filter(user=bob).update(roles=[Role.AUDITOR])


def lose_the_grant(bob: User, acme: Tenant) -> None:
    Grant.objects.filter(user=bob).delete()


LOSSES = [leave, deactivate, audit_only, lose_the_grant]


@pytest.mark.parametrize("lose", LOSSES)
def test_admins_are_told_if_there_is_no_manager(
    november: Collection, acme: Tenant, alice: User, bob: User, mailbox: Mailbox, lose: Callable[[User, Tenant], None]
) -> None:
    make_member(acme, "dave", "admin", "member")
    gone = make_member(acme, "gone", "admin")
    deactivate(gone, acme)
    lose(bob, acme)
    expires(november, NOON + DAY)

    announce(NOON)

    assert sorted(mailbox.recipients) == ["alice@example.org", "dave@example.org"]


@pytest.mark.parametrize("lose", LOSSES)
def test_whoever_is_no_manager_any_more_when_it_is_sent_hears_nothing(
    november: Collection, acme: Tenant, alice: User, bob: User, mailbox: Mailbox, lose: Callable[[User, Tenant], None]
) -> None:
    """INV-16."""
    expires(november, NOON + DAY)
    expiry_warnings.announce(now=NOON)
    lose(bob, acme)
    assert outbox.send_due(now=NOON) == 0
    assert not Mail.objects.exists()

    announce(NOON + HOUR)
    assert mailbox.recipients == ["alice@example.org"]


def test_others_are_not_told_where_their_sharing_ended(
    november: Collection, acme: Tenant, bob: User, mallory: User, api: Api, mailbox: Mailbox
) -> None:
    Tenant.objects.filter(pk=acme.pk).update(allow_external_sharing=True)
    assert api(bob).post(paths.grants(november.slug), {"user": "mallory", "level": "manager"}).status_code == 201
    Tenant.objects.filter(pk=acme.pk).update(allow_external_sharing=False)
    expires(november, NOON + DAY)
    announce(NOON)
    assert mailbox.recipients == ["bob@example.org"]


# --- What there is no reason to tell ---


def hold(november: Collection, alice: User) -> None:
    holds.place(november, filename=None, ref="", reason="a suit", by=alice, now=timezone.now())


def hold_the_file(november: Collection, alice: User) -> None:
    holds.place(november, filename="a.csv", ref="", reason="a suit", by=alice, now=timezone.now())


def delete(november: Collection, alice: User) -> None:
    services.delete_collection(november, by=alice, now=timezone.now())


def suspend(november: Collection, alice: User) -> None:
    Tenant.objects.update(is_active=False)


def take_the_dates_away(november: Collection, alice: User) -> None:
    Collection.objects.update(purge_at=None)
    StoredFile.objects.update(keep_until=None)


def move_the_dates(november: Collection, alice: User) -> None:
    Collection.objects.update(purge_at=NOON + 90 * DAY)
    StoredFile.objects.update(keep_until=NOON + 80 * DAY)


def destroy(november: Collection, alice: User) -> None:
    StoredFile.objects.all().delete()
    Collection.objects.update(status="purging")


REASONS = [hold, hold_the_file, delete, suspend, take_the_dates_away, move_the_dates, destroy]


@pytest.mark.parametrize("change", REASONS)
@pytest.mark.parametrize("is_queued", [True, pytest.param(False, marks=pytest.mark.long)])
def test_nothing_is_told_of_what_will_not_go(
    november: Collection,
    alice: User,
    bob: User,
    api: Api,
    mailbox: Mailbox,
    change: Callable[[Collection, User], None],
    *,
    is_queued: bool,
) -> None:
    """Neither if it is so when it is looked for, nor if it became so before the mail was sent."""
    put(api(bob), november, "a.csv", NOON + 2 * DAY)
    expires(november, NOON + 3 * DAY)
    if is_queued:
        expiry_warnings.announce(now=NOON)
        assert Mail.objects.count() == 2

    change(november, alice)
    announce(NOON)

    assert mailbox.recipients == []
    assert not Mail.objects.exists()


def test_once_the_hold_is_lifted_it_is_told(november: Collection, alice: User, bob: User, mailbox: Mailbox) -> None:
    expires(november, NOON + DAY)
    placed = holds.place(november, filename=None, ref="", reason="a suit", by=alice, now=timezone.now())
    announce(NOON)
    holds.lift(placed, by=alice, now=timezone.now())
    announce(NOON + HOUR)
    announce(NOON + 2 * HOUR)
    assert mailbox.recipients == ["bob@example.org"]


def test_free_files_are_told_of_beside_a_held_one(
    november: Collection, alice: User, bob: User, api: Api, mailbox: Mailbox
) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        put(api(bob), november, name, NOON + DAY)
    hold_the_file(november, alice)
    announce(NOON)
    (message,) = mailbox.messages
    assert "2 files in the collection" in text_of(message)


# --- The mail ---


def curl_lines(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^curl (?:.*\\\n)*.*$", text, re.MULTILINE)]


@pytest.mark.parametrize("public_url", ["", "https://files.example.org"])
def test_collection_mail_says_what_when_and_how_to_keep_it(
    november: Collection, bob: User, api: Api, mailbox: Mailbox, settings: Settings, public_url: str
) -> None:
    settings.PUBLIC_URL, settings.APP_URL = public_url, ""
    base = public_url or "http://127.0.0.1:8000"
    for name in ("patients.csv", "b.csv"):
        put(api(bob), november, name)
    expires(november, NOON + 3 * DAY)

    announce(NOON)

    (message,) = mailbox.messages
    assert message["Subject"] == "November will be destroyed on 25 November 2026, 12:00 UTC"
    for kind in ("plain", "html"):
        text = text_of(message, kind)
        assert "patients" not in text
        for said in ("November", november.slug, "Acme", "25 November 2026, 12:00 UTC", "all its files (currently 2)"):
            assert said in " ".join(text.split())
        assert "Open the collection" not in text
    (words,) = curl_lines(text_of(message))
    assert words[1:3] == ["-X", "PATCH"]
    assert words[-1] == f"{base}{paths.COLLECTIONS}{november.slug}/"
    wish = json.loads(words[words.index("-d") + 1])
    assert api(bob).patch(words[-1].removeprefix(base), wish).json()["purge_at"] is None
    announce(NOON + 3 * DAY - HOUR)
    assert len(mailbox.messages) == 1


def test_files_mail_says_how_to_find_and_keep_them_without_their_names(
    november: Collection, bob: User, api: Api, mailbox: Mailbox
) -> None:
    put(api(bob), november, "patients.csv", NOON + DAY)
    put(api(bob), november, "b.csv", NOON + 2 * DAY)
    announce(NOON)

    message = next(each for each in mailbox.messages if "23 November" in str(each["Subject"]))
    assert "patients" not in message.as_string() + str(list(Mail.objects.values_list("facts")))
    find, keep = curl_lines(text_of(message))
    found = api(bob).get(find[-1].removeprefix("http://127.0.0.1:8000")).json()["results"]
    assert [each["filename"] for each in found] == ["patients.csv"]
    address = keep[-1].removeprefix("http://127.0.0.1:8000").replace("FILENAME", "patients.csv")
    assert api(bob).patch(address, json.loads(keep[keep.index("-d") + 1])).json()["keep_until"] is None


def test_mail_leads_to_the_frontend(november: Collection, bob: User, api: Api, mailbox: Mailbox, settings: Settings) -> None:
    settings.APP_URL = "https://app.example.org"
    put(api(bob), november, "a.csv", NOON + DAY)
    expires(november, NOON + 2 * DAY)
    announce(NOON)
    assert len(mailbox.messages) == 2
    for message in mailbox.messages:
        for kind in ("plain", "html"):
            assert f"https://app.example.org/collections/{november.slug}" in text_of(message, kind)


def test_mail_cannot_be_given_headers_or_markup(november: Collection, mailbox: Mailbox) -> None:
    Collection.objects.update(display_name='Nov\r\nBcc: mallory@example.org <img src="x">', purge_at=NOON + DAY)
    announce(NOON)
    (message,) = mailbox.messages
    assert message["Bcc"] is None
    assert "<img" in text_of(message)
    assert "<img" not in text_of(message, "html")


def test_mail_that_was_late_gives_way_to_the_next_one(november: Collection, mailbox: Mailbox) -> None:
    """F-34: the mail server was down for days."""
    expires(november, NOON + 7 * DAY)
    expiry_warnings.announce(now=NOON)
    announce(NOON + 6 * DAY + HOUR)
    assert queued() == [("collection_expires", "1")]
    assert len(mailbox.messages) == 1


def test_mail_server_that_is_down_is_waited_for(november: Collection, mailbox: Mailbox, settings: Settings) -> None:
    """F-34."""
    expires(november, NOON + 3 * DAY)
    mailbox.is_busy = True
    announce(NOON)
    assert (mailbox.recipients, Mail.objects.get().problem) == ([], "SMTPConnectError 421")
    mailbox.is_busy = False
    announce(NOON + HOUR)
    announce(NOON + 2 * HOUR)
    assert mailbox.recipients == ["bob@example.org"]


def test_it_is_looked_for_every_hour(november: Collection) -> None:
    expires(november, timezone.now() + DAY)
    entry: Any = app.conf.beat_schedule["purge announced"]
    assert entry["task"] == tasks.announce.name
    assert entry["schedule"].hour == set(range(24))
    assert entry["options"]["expires"] < 3600
    tasks.announce()
    assert Mail.objects.get().recipient == "bob@example.org"
