"""What operators type. A refusal is one line on stderr and a status that is not 0, never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.db import connection
from rest_framework.test import APIClient

from tenants.models import AuditEvent, Membership, Tenant, User
from tenants.work import triggers
from tests.factories import PASSWORD


COMMANDS = sorted(name for name, app in get_commands().items() if app == "tenants")


def run(name: str, *arguments: str, **options: Any) -> str:
    output = StringIO()
    call_command(name, *arguments, stdout=output, **options)
    return output.getvalue()


@pytest.fixture(autouse=True)
def _no_password_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SUPERUSER_PASSWORD", raising=False)


def answers(monkeypatch: pytest.MonkeyPatch, *, inputs: tuple[str, ...] = (), passwords: tuple[str, ...] = ()) -> None:
    """Somebody types these at the prompts."""
    typed: Iterator[str] = iter(inputs)
    secret: Iterator[str] = iter(passwords)
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    monkeypatch.setattr("getpass.getpass", lambda prompt="": next(secret))


# --- createsupertenant ---


FIRST = ["--no-input", "--slug=first", "--username=boss", "--email=boss@example.org"]


def test_createsupertenant_without_input(db: None) -> None:
    assert run("createsupertenant", *FIRST, f"--password={PASSWORD}", "--name=The First") == (
        "Tenant first and its superuser boss exist.\n"
    )
    user = User.objects.get()
    assert (user.is_superuser, user.check_password(PASSWORD)) == (True, True)
    assert Tenant.objects.get().name == "The First"
    assert Membership.objects.get().roles == ["admin"]


def test_createsupertenant_takes_the_password_from_the_environment(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    run("createsupertenant", *FIRST)
    assert User.objects.get().check_password(PASSWORD)


def test_createsupertenant_again_changes_nothing(db: None) -> None:
    run("createsupertenant", *FIRST, f"--password={PASSWORD}")
    events = AuditEvent.objects.count()
    run("createsupertenant", *FIRST, "--password=another long password")
    run("createsupertenant", "--no-input", "--slug=first", "--username=boss")
    assert User.objects.get().check_password(PASSWORD)
    assert AuditEvent.objects.count() == events


def test_createsupertenant_asks_for_what_is_missing(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, inputs=("first", "boss", "boss@example.org"), passwords=(PASSWORD, PASSWORD))
    run("createsupertenant")
    assert User.objects.get().check_password(PASSWORD)
    assert Tenant.objects.get().slug == "first"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--no-input"], "--slug"),
        (["--no-input", "--slug=first"], "--username"),
        (["--no-input", "--slug=first", "--username=boss"], "--email"),
        (FIRST, "password"),
        ([*FIRST, "--password=short"], "password"),
        ([*FIRST, f"--password={PASSWORD}", "--slug=No Slug"], "slug"),
        ([*FIRST, f"--password={PASSWORD}", "--username=bob"], "not a superuser"),
        ([*FIRST, f"--password={PASSWORD}", "--email=bob@example.org"], "email"),
    ],
)
def test_createsupertenant_that_is_not_acceptable_says_what_and_leaves_nothing(
    bob: User, arguments: list[str], hint: str
) -> None:
    with pytest.raises(CommandError, match=hint):
        run("createsupertenant", *arguments)
    assert User.objects.count() == 1
    assert Tenant.objects.count() == 1
    assert not AuditEvent.objects.exists()


def test_createsupertenant_with_two_different_passwords_is_refused(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, passwords=(PASSWORD, "another long password"))
    with pytest.raises(CommandError, match="differ"):
        run("createsupertenant", *FIRST[1:])


# --- createtenant, addmember ---


def test_createtenant(db: None) -> None:
    output = run("createtenant", "acme", "--name=Acme Ltd")
    tenant = Tenant.objects.get()
    assert (tenant.slug, tenant.name) == ("acme", "Acme Ltd")
    assert output == f"Created tenant acme ({tenant.pk}).\n"


def test_createtenant_that_exists_is_refused(acme: Tenant) -> None:
    with pytest.raises(CommandError, match=r"slug: .*already exists"):
        run("createtenant", "acme")


def test_addmember_of_somebody_new_creates_them(acme: Tenant) -> None:
    assert run("addmember", "acme", "dora", "--email=dora@example.org", "--role=auditor", "--role=ethics_board") == (
        "dora is auditor, ethics_board in acme.\n"
    )
    assert not User.objects.get().has_usable_password()


def test_addmember_without_a_role_makes_a_member(acme: Tenant, mallory: User) -> None:
    assert run("addmember", "acme", "mallory") == "mallory is member in acme.\n"


def test_addmember_again_adds_the_role(acme: Tenant, bob: User) -> None:
    assert run("addmember", "acme", "bob", "--role=research_it") == "bob is member, research_it in acme.\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nowhere", "bob"], "No tenant has the slug nowhere"),
        (["acme", "dora"], "email: "),
        (["acme", "bob", "--email=alice@example.org"], "a different e-mail address"),
        (["acme", "dora", "--email=bob@example.org"], "email: "),
        (["acme", "bob", "--role=Boss"], "roles: "),
    ],
)
def test_addmember_that_is_not_acceptable_says_what(acme: Tenant, bob: User, arguments: list[str], hint: str) -> None:
    with pytest.raises(CommandError, match=hint):
        run("addmember", *arguments)


# --- createusertoken ---


def test_createusertoken_prints_a_pair_that_works_and_nothing_else(alice: User) -> None:
    output = run("createusertoken", "alice")
    pair = json.loads(output)
    assert set(pair) == {"access", "refresh"}
    assert output.count("\n") == 1
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {pair['access']}")
    assert client.get("/api/v1/me/").json()["username"] == "alice"
    assert client.post("/api/v1/auth/token/refresh/", {"refresh": pair["refresh"]}).status_code == 200
    event = AuditEvent.objects.get()
    assert (event.action, event.target_id) == ("token.create", str(alice.pk))
    assert json.loads(event.body)["facts"] == {"seconds": 8 * 3600}


def test_createusertoken_by_id(alice: User) -> None:
    assert json.loads(run("createusertoken", str(alice.pk)))


def test_createusertoken_prefers_the_username_to_the_id(alice: User, bob: User) -> None:
    User.objects.filter(pk=bob.pk).update(username=str(alice.pk))
    run("createusertoken", str(alice.pk))
    assert AuditEvent.objects.get().target_id == str(bob.pk)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("8h", 28800), ("366d", 31622400)])
def test_createusertoken_with_a_lifetime(alice: User, text: str, seconds: int) -> None:
    run("createusertoken", "alice", f"--lifetime={text}")
    assert json.loads(AuditEvent.objects.get().body)["facts"] == {"seconds": seconds}


@pytest.mark.parametrize("text", ["", "8", "0h", "-1h", "1.5h", "8H", "367d", "999999999d", "9999999999s", "h", "8h ", "\u0668h"])
def test_createusertoken_with_a_bad_lifetime_is_refused(alice: User, text: str) -> None:
    with pytest.raises(CommandError, match="--lifetime"):
        run("createusertoken", "alice", f"--lifetime={text}")
    assert not AuditEvent.objects.exists()


@pytest.mark.parametrize("user", ["nobody", "0", "999999999", "9" * 40, "-1", "1.0", ""])
def test_createusertoken_for_nobody_is_refused(alice: User, user: str) -> None:
    with pytest.raises(CommandError, match="no user with"):
        run("createusertoken", "--", user)


def test_createusertoken_for_somebody_deactivated_is_refused(alice: User) -> None:
    User.objects.update(is_active=False)
    with pytest.raises(CommandError, match="deactivated"):
        run("createusertoken", "alice")


# --- changepassword ---


def test_changepassword_is_audited_and_ends_the_tokens(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, passwords=("another long password",) * 2)
    run("changepassword", "alice")
    alice.refresh_from_db()
    assert alice.check_password("another long password")
    assert alice.token_version == 1
    assert AuditEvent.objects.get().action == "user.password"


@pytest.mark.parametrize(
    ("user", "passwords", "hint"),
    [
        ("nobody", (), "nobody"),
        ("alice", ("another long password", "yet another password"), "differ"),
        ("alice", ("short", "short"), "password: "),
    ],
)
def test_changepassword_that_is_not_acceptable_changes_nothing(
    alice: User, monkeypatch: pytest.MonkeyPatch, user: str, passwords: tuple[str, ...], hint: str
) -> None:
    answers(monkeypatch, passwords=passwords)
    with pytest.raises(CommandError, match=hint):
        run("changepassword", user)
    assert User.objects.get().check_password(PASSWORD)


# --- createsuperuser ---


def test_createsuperuser_refuses_and_names_the_audited_way(db: None) -> None:
    with pytest.raises(CommandError, match="createsupertenant"):
        run("createsuperuser")
    assert not User.objects.exists()


# --- All of them ---


@pytest.mark.parametrize("name", COMMANDS)
def test_command_states_its_rule(name: str) -> None:
    command = load_command_class("tenants", name)
    assert isinstance(command, BaseCommand)
    assert len(command.help) > 50
    assert command.help in " ".join(command.create_parser("manage.py", name).format_help().split())


NOTHING_SIGNED = "There is no checkpoint yet: events deleted from the end of a chain would not be detected."


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("arguments", "status", "stdout", "stderr"),
    [
        pytest.param(
            ["verify_audit", "--chain", "nowhere"],
            1,
            f"{NOTHING_SIGNED}\n",
            "CommandError: There is no chain nowhere.",
            marks=pytest.mark.long,
        ),
        (["verify_audit"], 0, f"{NOTHING_SIGNED}\nThe audit trail is intact: 1 chains.\n", ""),
        (["createtenant", "no slug"], 1, "", "CommandError: slug: Use words of lower-case letters"),
        pytest.param(["createusertoken", "nobody"], 1, "", "CommandError: There is no user", marks=pytest.mark.long),
    ],
)
def test_command_as_a_process(arguments: list[str], status: int, stdout: str, stderr: str) -> None:
    """The exit status is what scripts look at."""
    run("createtenant", "acme")
    process = manage(*arguments)
    assert (process.returncode, process.stdout) == (status, stdout)
    assert process.stderr.startswith(stderr)
    assert "Traceback" not in process.stderr


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_verify_audit_of_damage_as_a_process_exits_with_1() -> None:
    run("createtenant", "acme")
    triggers.remove(connection)
    AuditEvent.objects.update(actor="nobody")
    triggers.install(connection)
    process = manage("verify_audit")
    assert process.returncode == 1
    assert "differs from its body in actor" in process.stdout


def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
    """manage.py on the database of this test."""
    settings = connection.settings_dict
    url = (
        f"sqlite:///{settings['NAME']}"
        if connection.vendor == "sqlite"
        else f"postgres://{settings['USER']}:{settings['PASSWORD']}@{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"
    )
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
