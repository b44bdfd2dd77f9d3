"""The mails about egress requests, as a real server gets them: to whom, when, once, and what they say.

INV-15, INV-16; F-34, F-49.
"""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from egress import notifications
from egress.models import StagedFile
from tenants import services as tenants
from tenants.models import Mail, Membership, Tenant, User
from tenants.work import outbox
from tests.factories import make_member
from tests.mailbox import Mailbox
from tests.services import worlds
from tests.services.egress import Api, fill, make_reviewers, path, row, see, submit, work_on
from tests.services.egress_mails import (
    DAY,
    approve,
    ask,
    be_deactivated,
    deadline_of,
    expire,
    fail,
    go_on,
    in_one_line,
    leave,
    lose_role,
    next_of,
    recipients,
    reject,
    release,
    retry,
    revoke,
    send_back,
    set_policy,
    shown,
    text_of,
    to,
)
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
def people(acme: Tenant, alice: User, carol: User, root: User) -> dict[str, User]:
    return make_reviewers(acme) | {"alice": alice, "carol": carol, "root": root}


# --- Whoever decides next ---


def test_reviewers_of_the_stage_are_asked_and_told_what_it_is_about(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], settings: Settings
) -> None:
    settings.APP_URL = "https://app.example.org"
    request = submit(api(bob), fill(api(bob), "Trial 7"))
    asked = go_on(mailbox)

    assert recipients(asked) == to(people["grace"], people["gary"])
    for message in asked:
        assert re.fullmatch(r"Please decide by \d+ \w+: egress request for Trial 7 \(Acme\)", str(message["Subject"]))
        assert message["Cc"] is None
        for kind in ("plain", "html"):
            text = in_one_line(message, kind)
            assert "bob@example.org requests the release of 3 files from the collection Trial 7 of Acme." in text
            assert "at stage 1 of 2 and waits for a decision by you or another user with the role information governance." in text
            assert f"Request: {request['id']} " in text
            assert "File types: csv, txt" in text
            assert "It is what the protocol allows." in text
            assert f"https://app.example.org/egress/{request['id']}" in text
            assert "Approved so far" not in text


