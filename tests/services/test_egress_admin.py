"""The admin pages of egress: they show, and what operators do there is a service's (INV-12; F-61)."""

import re
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from egress.models import Decision, EgressPolicy, EgressRequest, StagedFile, Transition
from egress.states import State
from tenants.models import AuditEvent, Tenant, User
from tests.services.egress import FILES, Api, body, decide, fill, make_reviewers, path, row, see, submit, work_on


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]
WHY = "The board withdrew its consent."


def url(page: str, *arguments: object) -> str:
    return reverse(f"admin:egress_{page}", args=arguments)


REQUESTS = "egressrequest_changelist"


@pytest.fixture
def site(root: User) -> Client:
    """root, signed in."""
    client = Client()
    client.force_login(root)
    return client


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


def ask(api: Api, bob: User, name: str) -> Any:
    request = submit(api(bob), fill(api(bob), name, {"other.csv": b"1"}))
    work_on()
    return request


def approve(api: Api, request: Any, people: dict[str, User]) -> None:
    for name in ("grace", "ruth"):
        assert decide(api(people[name]), request).status_code == 201


@pytest.fixture
def failed(api: Api, bob: User, approved: Any, own_buckets: Any) -> Any:
    """Its first copy was gone from staging for a while: it is back by now."""
    request = approved
    copy = own_buckets / "staging" / StagedFile.objects.get(request=request["id"], number=1).object_key
    away = copy.rename(own_buckets / "away")
    work_on()
    away.rename(copy)
    assert see(api(bob), request)["status"] == "failed"
    return request


def press(site: Client, action: str, *requests: Any, **form: str) -> Any:
    chosen = [request["id"] for request in requests]
    return site.post(url(REQUESTS), {"action": action, "_selected_action": chosen, **form}, follow=True)


def said(answer: Any) -> list[str]:
    return [str(message) for message in answer.context["messages"]]


# --- What it shows ---


def test_list_shows_where_each_request_is(site: Client, in_review: Any) -> None:
    page = site.get(url(REQUESTS)).content.decode()
    for each in (in_review["id"], in_review["collection"], "acme", "bob", "In review", "information_governance", "0 of 1"):
        assert each in page, each


@pytest.mark.parametrize(
    ("field", "value", "is_found"),
    [
        ("q", "id", True),
        ("q", "collection", True),
        ("q", "collection_name", True),
        ("q", "requester", True),
        ("q", "nobody", False),
        ("status__exact", "in_review", True),
        ("status__exact", "released", False),
    ],
)
def test_list_is_searched_and_filtered(
    site: Client,
    in_review: Any,
    field: str,
    value: str,
    is_found: bool,  # noqa: FBT001
) -> None:
    page = site.get(url(REQUESTS), {field: in_review.get(value, value)}).content.decode()
    assert (url("egressrequest_change", in_review["id"]) in page) == is_found


def test_page_shows_the_request_with_all_that_happened_and_no_content(site: Client, api: Api, bob: User, released: Any) -> None:
    assert len(body(api(bob).get(path(released, "package.zip")))) > 0
    page = site.get(url("egressrequest_change", released["id"])).content.decode()

    for each in (released["id"], released["collection"], released["justification"], "1 of 1", "grace@example.org", "ruth"):
        assert each in page, each
    assert re.findall(r'field-stage_number">.*?<p>(\d)</p>', page, re.DOTALL)[-2:] == ["1", "2"]  # of the decisions
    for state in (State.SUBMITTED, State.IN_REVIEW, State.APPROVED, State.RELEASED):
        assert str(state.label) in page
    assert 'name="_save"' not in page
    assert "a,1" not in page
    for link in (f"{url('stagedfile_changelist')}?request__id__exact={released['id']}", f"/tenants/mail/?q={released['id']}"):
        assert link in page
        assert site.get(link if link.startswith("/admin") else f"/admin{link}").status_code == 200


