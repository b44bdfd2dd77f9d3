"""Mails of a release: to those who may fetch it, and when nothing is left of it to be fetched (INV-16)."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from egress import jobs
from tenants.models import Tenant, User
from tenants.work import outbox
from tests.factories import make_member
from tests.mailbox import Mailbox
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import Api, body, decide, fill, make_reviewers, path, see, submit
from tests.services.egress_mails import (
    DAY,
    WHY,
    approve,
    be_deactivated,
    go_on,
    in_one_line,
    leave,
    lose_role,
    next_of,
    recipients,
    reject,
    revoke,
    send_back,
    set_policy,
    shown,
    states,
    text_of,
    to,
)
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
def people(acme: Tenant, alice: User, carol: User, root: User) -> dict[str, User]:
    return make_reviewers(acme) | {"alice": alice, "carol": carol, "root": root}


# --- Releases that are over when they are told of ---


def test_release_that_was_revoked_meanwhile_is_not_announced(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], released: Any
) -> None:
    """The mail of the revocation says what there is to say."""
    request = released
    assert api(people["rick"]).post(path(request, "revoke/"), {"reason": WHY}).status_code == 200
    (message,) = [each for each in go_on(mailbox) if each["To"] == "bob@example.org"]
    assert str(message["Subject"]).startswith("Revoked: ")
    assert states(api(bob), request) == ["dropped", "sent"]


def close(api: Api, request: Any, bob: User) -> None:
    jobs.end_expired(now=timezone.now() + 8 * DAY)
    assert see(api(bob), request)["status"] == "closed"


def download(api: Api, request: Any, bob: User) -> None:
    assert body(api(bob).get(path(request, "package.zip")))
    assert see(api(bob), request)["status"] == "released"


def let_time_pass(api: Api, request: Any, bob: User) -> None:
    """The tick that would close it is behind that of the mails."""


@pytest.mark.parametrize("happens", [close, download, let_time_pass])
def test_release_of_which_nothing_is_left_is_not_said_to_be_ready(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], happens: Callable[[Api, Any, User], None], released: Any
) -> None:
    request = released
    happens(api, request, bob)
    before = len(mailbox.messages)
    outbox.send_due(now=timezone.now() + (timedelta() if happens is download else 8 * DAY))
    (message,) = [each for each in mailbox.messages[before:] if each["To"] == "bob@example.org"]
    assert message["Subject"] == "Approved, no longer available: egress request for Results (Acme)"
    for kind in ("plain", "html"):
        assert "of Acme was approved, and its package was released, on " in in_one_line(message, kind)
        assert next_of(message, kind) == (
            "The package can no longer be downloaded: its download window has ended, or it has reached its number of downloads."
        )
        assert "ready" not in in_one_line(message, kind)


# --- Those who fetch it, if that is not the requester ---


def in_review_for_fetchers() -> Any:
    """With those whom the policy names, and some who look as if it did."""
    request = worlds.in_review(downloaders=["data_manager", "statistician"])
    acme, globex = Tenant.objects.get(slug="acme"), Tenant.objects.get(slug="globex")
    make_member(acme, "dan", "data_manager")
    make_member(acme, "dot", "statistician", "data_manager")
    idle = make_member(acme, "ida", "data_manager")
    User.objects.filter(pk=idle.pk).update(is_active=False)
    make_member(globex, "gwen", "data_manager")
    make_member(acme, "max", "data_managers")
    return request


def released_for_fetchers() -> Any:
    return worlds.release(worlds.approve(in_review_for_fetchers()))


@pytest.fixture
@mark_dependents(starts_from(in_review_for_fetchers))
def in_review_for(own_buckets: Path, built: Any) -> Any:
    """A request whose package the policy lets others fetch."""
    return built


@pytest.fixture
@mark_dependents(starts_from(released_for_fetchers))
def released_for(own_buckets: Path, built: Any) -> Any:
    return built


@pytest.fixture
def fetchers(db: None) -> dict[str, User]:
    """Whom the policy names."""
    return {user.username: user for user in User.objects.filter(username__in=["dan", "dot"])}


def test_release_is_told_to_whom_the_policy_names_each_apart(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], fetchers: dict[str, User], released_for: Any
) -> None:
    """INV-16: who is active, and in the tenant."""
    request = released_for
    told = go_on(mailbox)
    assert recipients(told) == to(bob, *fetchers.values())
    for message in told:
        assert message["Cc"] == ("grace@example.org" if message["To"] == "bob@example.org" else None)
        assert message["Subject"] == "Approved, ready to download: egress request for Results (Acme)"
        assert "by users with the role data manager or users with the role statistician, until " in next_of(message)
        others = {person.email for person in fetchers.values()} - {str(message["To"])}
        assert not [address for address in others if address in message.as_string() + text_of(message)]
    assert go_on(mailbox, now=timezone.now() + DAY) == []
    dan = api(fetchers["dan"])
    assert see(dan, request)["allowed_actions"] == ["download"]


def test_who_asked_or_decided_first_and_may_fetch_is_told_once(
    mailbox: Mailbox, api: Api, acme: Tenant, people: dict[str, User]
) -> None:
    set_policy(api(people["alice"]), downloaders=["member", "information_governance", "research_it"])
    zoe = make_member(acme, "zoe", "member")
    request = submit(api(zoe), fill(api(zoe)))
    go_on(mailbox)
    approve(api, request, people["grace"])
    go_on(mailbox)
    approve(api, request, people["ruth"])
    told = go_on(mailbox)
    addresses = [address for message in told for address in str(message["To"]).split() + str(message["Cc"] or "").split()]
    assert sorted(addresses) == to(zoe, *(people[name] for name in ("carol", "grace", "gary", "ruth", "rick")))


@pytest.mark.parametrize("happens", [lose_role, leave, be_deactivated])
def test_who_may_not_fetch_it_any_more_when_the_mail_goes_gets_none(
    mailbox: Mailbox,
    api: Api,
    bob: User,
    people: dict[str, User],
    fetchers: dict[str, User],
    now: datetime,
    happens: Callable[[User, User, datetime], None],
    released_for: Any,
) -> None:
    """INV-16, F-49."""
    request = released_for
    happens(fetchers["dan"], people["alice"], now)
    assert recipients(go_on(mailbox)) == to(bob, fetchers["dot"])
    assert shown(api(bob), request)["dan@example.org"] == "dropped"


def test_revocation_is_told_to_whoever_may_have_fetched_it(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], fetchers: dict[str, User], in_review_for: Any
) -> None:
    request = in_review_for
    revoke(api, request, people)
    told = go_on(mailbox)
    assert recipients(told) == to(bob, *fetchers.values())
    assert {str(message["Subject"]).partition(":")[0] for message in told} == {"Revoked"}


@pytest.mark.parametrize("happens", [reject, send_back])
def test_what_was_not_released_is_nothing_to_whoever_would_have_fetched_it(
    mailbox: Mailbox,
    api: Api,
    bob: User,
    people: dict[str, User],
    fetchers: dict[str, User],
    happens: Callable[[Api, Any, dict[str, User]], None],
    in_review_for: Any,
) -> None:
    request = in_review_for
    happens(api, request, people)
    assert recipients(go_on(mailbox)) == to(bob)


def test_words_of_one_reviewer_pass_for_no_others(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    forged = "Fine with me.\nruth (research it): Never, says the board."
    assert decide(api(people["grace"]), request, "approve", forged).status_code == 201
    approve(api, request, people["ruth"])
    (message,) = [each for each in go_on(mailbox) if each["To"] == "bob@example.org"]
    assert re.findall(r"^> (\w+) ", text_of(message), re.MULTILINE) == ["grace", "ruth"]


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_names_and_words_are_no_markup_and_no_lines_of_their_own(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], kind: str
) -> None:
    slug = fill(api(bob), "<b>Bold</b>")
    submit(api(bob), slug, justification="Because <script>alert(1)</script>.\nReason: all is well")
    text = text_of(go_on(mailbox)[0], kind)
    if kind == "html":
        assert "<script" not in text
        assert "&lt;b&gt;Bold" in text
    else:
        assert "> Because <script>alert(1)</script>.\n> Reason: all is well\n" in text