def test_later_stages_learn_who_approved_before(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    approve(api, request, people["grace"])
    asked = go_on(mailbox)

    assert recipients(asked) == to(people["ruth"], people["rick"])
    for message in asked:
        for kind in ("plain", "html"):
            assert "Approved so far by: grace@example.org" in in_one_line(message, kind)
            assert "at stage 2 of 2 and waits for a decision by you or another user with the role research it." in in_one_line(
                message, kind
            )


def test_one_file_is_not_called_files(mailbox: Mailbox, api: Api, bob: User, people: dict[str, User]) -> None:
    submit(api(bob), fill(api(bob), files={"a.csv": b"1"}))
    for message in go_on(mailbox):
        assert "requests the release of 1 file from the collection" in in_one_line(message, "plain")


NAMES = ["patient-4711.csv", "results.John Smith", "data.patient-4711-in-full", "README", "x.tar.gz"]


def test_no_mail_names_a_file(mailbox: Mailbox, api: Api, bob: User, people: dict[str, User]) -> None:
    """INV-15. What follows the last dot is a type only if it looks like one."""
    request = submit(api(bob), fill(api(bob), files=dict.fromkeys(NAMES, b"1")))
    go_on(mailbox)
    for name in ("grace", "ruth"):
        approve(api, request, people[name])
        go_on(mailbox)

    assert len(mailbox.messages) == 5
    for message in mailbox.messages:
        assert "File types: csv, gz, other" in in_one_line(message, "plain")
        whole = message.as_string() + text_of(message) + text_of(message, "html")
        for word in ("4711", "smith", "readme", "tar", "in-full"):
            assert word not in whole.casefold(), word
        assert "results." not in whole
    assert {mail.kind for mail in Mail.objects.all()} == {"egress_review", "egress_outcome"}


def test_asked_are_only_those_who_may_decide(
    mailbox: Mailbox, api: Api, acme: Tenant, globex: Tenant, bob: User, people: dict[str, User], now: datetime, results: str
) -> None:
    """INV-16: not who asks, who wrote a file, who decided, who is inactive, or who has the role elsewhere."""
    zoe = make_member(acme, "zoe", "information_governance", "research_it", "member")
    writer = make_member(acme, "wim", "information_governance", "member")
    idle = make_member(acme, "ida", "information_governance")
    make_member(globex, "gwen", "information_governance")
    User.objects.filter(pk=idle.pk).update(is_active=False)
    put = api(writer).put(f"/api/v1/collections/{results}/content/w.csv", b"w", content_type="text/csv")
    assert put.status_code == 201, put.content
    request = submit(api(zoe), results)  # which all members can read

    assert recipients(go_on(mailbox)) == to(people["grace"], people["gary"])

    tenants.set_roles(
        membership=Membership.objects.get(user=people["grace"]),
        roles=["information_governance", "research_it"],
        by=people["alice"],
        now=now,
    )
    approve(api, request, people["grace"])
    assert recipients(go_on(mailbox)) == to(people["ruth"], people["rick"])


def test_admins_are_told_that_nobody_can_decide(mailbox: Mailbox, api: Api, acme: Tenant, alice: User, bob: User) -> None:
    adam = make_member(acme, "adam", "admin")
    request = submit(api(bob), fill(api(bob)))
    told = go_on(mailbox)

    assert recipients(told) == to(alice, adam)
    for message in told:
        assert message["Subject"] == "No reviewer can decide: egress request for Results (Acme)"
        for kind in ("plain", "html"):
            assert "waits for a reviewer with the role information governance (stage 1 of 2)" in in_one_line(message, kind)
            assert request["id"] in text_of(message, kind)


@pytest.mark.parametrize("happens", [lose_role, leave, be_deactivated])
def test_who_lost_the_right_before_the_mail_goes_gets_none(
    mailbox: Mailbox,
    api: Api,
    bob: User,
    people: dict[str, User],
    now: datetime,
    happens: Callable[[User, User, datetime], None],
    results: str,
) -> None:
    """INV-16, F-49."""
    request = submit(api(bob), results)
    work_on()
    assert Mail.objects.count() == 2
    happens(people["gary"], people["alice"], now)

    assert recipients(go_on(mailbox)) == to(people["grace"])
    assert shown(api(bob), request) == {"gary@example.org": "dropped", "grace@example.org": "sent"}


def test_request_that_moved_on_asks_nobody_for_what_is_done(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    request = submit(api(bob), results)
    work_on()
    approve(api, request, people["grace"])
    assert recipients(go_on(mailbox)) == to(people["ruth"], people["rick"])
    asked = {"ruth@example.org": "sent", "rick@example.org": "sent"}
    assert shown(api(bob), request) == asked | {"grace@example.org": "dropped", "gary@example.org": "dropped"}

    assert api(bob).post(path(request, "withdraw/"), {"reason": ""}).status_code == 200
    assert go_on(mailbox) == []


def test_new_round_asks_once_whoever_was_not_yet_reached_about_the_last(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    request = submit(api(bob), results)
    work_on()
    send_back(api, request, people)
    assert api(bob).post(path(request, "resubmit/"), {"files": ["a.csv"]}).status_code == 200
    asked = [message for message in go_on(mailbox) if message["To"] != "bob@example.org"]
    assert recipients(asked) == to(people["grace"], people["gary"])
    assert all("requests the release of 1 file from" in text_of(message) for message in asked)


def test_nobody_is_asked_while_the_tenant_is_suspended(
    mailbox: Mailbox, api: Api, acme: Tenant, bob: User, people: dict[str, User], results: str
) -> None:
    submit(api(bob), results)
    work_on()
    Tenant.objects.filter(pk=acme.pk).update(is_active=False)
    assert go_on(mailbox) == []


def test_stage_whose_decision_is_void_is_asked_again_and_told_why(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], now: datetime, approved: Any
) -> None:
    request = approved
    outbox.send_due(now=timezone.now())
    lose_role(people["grace"], people["alice"], now)
    asked = go_on(mailbox)

    assert see(api(bob), request)["status"] == "in_review"
    assert recipients(asked) == to(people["gary"])
    for kind in ("plain", "html"):
        text = in_one_line(asked[0], kind)
        assert "Approved so far by: ruth@example.org" in text
        assert "Reason for another review: No longer authorized to approve: grace (information_governance)." in text


# --- The requester ---


QUOTED = "> Table 2 shows single patients.\n> Round it, please.\n"
OUTCOMES: dict[Callable[[Api, Any, dict[str, User]], None], tuple[str, list[str]]] = {
    release: (
        "Approved, ready to download",
        [
            "was approved, and its package is ready, on ",
            "Decisions:\n\n> grace (information governance): It is what the protocol allows.\n> ruth (research it): ",
            "Next steps: The package can be downloaded once by the requester, until ",
        ],
    ),
    reject: ("Rejected", ["was rejected, on ", " by grace.", "Reason:\n\n" + QUOTED, "Next steps: Nothing was released."]),
    send_back: (
        "Returned for changes",
        [
            "was returned for changes, on ",
            " by grace.",
            "Reason:\n\n" + QUOTED,
            "submit the request again, or withdraw it. Otherwise it expires on ",
        ],
    ),
    expire: ("Expired", ["has expired, on ", "Reason:\n\n> The deadline has passed.", "Next steps: Nothing was released."]),
    revoke: (
        "Revoked",
        ["was revoked after its release, on ", " by rick.", "Reason:\n\n" + QUOTED, "can no longer be downloaded."],
    ),
}


def with_a_contact() -> Any:
    return worlds.in_review(contact_email="desk@acme.example.org", app_url="https://desk.acme.example.org/")


@pytest.mark.parametrize("happens", OUTCOMES, ids=lambda happens: happens.__name__)
@starts_from(with_a_contact)
def test_requester_is_told_what_became_of_it(
    mailbox: Mailbox,
    api: Api,
    bob: User,
    people: dict[str, User],
    happens: Callable[[Api, Any, dict[str, User]], None],
    built: Any,
) -> None:
    """With who decided first in Cc, from whom the policy names."""
    request = built
    happens(api, request, people)
    headline, words = OUTCOMES[happens]
    (message,) = go_on(mailbox, now=timezone.now() + (23 * DAY if happens is expire else DAY))

    assert (message["To"], message["Cc"]) == ("bob@example.org", "grace@example.org")
    assert mailbox.envelopes[-1] == ("strongroom@localhost", ["bob@example.org", "grace@example.org"])
    assert (message["From"], message["Sender"]) == ("desk@acme.example.org", "strongroom@localhost")
    assert message["Subject"] == f"{headline}: egress request for Results (Acme)"
    text = text_of(message)
    for each in [*words, f"Request: {request['id']}", "File types: csv, txt", "Questions: desk@acme.example.org"]:
        assert each in text, each
    for each in (text, text_of(message, "html")):
        assert f"https://desk.acme.example.org/egress/{request['id']}" in each
        assert "curl" not in each
    assert ("<blockquote>Table 2 shows single patients.<br>Round it, please.</blockquote>" in text_of(message, "html")) == (
        QUOTED in text
    )


def test_failure_is_told_to_who_approved_and_to_operators_each_apart(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], own_buckets: Path, approved: Any
) -> None:
    request = approved
    outbox.send_due(now=timezone.now())
    (own_buckets / "staging" / StagedFile.objects.get(request=request["id"], number=1).object_key).unlink()
    told = go_on(mailbox)

    assert recipients(told) == to(bob, people["ruth"], people["root"])
    assert {str(message["To"]): message["Cc"] for message in told} == {
        "bob@example.org": "grace@example.org",
        "ruth@example.org": None,
        "root@example.org": None,
    }
    for message in told:
        assert message["Subject"] == "Failed, nothing was released: egress request for Results (Acme)"
        assert "> The copy of file 1 differs from the approved file." in text_of(message)
    deadline = notifications.format_moment(deadline_of(request))
    retry = f"http://127.0.0.1:8000/api/v1/egress/requests/{request['id']}/retry/"
    following = {
        "bob@example.org": "Wait for the operators, who have been notified and can build the package again, or withdraw "
        "the request.",
        "ruth@example.org": "The requester and the operators have been notified. An operator can build the package again, a "
        "reviewer with the role research it can return the request, and the requester can withdraw it. Otherwise it expires "
        f"on {deadline}.",
        "root@example.org": "Resolve the problem that the reason describes. Then build the package again with the button on the "
        f"request's page in the admin, or with POST {retry}. Otherwise the request expires on {deadline}.",
    }
    for kind in ("plain", "html"):
        assert {str(message["To"]): next_of(message, kind) for message in told} == following


@pytest.mark.usefixtures("approved")
def test_failure_says_nothing_of_a_requester_who_is_gone(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], now: datetime
) -> None:
    leave(bob, people["alice"], now)
    told = {str(message["To"]): next_of(message) for message in go_on(mailbox)}
    assert sorted(told) == to(people["grace"], people["root"], people["ruth"])
    assert told["grace@example.org"].startswith("The operators have been notified. An operator can build the package again, ")