def test_items_are_listed_by_request_with_their_copies_state(
    site: Client, api: Api, bob: User, people: dict[str, User], released: Any
) -> None:
    other = ask(api, bob, "Others")
    assert body(api(people["gary"]).get(path(other, "items/1/content")))
    page = site.get(url("stagedfile_changelist"), {"request__id__exact": released["id"]}).content.decode()
    for name in FILES:
        assert name in page
    assert page.count('field-status">Wiped') == 3
    assert "other.csv" not in page
    assert "gary" not in page
    everything = site.get(url("stagedfile_changelist")).content.decode()
    assert "other.csv" in everything
    assert "gary" in everything  # who opened it


def queries_of(site: Client, page: str) -> int:
    site.get(page)
    with CaptureQueriesContext(connection) as queries:
        assert site.get(page).status_code == 200
    return len(queries)


def test_pages_take_as_many_queries_for_many_as_for_one(
    site: Client, api: Api, bob: User, people: dict[str, User], in_review: Any
) -> None:
    request = in_review
    pages = [
        url(REQUESTS),
        url("stagedfile_changelist"),
        url("egressrequest_change", request["id"]),
        url("egresspolicy_changelist"),
    ]
    before = [queries_of(site, page) for page in pages]
    for name in ("One", "Two", "Three"):
        ask(api, bob, name)
    approve(api, request, people)
    work_on()
    assert [queries_of(site, page) for page in pages] == before


def test_policy_is_shown_and_not_edited(site: Client, api: Api, alice: User) -> None:
    assert api(alice).put("/api/v1/tenants/acme/egress-policy/", {"max_downloads": 7}).status_code == 200
    policy = EgressPolicy.objects.get()
    page = site.get(url("egresspolicy_change", policy.pk)).content.decode()
    assert "information_governance" in page
    assert 'name="_save"' not in page
    assert site.post(url("egresspolicy_change", policy.pk), {"max_downloads": "9"}).status_code == 403
    assert site.get(url("egresspolicy_add")).status_code == 403
    policy.refresh_from_db()
    assert (policy.max_downloads, policy.version) == (7, 1)


# --- What it does not do ---


def test_nothing_of_a_request_is_edited_added_or_deleted(site: Client, released: Any) -> None:
    """INV-12, F-61."""
    item = StagedFile.objects.get(request=released["id"], number=1)
    for model, pk in (("egressrequest", released["id"]), ("stagedfile", item.pk)):
        form = {
            "status": "rejected", "max_downloads": "9", "policy": "{}", "post": "yes",
            "steps-TOTAL_FORMS": "0", "steps-INITIAL_FORMS": "0",
            "decisions-TOTAL_FORMS": "1", "decisions-INITIAL_FORMS": "0", "decisions-0-verdict": "approve",
            "downloads-TOTAL_FORMS": "0", "downloads-INITIAL_FORMS": "0",
        }  # fmt: skip
        assert site.post(url(f"{model}_change", pk), form).status_code == 403
        assert site.post(url(f"{model}_delete", pk), form).status_code == 403
        assert site.get(url(f"{model}_add")).status_code == 403
        site.post(url(f"{model}_changelist"), {"action": "delete_selected", "_selected_action": [pk], "post": "yes"})
    assert (row(released).status, row(released).max_downloads, Decision.objects.count()) == ("released", 1, 2)
    assert StagedFile.objects.filter(pk=item.pk).exists()


def test_decisions_steps_and_openings_have_no_page_of_their_own() -> None:
    names = {model.__name__ for model in admin.site._registry}
    assert {"EgressRequest", "StagedFile", "EgressPolicy"} <= names
    assert not names & {"Decision", "Transition", "ReadReceipt", "Download", "Contributor"}


@pytest.mark.parametrize("page", [REQUESTS, "stagedfile_changelist", "egresspolicy_changelist"])
def test_pages_are_closed_to_who_is_no_superuser(api: Api, alice: User, page: str) -> None:
    client = Client()
    client.force_login(alice)
    assert client.get(url(page)).status_code == 302
    User.objects.filter(pk=alice.pk).update(is_staff=True)
    assert client.get(url(page)).status_code == 403


