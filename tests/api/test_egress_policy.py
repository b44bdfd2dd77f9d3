"""GET, PUT /api/v1/tenants/{tenant}/egress-policy/: the rules that requests are submitted under."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from rest_framework.test import APIClient

from tenants.models import Membership, Tenant, User
from tests.api.answers import audited, facts, problem
from tests.factories import make_key, make_member
from tests.services.egress import REASON, body, decide, fill, make_reviewers, path, see, submit, work_on


pytestmark = pytest.mark.usefixtures("vault")
Api = Callable[[User | str | None], APIClient]
POLICY = "/api/v1/tenants/acme/egress-policy/"
DEFAULT = {
    "version": 0,
    "stages": ["information_governance", "research_it"],
    "single_approval": False,
    "max_downloads": 1,
    "download_window_days": 7,
    "request_expiry_days": 21,
    "file_types": [],
    "max_files": 10_000,
    "max_file_bytes": None,
    "max_total_bytes": None,
    "min_reason_length": 10,
    "downloaders": ["requester"],
    "release_format": "sealed",
    "contact_email": "",
    "app_url": "",
}
CHANGED = {
    "stages": ["lawyer", "information_governance"],
    "single_approval": True,
    "max_downloads": 3,
    "download_window_days": 14,
    "request_expiry_days": 30,
    "file_types": ["csv", "txt"],
    "max_files": 5,
    "max_file_bytes": 1_000,
    "max_total_bytes": 2_000,
    "min_reason_length": 20,
    "downloaders": ["requester", "data_manager"],
    "release_format": "sealed",
    "contact_email": "egress@acme.example",
    "app_url": "https://app.acme.example",
}


def replace(api: Api, by: User, **wish: Any) -> Any:
    answer = api(by).put(POLICY, wish)
    assert answer.status_code == 200, answer.json()
    return answer.json()


# --- Who ---


def test_everybody_in_the_tenant_reads_the_default_policy(
    api: Api, alice: User, bob: User, erin: User, rita: User, root: User
) -> None:
    for user in (alice, bob, erin, rita, root):
        answer = api(user).get(POLICY)
        assert (user.username, answer.status_code, answer.json()) == (user.username, 200, DEFAULT)


def test_policy_of_another_tenant_is_not_there(api: Api, acme: Tenant, mallory: User) -> None:
    """INV-01."""
    for answer in (api(mallory).get(POLICY), api(mallory).put(POLICY, {"max_downloads": 9})):
        problem(answer, 404, "not_found")


def test_admins_and_superusers_replace_it_and_nobody_else(
    api: Api, alice: User, bob: User, erin: User, rita: User, root: User
) -> None:
    for user in (bob, erin, rita):
        problem(api(user).put(POLICY, {"max_downloads": 9}), 403, "refused")
    assert api(bob).get(POLICY).json() == DEFAULT
    for version, user in enumerate((alice, root), start=1):
        assert replace(api, user, max_downloads=version + 1) == DEFAULT | {"version": version, "max_downloads": version + 1}


def test_key_of_an_admin_replaces_it_with_the_scope_for_that(api: Api, alice: User) -> None:
    problem(api(make_key(alice, "read", "write")).put(POLICY, {}), 403, "insufficient_scope")
    assert api(make_key(alice, "administer")).put(POLICY, {}).status_code == 200


# --- What ---


def test_every_field_is_replaced_and_what_is_left_out_has_its_default(api: Api, alice: User, bob: User) -> None:
    assert replace(api, alice, **CHANGED) == CHANGED | {"version": 1}
    assert api(bob).get(POLICY).json() == CHANGED | {"version": 1}
    assert replace(api, alice) == DEFAULT | {"version": 2}


def test_what_was_read_can_be_sent_back(api: Api, alice: User) -> None:
    read = replace(api, alice, **CHANGED)
    assert replace(api, alice, **read) == CHANGED | {"version": 2}


MEANINGLESS: list[tuple[str, object]] = [
    ("stages", []),
    ("stages", None),
    ("stages", "research_it"),
    ("stages", ["Research IT"]),
    ("stages", ["research_it", "research_it"]),
    ("stages", ["research_it", "admin"]),
    ("stages", ["member"]),
    ("stages", ["auditor"]),
    ("stages", [f"stage_{letter}" for letter in "abcdefghijk"]),
    ("stages", ["x" * 41]),
    ("stages", [["research_it"]]),
    ("single_approval", "perhaps"),
    ("single_approval", None),
    ("max_downloads", 0),
    ("max_downloads", 1_001),
    ("max_downloads", 1.5),
    ("max_downloads", None),
    ("download_window_days", 0),
    ("download_window_days", 367),
    ("request_expiry_days", 0),
    ("request_expiry_days", 367),
    ("file_types", [".csv"]),
    ("file_types", ["CSV"]),
    ("file_types", [""]),
    ("file_types", "csv"),
    ("file_types", ["csv"] * 101),
    ("max_files", 0),
    ("max_files", 10_001),
    ("max_file_bytes", 0),
    ("max_file_bytes", 2**63),
    ("max_total_bytes", -1),
    ("min_reason_length", 0),
    ("min_reason_length", 1_001),
    ("downloaders", []),
    ("downloaders", ["Requester"]),
    ("downloaders", ["carol@example.org"]),
    ("downloaders", ["requester", "data manager"]),
    ("release_format", "zip"),
    ("contact_email", "nobody"),
    ("contact_email", "a@example.org\nBcc: b@example.org"),
    ("app_url", "app.acme.example"),
    ("app_url", "javascript:alert(1)"),
]


def test_value_that_means_nothing_is_refused_by_the_name_of_its_field(api: Api, alice: User, subtests: pytest.Subtests) -> None:
    client = api(alice)
    for field, value in MEANINGLESS:
        with subtests.test(f"{field}: {value}"):
            answer = client.put(POLICY, CHANGED | {field: value})
            refused = problem(answer, 400, answer.json()["code"])
            assert {name.partition(".")[0] for name in refused["errors"]} == {field}
    assert client.get(POLICY).json() == DEFAULT


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("file_types", [".csv"], "without its dot"), ("downloaders", ["carol@x"], "`requester` or a role")],
)
def test_refusal_says_what_is_expected(api: Api, alice: User, field: str, value: object, says: str) -> None:
    refused = problem(api(alice).put(POLICY, {field: value}), 400, "invalid")
    assert says in refused["errors"][f"{field}.0"][0]["detail"]


def test_plain_packages_only_where_the_tenant_allows_files_without_encryption(api: Api, alice: User, acme: Tenant) -> None:
    refused = problem(api(alice).put(POLICY, {"release_format": "plain"}), 400, "cipher_not_allowed")
    assert set(refused["errors"]) == {"release_format"}
    acme.allowed_ciphers = ["AES-GCM", "NONE"]
    acme.save()
    assert replace(api, alice, release_format="plain")["release_format"] == "plain"


def test_change_is_on_record_with_what_changed(api: Api, alice: User, root: User) -> None:
    """INV-14."""
    replace(api, alice, stages=["lawyer"], max_downloads=3)
    replace(api, root, stages=["lawyer"], max_downloads=4)
    assert audited("egress.policy") == [("egress.policy", "alice"), ("egress.policy", "root")]
    assert facts("egress.policy") == {"stages": "['lawyer']", "max_downloads": "3", "version": "1"}
    assert facts("egress.policy", 1) == {"max_downloads": "4", "version": "2"}


def test_refused_change_is_not_on_record(api: Api, alice: User, bob: User) -> None:
    api(bob).put(POLICY, {"max_downloads": 9})
    api(alice).put(POLICY, {"max_downloads": 0})
    assert audited("egress.policy") == []


# --- What it holds for ---


def test_requests_keep_the_policy_that_they_were_submitted_under(api: Api, alice: User, acme: Tenant, bob: User) -> None:
    grace = make_reviewers(acme)["grace"]
    asking = api(bob)
    slug = fill(asking)
    before = submit(asking, slug)
    work_on()
    replace(api, alice, stages=["lawyer"], max_downloads=5, min_reason_length=500)
    kept = see(asking, before)
    assert kept["policy"] == DEFAULT
    assert (kept["stages"], kept["max_downloads"]) == (DEFAULT["stages"], 1)
    assert decide(api(grace), before).status_code == 201
    asking.post(path(before, "withdraw/"), {})
    after = api(bob).post("/api/v1/egress/requests/", {"collection": slug, "justification": "x" * 500})
    assert after.status_code == 201, after.json()
    assert after.json()["policy"] == DEFAULT | {"version": 1, "stages": ["lawyer"], "max_downloads": 5, "min_reason_length": 500}
    assert after.json()["stages"] == ["lawyer"]


def test_next_round_keeps_the_policy_of_the_first(api: Api, alice: User, acme: Tenant, bob: User) -> None:
    grace = make_reviewers(acme)["grace"]
    request = submit(api(bob), fill(api(bob)))
    work_on()
    decide(api(grace), request, "return")
    replace(api, alice, stages=["lawyer"], file_types=["pdf"])
    again = api(bob).post(path(request, "resubmit/"), {})
    assert again.status_code == 200, again.json()
    assert (again.json()["policy"], again.json()["round"]) == (DEFAULT, 2)


def test_single_approval_asks_the_first_stage_alone(api: Api, alice: User, acme: Tenant, bob: User) -> None:
    grace = make_reviewers(acme)["grace"]
    replace(api, alice, single_approval=True)
    request = submit(api(bob), fill(api(bob)))
    assert request["stages"] == ["information_governance"]
    work_on()
    assert decide(api(grace), request).json()["status"] == "approved"


# --- Who may fetch the package ---


def released(api: Api, acme: Tenant, requester: User) -> Any:
    reviewers = make_reviewers(acme)
    request = submit(api(requester), fill(api(requester)))
    work_on()
    for name in ("grace", "ruth"):
        assert decide(api(reviewers[name]), request).status_code == 201
    work_on()
    return request


def test_role_that_the_policy_names_finds_the_released_request_and_fetches_it(
    api: Api, alice: User, acme: Tenant, bob: User, carol: User
) -> None:
    dana = make_member(acme, "dana", "data_manager")
    replace(api, alice, downloaders=["data_manager"])
    request = released(api, acme, bob)
    for user in (bob, carol):
        status = 403 if user == bob else 404
        assert api(user).get(path(request, "package.zip")).status_code == status
    assert "download" not in see(api(bob), request)["allowed_actions"]
    assert [found["id"] for found in api(dana).get("/api/v1/egress/requests/").json()["results"]] == [request["id"]]
    assert see(api(dana), request)["allowed_actions"] == ["download"]
    assert body(api(dana).get(path(request, "package.zip"))).startswith(b"PK")
    problem(api(dana).get(path(request, "package.zip")), 409, "downloads_used")


def test_role_that_the_policy_names_sees_nothing_before_the_release(
    api: Api, alice: User, acme: Tenant, bob: User, globex: Tenant, now: datetime
) -> None:
    dana = make_member(acme, "dana", "data_manager")
    stranger = make_member(globex, "stranger", "data_manager")
    replace(api, alice, downloaders=["data_manager"])
    request = submit(api(bob), fill(api(bob)))
    work_on()
    for user in (dana, stranger):
        assert api(user).get("/api/v1/egress/requests/").json()["results"] == []
        problem(api(user).get(path(request)), 404, "not_found")
    assert REASON not in str(api(stranger).get("/api/v1/egress/requests/").content)


def test_role_that_is_called_requester_is_not_the_requester(api: Api, acme: Tenant, bob: User) -> None:
    quinn = make_member(acme, "quinn", "requester")
    request = released(api, acme, bob)
    problem(api(quinn).get(path(request, "package.zip")), 404, "not_found")
    Membership.objects.filter(user=quinn).update(roles=["requester", "auditor"])
    problem(api(quinn).get(path(request, "package.zip")), 403, "refused")


def test_name_that_is_no_field_is_refused(api: Api, alice: User) -> None:
    """What is left out has its default, so that a slip of the pen would open what was closed."""
    replace(api, alice, file_types=["csv"])
    refused = problem(api(alice).put(POLICY, {"single_aproval": True, "file_typs": ["csv"]}), 400, "invalid")
    assert sorted(refused["errors"]) == ["file_typs", "single_aproval"]
    assert api(alice).get(POLICY).json()["file_types"] == ["csv"]


def test_policy_that_somebody_changed_meanwhile_is_not_overwritten(api: Api, alice: User, root: User) -> None:
    read = api(alice).get(POLICY).json()
    replace(api, root, max_downloads=2)
    problem(api(alice).put(POLICY, read | {"file_types": ["csv"]}), 409, "policy_changed")
    assert api(alice).get(POLICY).json()["max_downloads"] == 2
    read = api(alice).get(POLICY).json()
    assert replace(api, alice, **read | {"file_types": ["csv"]})["version"] == 2


def test_auditors_are_no_downloaders(api: Api, alice: User) -> None:
    """They get no bytes, whatever an admin says."""
    refused = problem(api(alice).put(POLICY, {"downloaders": ["requester", "auditor"]}), 400, "invalid")
    assert list(refused["errors"]) == ["downloaders"]


@pytest.mark.parametrize("address", ['"\x01"@example.org', '""@example.org', '"a b"@example.org'])
def test_contact_of_whom_no_mail_could_be_is_refused(api: Api, alice: User, address: str) -> None:
    refused = problem(api(alice).put(POLICY, {"contact_email": address}), 400, "invalid")
    assert list(refused["errors"]) == ["contact_email"]


def test_stage_that_is_not_asked_sees_the_request_and_reads_nothing(api: Api, alice: User, acme: Tenant, bob: User) -> None:
    """The policy names it, although the first stage decides alone."""
    people = make_reviewers(acme)
    replace(api, alice, single_approval=True)
    request = submit(api(bob), fill(api(bob)))
    work_on()
    assert see(api(people["ruth"]), request)["allowed_actions"] == []
    assert api(people["ruth"]).get(path(request, "items/1/content")).status_code == 403
    assert decide(api(people["ruth"]), request).status_code == 403
