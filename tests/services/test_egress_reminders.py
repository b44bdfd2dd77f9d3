"""Reminders before a request ends by itself: to whoever has to do something about it, once (INV-16)."""

import re
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from egress import notifications
from tenants.models import Tenant, User
from tenants.work import outbox
from tests.factories import make_user
from tests.mailbox import Mailbox
from tests.services.egress import Api, make_reviewers, row
from tests.services.egress_mails import (
    DAY,
    approve,
    ask,
    deadline_of,
    fail,
    go_on,
    in_one_line,
    recipients,
    retry,
    send_back,
    set_policy,
    states,
    text_of,
    to,
)


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
def people(acme: Tenant, alice: User, carol: User, root: User) -> dict[str, User]:
    return make_reviewers(acme) | {"alice": alice, "carol": carol, "root": root}


# --- Reminders ---


def remind(mailbox: Mailbox, at: datetime) -> list[EmailMessage]:
    before = len(mailbox.messages)
    for _ in range(3):
        notifications.remind(now=at)
        outbox.send_due(now=at)
    return mailbox.messages[before:]


@pytest.mark.both_databases
def test_who_decides_is_reminded_once_before_the_deadline(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    deadline = deadline_of(request)
    assert remind(mailbox, deadline - timedelta(days=3, seconds=1)) == []
    reminded = remind(mailbox, deadline - timedelta(days=3))
    assert recipients(reminded) == to(people["grace"], people["gary"])
    assert re.fullmatch(r"Reminder, please decide by \d+ \w+: egress request for Results \(Acme\)", str(reminded[0]["Subject"]))
    assert remind(mailbox, deadline - DAY) == []
    assert remind(mailbox, deadline + DAY) == []


def test_nobody_is_reminded_of_what_they_did(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    """Not even if the reminder was written before."""
    request = in_review
    late = deadline_of(request) - DAY
    notifications.remind(now=late)
    approve(api, request, people["grace"])
    assert outbox.send_due(now=timezone.now()) == 2  # the next stage's calls
    assert mailbox.recipients[-2:] == to(people["rick"], people["ruth"])
    assert outbox.send_due(now=late) == 0
    assert recipients(remind(mailbox, late)) == to(people["rick"], people["ruth"])


def test_reminder_does_not_follow_on_the_heels_of_the_first_mail(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    """Of a stage that begins with a day left, and of a request that lives for a day."""
    set_policy(api(people["alice"]), request_expiry_days=1)
    request = ask(api(bob), mailbox, results)
    begun, deadline = row(request).changed_at, deadline_of(request)
    assert remind(mailbox, begun + timedelta(hours=1)) == []
    approve(api, request, people["grace"])
    go_on(mailbox)
    assert remind(mailbox, begun + timedelta(hours=11)) == []
    assert recipients(remind(mailbox, deadline - timedelta(hours=1))) == to(people["rick"], people["ruth"])


def test_requester_is_reminded_of_what_was_returned(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    send_back(api, request, people)
    go_on(mailbox)
    (message,) = remind(mailbox, deadline_of(request) - DAY)
    assert message["To"] == "bob@example.org"
    assert str(message["Subject"]).startswith("Reminder, please submit again by ")
    assert "Your request to release 3 files from the collection Results of Acme was returned to you" in text_of(message)
    assert "curl -H" in text_of(message)
    assert f"/api/v1/egress/requests/{request['id']}/" in text_of(message)


def test_admins_are_reminded_while_nobody_can_decide(mailbox: Mailbox, api: Api, alice: User, bob: User) -> None:
    request = ask(api(bob), mailbox)
    (message,) = remind(mailbox, deadline_of(request) - DAY)
    assert message["To"] == "alice@example.org"
    assert str(message["Subject"]).startswith("Reminder, no reviewer can decide: egress request for Results (Acme) expires on ")


def test_operators_and_the_requester_are_reminded_of_what_failed(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], own_buckets: Path, in_review: Any
) -> None:
    """Each of what they can do about it, and of no file (INV-15)."""
    idle = make_user("ines", is_superuser=True)
    User.objects.filter(pk=idle.pk).update(is_active=False)
    make_user("nora", is_superuser=True)
    User.objects.filter(username="nora").update(email="")
    request = in_review
    fail(api, request, people, own_buckets)
    go_on(mailbox)
    deadline = deadline_of(request)
    assert remind(mailbox, deadline - timedelta(days=3, seconds=1)) == []
    reminded = remind(mailbox, deadline - DAY)
    assert recipients(reminded) == to(bob, people["root"])
    assert {message["Cc"] for message in reminded} == {None}
    what = "to release 3 files from the collection Results of Acme was approved, but its package could not be built."
    button = "with the button on the request's page in the admin, or with POST"
    retry = f"http://127.0.0.1:8000/api/v1/egress/requests/{request['id']}/retry/"
    said = {
        "bob@example.org": f"Your request {what} The operators have also been reminded and can build the package again. You can "
        f"wait for them or withdraw the request. Otherwise the request expires on {notifications.format_moment(deadline)}.",
        "root@example.org": f"The request of bob@example.org {what} Resolve the problem. Then build the package again "
        f"{button} {retry}. Otherwise the request expires on {notifications.format_moment(deadline)}.",
    }
    for message in reminded:
        assert re.fullmatch(
            r"Reminder, failed and expires on \d+ \w+: egress request for Results \(Acme\)", str(message["Subject"])
        )
        for kind in ("plain", "html"):
            text = in_one_line(message, kind).replace("&#x27;", "'")
            assert said[str(message["To"])] in text
            assert "Problem: The copy of file 1 differs from the approved file." in text
            assert "another review" not in text
            assert "a.csv" not in text
    assert remind(mailbox, deadline - DAY / 2) == []


def test_nobody_is_reminded_of_what_is_built_again(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], own_buckets: Path, in_review: Any
) -> None:
    request = in_review
    fail(api, request, people, own_buckets)
    go_on(mailbox)
    late = deadline_of(request) - DAY
    notifications.remind(now=late)
    retry(api, request, people)
    assert remind(mailbox, late) == []
    assert states(api(people["root"]), request, "egress_reminder") == ["dropped"] * 2


def test_reminder_that_was_dropped_comes_if_there_is_a_reason_again(
    mailbox: Mailbox, api: Api, acme: Tenant, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    late = deadline_of(request) - DAY
    notifications.remind(now=late)
    Tenant.objects.filter(pk=acme.pk).update(is_active=False)
    assert remind(mailbox, late) == []
    Tenant.objects.filter(pk=acme.pk).update(is_active=True)
    assert recipients(remind(mailbox, late + timedelta(hours=1))) == to(people["grace"], people["gary"])
    assert states(api(bob), request, "egress_reminder") == ["dropped", "dropped", "sent", "sent"]


@pytest.mark.both_databases
def test_looking_for_whom_to_remind_costs_little_once_they_are(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    late = deadline_of(request) - DAY
    remind(mailbox, late)
    with CaptureQueriesContext(connection) as queries:
        notifications.remind(now=late)
    assert len(queries) == 2