def test_staff_who_may_look_press_nothing(api: Api, alice: User, bob: User, released: Any) -> None:
    User.objects.filter(pk=alice.pk).update(is_staff=True)
    alice.user_permissions.set(Permission.objects.filter(content_type__app_label="egress"))
    client = Client()
    client.force_login(alice)
    page = client.get(url("egressrequest_change", released["id"])).content.decode()
    assert released["id"] in page
    assert "Revoke" not in page
    press(client, "revoke", released, reason=WHY)
    assert row(released).status == "released"


# --- Buttons ---


def test_operator_revokes_and_says_why(site: Client, api: Api, bob: User, released: Any) -> None:
    page = site.get(url("egressrequest_change", released["id"])).content.decode()
    assert 'value="revoke"' in page
    assert 'value="build_again"' not in page

    asked = press(site, "revoke", released).content.decode()
    assert released["collection"] in asked
    assert "csrfmiddlewaretoken" in asked
    assert row(released).status == "released"
    assert re.findall(r'name="(\w+)" value="([\w-]+)"', asked)[-2:] == [
        ("action", "revoke"),
        ("_selected_action", released["id"]),
    ]

    assert said(press(site, "revoke", released, reason=WHY)) == [f"Revoke: egress request {released['id']}: done."]
    assert see(api(bob), released)["status"] == "revoked"
    step = Transition.objects.filter(request=released["id"]).latest("number")
    assert (step.to_status, step.by_name, step.reason) == ("revoked", "root", WHY)
    event = AuditEvent.objects.filter(action="egress.revoke").get()
    assert (event.actor, event.target_id) == ("root", released["id"])
    assert api(bob).get(path(released, "package.zip")).status_code == 409


def test_operator_has_a_package_built_again(site: Client, api: Api, bob: User, failed: Any) -> None:
    assert 'value="build_again"' in site.get(url("egressrequest_change", failed["id"])).content.decode()
    assert "Reason, recorded" in press(site, "build_again", failed).content.decode()
    assert said(press(site, "build_again", failed, reason="")) == [
        f"Build the package again: egress request {failed['id']}: done."
    ]
    assert row(failed).status == "approved"
    work_on()
    assert see(api(bob), failed)["status"] == "released"


@pytest.mark.parametrize(
    ("action", "reason", "words"),
    [
        ("build_again", WHY, "This is not possible while the request is released."),
        ("revoke", "", "This field may not be blank."),
        ("revoke", "short", "Give a reason of at least 10 characters."),
        ("revoke", "with a bell \x07 in it", "Control characters are not allowed."),
        ("revoke", "x" * 5001, "Ensure this field has no more than 5000 characters."),
    ],
)
def test_refusal_is_a_message_and_no_error_page(site: Client, released: Any, action: str, reason: str, words: str) -> None:
    answer = press(site, action, released, reason=reason)
    assert answer.status_code == 200
    (message,) = said(answer)
    assert message.endswith(f"egress request {released['id']}: {words}")
    assert row(released).status == "released"


def test_refusal_of_one_keeps_no_other_from_it(site: Client, api: Api, bob: User, people: dict[str, User], released: Any) -> None:
    other = ask(api, bob, "Others")
    messages = said(press(site, "revoke", released, other, reason=WHY))
    assert sorted(message.rpartition(": ")[2] for message in messages) == [
        "This is not possible while the request is in review.",
        "done.",
    ]
    assert (row(released).status, row(other).status) == ("revoked", "in_review")


def test_buttons_take_a_form_of_our_own_pages(root: User, released: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(root)
    answer = client.post(url(REQUESTS), {"action": "revoke", "_selected_action": [released["id"]], "reason": WHY})
    assert answer.status_code == 403
    assert EgressRequest.objects.get().status == "released"