def test_others_are_told_whose_turn_it_is_when_the_requester_is_gone(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], now: datetime, in_review: Any
) -> None:
    request = in_review
    leave(bob, people["alice"], now)
    send_back(api, request, people)
    (message,) = go_on(mailbox)
    assert message["To"] == "grace@example.org"
    assert next_of(message).startswith("The requester can change the request and submit it again. Otherwise it expires on ")


def test_failure_that_is_told_of_late_says_what_to_do_if_it_failed_again(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], own_buckets: Path, in_review: Any
) -> None:
    request = in_review
    fail(api, request, people, own_buckets)
    retry(api, request, people)
    told = [next_of(message) for message in go_on(mailbox) if message["To"] == "bob@example.org"]
    assert len(told) == 2  # of each step
    assert all(each.startswith("Wait for the operators, ") for each in told), told


def test_failure_that_is_told_of_late_says_that_it_is_over(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], own_buckets: Path, in_review: Any
) -> None:
    request = in_review
    fail(api, request, people, own_buckets)
    retry(api, request, people)
    outbox.send_due(now=timezone.now())
    assert {next_of(message) for message in mailbox.messages[-3:]} == {"None. The request is now approved."}


def test_who_decided_is_told_when_the_requester_is_gone(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], now: datetime, in_review: Any
) -> None:
    request = in_review
    leave(bob, people["alice"], now)
    reject(api, request, people)
    (message,) = go_on(mailbox)
    assert (message["To"], message["Cc"]) == ("grace@example.org", None)
    assert "The request of bob to release 3 files from" in text_of(message)


