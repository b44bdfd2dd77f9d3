"""The shell lines of README.md and docs/, word for word on a real server."""

import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import pytest

from tests.live.server import ROOT, Server
from tests.live.waiting import wait_for
from tests.needs import mark_dependents


TUTORIAL = "docs/tutorial.md"


@pytest.fixture(scope="module")
def server_of_module(tmp_path_factory: pytest.TempPathFactory, first_home: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("readme") / "home")
    server.copy_home_from(first_home)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
@mark_dependents(pytest.mark.server)
def own_server(server_of_module: Server) -> Server:
    """Of this module alone: its tests change the tenant and its keys, kill it, and start it again."""
    return server_of_module if server_of_module.processes() else server_of_module.start()


def shell_blocks(page: str, heading: str) -> list[str]:
    """The shell blocks under a heading."""
    (section,) = re.findall(rf"^{heading}\n(.*?)(?=^##|\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [dedent(block) for block in re.findall(r"^ *```sh\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)]


def run(*blocks: str, server: Server, folder: Path = ROOT, **environment: str) -> str:
    """What the lines print in one shell, which stops at the first that fails."""
    shell = subprocess.run(
        ["sh", "-eu"],
        input="\n".join(blocks).encode(),
        cwd=folder,
        env=server.environment | environment,
        capture_output=True,
        check=False,
    )
    assert shell.returncode == 0, shell.stderr.decode()
    return shell.stdout.decode()


def upload(server: Server, filename: str, content: str) -> str:
    """A new collection with one file; its id."""
    token = server.token()
    _, collection = server.request("POST", "/api/v1/collections/", token=token, body={"display_name": f"Kept {uuid4()}"})
    path = f"/api/v1/collections/{collection['id']}"
    assert server.request("PUT", f"{path}/content/{filename}", token=token, body=content)[0] == 201
    return str(collection["id"])


@pytest.mark.needs("curl")
def test_readme_works_word_for_word(server: Server, tmp_path: Path) -> None:
    output = run(*shell_blocks("README.md", "## An example"), server=server, folder=tmp_path)
    uploaded, compared = output.splitlines()
    assert (json.loads(uploaded)["filename"], compared) == ("numbers.txt", "the same bytes")


@pytest.mark.needs("curl")
def test_tutorial_of_files_works_word_for_word(server: Server, tmp_path: Path) -> None:
    output = run(*shell_blocks(TUTORIAL, "## Files"), server=server, folder=tmp_path)
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    me, uploaded, listed, unconditional, replaced, used_up, today, unshared, grants, taken_away = answers
    assert me["username"] == "member"
    assert listed["results"] == [uploaded]
    assert unconditional["status"] == 428
    assert (replaced["id"], replaced["length"]) == (uploaded["id"], (tmp_path / "numbers.txt").stat().st_size)
    assert used_up["status"] == 404
    assert "the same bytes\n1\n2\n3\n4\n5\nresumed\n" in output
    assert "the same bytes, once" in output
    assert "Done testing" in output
    assert "the same bytes, shared" in output
    assert [(grant["user"], grant["level"]) for grant in grants["results"]] == [("member2", "viewer"), ("member", "manager")]
    assert (unshared["status"], taken_away["status"]) == (404, 404)
    with zipfile.ZipFile(tmp_path / "some.zip") as archive:
        assert archive.namelist() == [today["filename"]]


@pytest.mark.needs("curl", "openssl", "unzip", "7z")
def test_tutorial_of_egress_requests_works_word_for_word(server: Server, tmp_path: Path) -> None:
    """Four people, one request, and a zip that anybody can verify."""
    (given, *_), lines = shell_blocks(TUTORIAL, "## Files"), shell_blocks(TUTORIAL, "## Egress requests")
    verifying = shell_blocks("docs/egress.md", "## The package")
    output = run(given, *lines, verifying[1], server=server, folder=tmp_path)
    me, held, awaiting, used_up, request, trail = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert me["username"] == "member"
    assert (held["status"], held["code"], used_up["code"]) == (409, "held", "downloads_used")
    assert [each["awaited_role"] for each in awaiting["results"]] == ["information_governance"]
    assert "the same bytes, staged\nin_review\napproved\n" in output
    assert "the same bytes, out" in output
    assert output.count("table1.csv: OK") == 1
    assert "Signature Verified Successfully" in output
    assert [decision["by"] for decision in request["decisions"]] == ["information_governance", "research_it"]
    assert [[each["by"] for each in item["opened_by"]] for item in request["items"]] == [["information_governance"], []]
    assert [row["by"] for row in request["downloads"]] == ["member"]
    assert {event["action"] for event in trail["results"]} >= {"egress.submit", "egress.read", "egress.approve", "egress.release"}
    (package,) = tmp_path.glob("egress-*.zip")
    checked = run(verifying[0], server=server, PACKAGE=str(package))
    assert "The package is authentic: 2 files" in checked
    for tool in (["unzip", "-tq"], ["7z", "t"]):
        assert subprocess.run([*tool, package], capture_output=True, check=False).returncode == 0


@pytest.mark.needs("curl")
def test_tutorial_of_api_keys_works_word_for_word(server: Server, tmp_path: Path) -> None:
    example = shell_blocks(TUTORIAL, "## Files")[:2]
    output = run(*example, *shell_blocks(TUTORIAL, "## API keys"), server=server, folder=tmp_path)
    me, refused, listed = [json.loads(line) for line in output.splitlines() if line.startswith("{")][-3:]
    assert (me["username"], me["key"]["scopes"]) == ("member", ["read"])
    assert (refused["status"], refused["code"]) == (403, "insufficient_scope")
    assert me["key"]["prefix"] in {key["prefix"] for key in listed["results"]}
    assert output.endswith("204\n204\n")


@pytest.mark.needs("curl")
def test_tutorial_of_people_works_word_for_word_and_the_invitation_arrives(own_server: Server) -> None:
    server = own_server
    (given, *_), lines = shell_blocks(TUTORIAL, "## Files"), shell_blocks(TUTORIAL, "## People and tenants")
    output = run(given, *lines, server=server)
    me, updated, invited, promoted, auditors, back, invitations, usage = map(
        json.loads, re.findall(r"^\{.*\}$", output, re.MULTILINE)
    )
    assert me["username"] == "member"
    assert updated["default_retention_days"] == 365
    assert invited == {"invited": "dora@example.org"}
    assert promoted["roles"] == ["auditor", "member"]
    assert sorted(row["username"] for row in auditors["results"]) == ["auditor", "member2"]
    assert [row["email"] for row in invitations["results"]] == ["dora@example.org"]
    assert (back["roles"], usage["quota_bytes"]) == (["member"], None)

    folder = server.home / "mail"
    wait_for(lambda: any("curl" in file.read_text() for file in folder.glob("*")))
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    text = message_from_bytes(file.read_bytes(), policy=policy.default).get_body(("plain",))
    assert text is not None
    (token,) = re.findall(r'"token": "(.+?)"', text.get_content())
    account = {"token": token, "username": "dora", "password": "correct horse battery staple"}
    status, _ = server.request("POST", "/api/v1/auth/invitations/accept/", body=account)
    assert status == 201
    assert token.split(":")[-1] not in server.log


def test_escape_hatch_works_word_for_word(server: Server) -> None:
    collection = upload(server, "numbers.txt", "1 2 3")
    export, fetch, decrypt = shell_blocks("docs/operations/backup.md", "## Decrypt a file without a server")
    shown = run(export, fetch, decrypt.replace("ls -l", "cat"), server=server, ID=collection)
    assert json.loads(shown) == "1 2 3"


def test_rotation_works_word_for_word_while_files_stay_readable(own_server: Server) -> None:
    server = own_server
    path = f"/api/v1/collections/{upload(server, 'numbers.txt', '1 2 3')}/content/numbers.txt"
    make_known, make_active, rewrap = shell_blocks("docs/operations/rotation.md", "## Rotate the master key")
    first = (server.home / "secrets" / "keyring").read_text().split()[0]

    run(make_known, server=server)
    server.stop()
    server.start()
    assert run(rewrap, server=server) == f"0 data keys rewrapped, 0 remaining; the active master key is {first}\n"

    run(make_active, server=server)
    # The running server does not have the new order yet, and opens what the new key wraps all the same.
    # One key, or two with the key of the audit checkpoints
    rewrapped = r"([12]) rewrapped, 0 remaining\n\1 data keys rewrapped, 0 remaining; the active master key is 2027\n"
    assert re.fullmatch(rewrapped, run(rewrap, server=server))
    assert server.request("GET", path, token=server.token()) == (200, "1 2 3")
    server.stop()
    server.start()
    assert server.request("GET", path, token=server.token()) == (200, "1 2 3")


def test_backup_and_restore_work_word_for_word(own_server: Server, new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = own_server
    collection = upload(server, "numbers.txt", "1 2 3")
    path = f"/api/v1/collections/{collection}/content/numbers.txt"
    page = "docs/operations/backup.md"
    (backup,), (restore, check) = shell_blocks(page, "## Back up"), shell_blocks(page, "## Restore")
    kept = tmp_path / "kept"
    run(backup, server=server, BACKUP=str(kept))
    server.kill()

    restored = new_server()
    run(restore, server=restored, BACKUP=str(kept), SECRETS_BACKUP=str(server.home / "secrets"))
    restored.start()
    assert run(check, server=restored) == ""
    assert "is intact" in restored.manage("verify_audit")
    token = json.loads(restored.manage("createusertoken", "member"))["access"]
    assert restored.request("GET", path, token=token) == (200, "1 2 3")

    of_collection = "SELECT object_key FROM files_storedfile JOIN files_collection c ON c.id = collection_id WHERE slug = ?"
    ((key,),) = restored.sql(of_collection, collection)
    stored = restored.home / "objects" / "vault" / key
    os.utime(stored, (0, 0))  # a copy that did not keep its time has another ETag
    assert run(check, server=restored).endswith(" object is a copy: its ETag is recorded\n")
    assert restored.request("GET", path, token=token) == (200, "1 2 3")
    os.utime(stored, (1, 1))
    assert restored.request("GET", path, token=token) == (200, "1 2 3")  # an encrypted file notes it by itself
    assert run(check, server=restored) == ""
    stored.unlink()
    assert run(check, server=restored).endswith(" object is missing\n")
