"""`manage.py purge`: what it says, what it does, and that it does nothing by halves."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from files import holds
from files.models import Collection
from purge.models import Destruction
from tenants.models import User
from tests.services.purging import Api, Stubborn, assert_gone, expire, fill


pytestmark = pytest.mark.django_db(transaction=True)


def run(*args: str) -> str:
    out = StringIO()
    call_command("purge", *args, stdout=out)
    return out.getvalue()


def test_dry_run_says_what_why_how_much_and_what_blocks(filled: Collection, alice: User, api: Api) -> None:
    held = fill(api(alice), "December")
    fill(api(alice), "January")
    holds.place(held, filename=None, ref="", reason="a suit", by=alice, now=timezone.now())
    for each in (filled, held):
        expire(each)

    lines = run("--dry-run").splitlines()

    assert lines[0].split() == ["collection", "tenant", "reason", "files", "bytes", "blocked", "by"]
    assert [line.split()[:4] for line in lines[1:3]] == [[each.slug, "acme", "expired", "on"] for each in (filled, held)]
    assert [line.rstrip().endswith("a hold") for line in lines[1:3]] == [False, True]
    assert lines[3] == "1 collections would be destroyed, with 3 files of 1500 bytes."
    assert Collection.objects.filter(status="open").count() == 3


def test_command_destroys_what_is_due_and_finishes(filled: Collection, alice: User, api: Api) -> None:
    other = fill(api(alice), "December")
    expire(filled)

    assert run() == (f"{filled.slug}: destroyed, 3 files; certificate {Destruction.objects.get().pk}\n1 collections destroyed.\n")

    assert list(Collection.objects.values_list("pk", flat=True)) == [other.pk]
    assert run() == "0 collections destroyed.\n"


def test_command_takes_up_what_is_blocked_and_fails_if_it_still_is(
    filled: Collection, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire(filled)
    for _ in range(2):
        with pytest.raises(CommandError, match="1 of 1 destructions are blocked"):
            run()
    monkeypatch.setattr(Stubborn, "locked", "")
    assert run(filled.slug).endswith("1 collections destroyed.\n")
    assert_gone(filled)


def test_command_refuses_what_is_not_due_and_does_nothing(filled: Collection, alice: User, api: Api) -> None:
    other = fill(api(alice), "December")
    expire(filled)
    with pytest.raises(CommandError, match=f"{other.slug}.*Nothing was changed"):
        run(filled.slug, other.slug)
    assert not Destruction.objects.exists()
