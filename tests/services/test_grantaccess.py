"""`manage.py grantaccess`: the operator shares, and takes away, what the API would."""

from collections.abc import Callable
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from files.models import Collection, Grant
from tenants.models import AuditEvent, Tenant, User
from tests.api import paths


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
def november(make_collection: Callable[[User, str], Collection], alice: User, api: Callable[[User], APIClient]) -> Collection:
    Tenant.objects.update(new_collections="private")
    collection = make_collection(alice, "November")
    api(alice).put(paths.content(collection.slug, "a.csv"), b"a", content_type="text/csv")
    return collection


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("grantaccess", *arguments, stdout=out)
    return out.getvalue()


def test_grantaccess_gives_and_takes_away(november: Collection, bob: User, api: Callable[[User], APIClient]) -> None:
    address = paths.collection(november.slug)
    assert run(november.slug, "--user", "bob", "--level", "editor") == f"Granted the level editor on {november.slug} to bob.\n"
    assert api(bob).get(address).json()["my_level"] == "editor"
    assert run(november.slug, "--user", "bob", "--revoke") == f"Revoked the grant to bob on {november.slug}.\n"
    assert api(bob).get(address).status_code == 404
    events = AuditEvent.objects.filter(action__startswith="grant.").order_by("seq")
    assert [(event.action, event.actor) for event in events] == [("grant.create", "system"), ("grant.revoke", "system")]


def test_grantaccess_to_everyone_on_one_file(november: Collection, bob: User, api: Callable[[User], APIClient]) -> None:
    run(november.slug, "--everyone", "--file", "a.csv", "--level", "viewer")
    assert api(bob).get(paths.collection(november.slug)).json()["my_level"] == "name"
    assert b"".join(api(bob).get(paths.content(november.slug, "a.csv"))) == b"a"
    run(november.slug, "--everyone", "--file", "a.csv", "--revoke")
    assert api(bob).get(paths.collection(november.slug)).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no-such-id", "--user", "bob", "--level", "viewer"], "There is no collection with the id no-such-id."),
        (["{slug}", "--user", "bob", "--file", "b.csv", "--level", "viewer"], "The collection {slug} has no file of this name."),
        (["{slug}", "--user", "nobody", "--level", "viewer"], "user: The tenant has no member with this username."),
        (["{slug}", "--user", "mallory", "--level", "viewer"], "user: The tenant has no member with this username."),
        (["{slug}", "--user", "bob", "--revoke"], "There is no grant to bob on {slug}."),
        (["{slug}", "--user", "bob", "--everyone", "--level", "viewer"], "not allowed with argument"),
        (["{slug}", "--level", "viewer"], "required"),
        (["{slug}", "--user", "bob"], "required"),
        (["{slug}", "--user", "bob", "--level", "owner"], "invalid choice"),
    ],
)
def test_grantaccess_that_cannot_be_says_why_and_changes_nothing(
    november: Collection, bob: User, mallory: User, arguments: list[str], problem: str
) -> None:
    with pytest.raises(CommandError) as error:
        run(*(argument.format(slug=november.slug) for argument in arguments))
    assert problem.format(slug=november.slug) in str(error.value)
    assert Grant.objects.count() == 1