def test_who_left_before_the_mail_goes_gets_no_copy(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], now: datetime, in_review: Any
) -> None:
    """INV-16: and the request does not say that they had one."""
    request = in_review
    reject(api, request, people)
    leave(people["grace"], people["alice"], now)
    (message,) = go_on(mailbox)
    assert (message["To"], message["Cc"]) == ("bob@example.org", None)
    assert see(api(bob), request)["notifications"][-1]["copies"] == []


def test_outcome_says_so_when_the_request_has_gone_on_since(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    send_back(api, request, people)
    assert api(bob).post(path(request, "withdraw/"), {"reason": ""}).status_code == 200
    (message,) = go_on(mailbox)
    assert "was returned for changes, on " in text_of(message)
    assert "Next steps: None. The request is now withdrawn." in text_of(message)


def test_outcome_is_about_the_files_of_its_round(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    send_back(api, request, people)
    assert api(bob).post(path(request, "resubmit/"), {"files": ["empty.txt"]}).status_code == 200
    (told,) = [message for message in go_on(mailbox) if message["To"] == "bob@example.org"]
    assert "to release 3 files from" in text_of(told)
    assert "File types: csv, txt" in text_of(told)


def test_release_says_who_may_download_and_how_often(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    set_policy(api(people["alice"]), downloaders=["requester", "data_manager"], max_downloads=3)
    request = ask(api(bob), mailbox, results)
    release(api, request, people)
    (message,) = go_on(mailbox)
    assert "downloaded 3 times by the requester or users with the role data manager, until " in text_of(message)


def test_extension_is_told_with_its_reason_and_the_new_time(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], released: Any
) -> None:
    request = released
    go_on(mailbox)
    reason = "The network was down all week."
    extend = {"days": 2, "downloads": 1, "reason": reason}
    assert api(people["ruth"]).post(path(request, "extend/"), extend).status_code == 200
    (message,) = go_on(mailbox)
    assert str(message["Subject"]).startswith("Extended: ")
    text = in_one_line(message, "plain")
    assert "was extended after its release" in text
    assert reason in text
    until = row(request).available_until
    assert until is not None
    assert f"downloaded 2 times by the requester, until {until:%-d %B %Y, %H:%M} UTC" in text


# --- A server that is down (F-34) ---


def test_decisions_stand_while_the_mail_server_is_down_and_the_mails_come_later_once(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    """F-34. What was to be asked meanwhile is asked no more."""
    mailbox.is_busy = True
    request = submit(api(bob), results)
    assert go_on(mailbox) == []
    assert shown(api(bob), request) == {"gary@example.org": "waiting", "grace@example.org": "waiting"}
    approve(api, request, people["grace"], people["ruth"])
    assert go_on(mailbox) == []
    assert see(api(bob), request)["status"] == "released"

    mailbox.is_busy = False
    later = timezone.now() + timedelta(hours=2)
    (message,) = go_on(mailbox, now=later)
    assert (message["To"], message["Cc"]) == ("bob@example.org", "grace@example.org")
    for hours in (3, 4):
        assert go_on(mailbox, now=later + timedelta(hours=hours)) == []
    over = dict.fromkeys(to(people["gary"], people["grace"], people["rick"], people["ruth"]), "dropped")
    assert shown(api(bob), request) == over | {"bob@example.org": "sent"}


def test_request_shows_what_became_of_each_mail(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], results: str
) -> None:
    mailbox.refused = {"gary@example.org"}
    request = submit(api(bob), results)
    go_on(mailbox)
    assert shown(api(bob), request) == {"grace@example.org": "sent", "gary@example.org": "waiting"}

    Mail.objects.filter(recipient="gary@example.org").update(attempts=outbox.MAX_ATTEMPTS)
    go_on(mailbox, now=timezone.now() + DAY)
    assert shown(api(bob), request) == {"grace@example.org": "sent", "gary@example.org": "failed"}

    reject(api, request, people)
    go_on(mailbox)
    last = see(api(bob), request)["notifications"][-1]
    assert (last["kind"], last["to"], last["copies"]) == ("egress_outcome", "bob@example.org", ["grace@example.org"])
    assert (last["state"], last["sent_at"] is not None) == ("sent", True)


def test_request_shows_which_copies_were_refused(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    mailbox.refused = {"grace@example.org"}
    reject(api, request, people)
    go_on(mailbox)
    *before, last = see(api(bob), request)["notifications"]
    assert mailbox.envelopes[-1][1] == ["bob@example.org"]
    assert list(last) == ["kind", "to", "copies", "refused", "state", "queued_at", "sent_at"]
    assert (last["state"], last["copies"], last["refused"]) == ("sent", ["grace@example.org"], ["grace@example.org"])
    assert [each["refused"] for each in before] == [[]] * 2


def test_operators_are_shown_to_operators_alone(
    mailbox: Mailbox, api: Api, bob: User, people: dict[str, User], own_buckets: Path, approved: Any
) -> None:
    """The mail of a failure went to each of them apart, and the request does not give them away either."""
    request = approved
    (own_buckets / "staging" / StagedFile.objects.get(request=request["id"], number=1).object_key).unlink()
    go_on(mailbox)
    for who in (bob, people["alice"], people["grace"]):
        assert "root@example.org" not in shown(api(who), request)
    assert shown(api(people["root"]), request).keys() >= {"root@example.org", "ruth@example.org"}
