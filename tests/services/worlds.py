"""Worlds that tests of services share: bob's collection with files, and a request about it, as far as it has come.

Each comes with a fixture of the same name (conftest.py), which is all that a test has to name. The people are those of
`egress.py`, with the auditor erin and with dora of the data desk.
"""

import random
from typing import Any, Final

from django.test import override_settings
from django.utils import timezone

from files.models import Collection
from tenants.models import User
from tenants.work import outbox
from tests.clients import Clients
from tests.factories import make_member, make_tenant, make_user
from tests.services import egress, purging


MIB: Final = 1024 * 1024
POLICY: Final = "/api/v1/tenants/acme/egress-policy/"


def make_people() -> Clients:
    acme, globex = make_tenant("acme"), make_tenant("globex")
    people: dict[str, User] = {
        "alice": make_member(acme, "alice", "admin"),
        "bob": make_member(acme, "bob", "member"),
        "carol": make_member(acme, "carol", "member"),
        "dora": make_member(acme, "dora", "data_desk"),
        "erin": make_member(acme, "erin", "auditor"),
        "mallory": make_member(globex, "mallory", "member"),
        "root": make_user("root", is_superuser=True),
    }
    return Clients(people | egress.make_reviewers(acme))


# --- Egress ---


def results() -> str:
    """The id of bob's collection Results, which has the FILES of egress.py."""
    return egress.fill(make_people()["bob"])


def in_review(files: dict[str, bytes] | None = None, **policy: Any) -> Any:
    """A request for all of Results at the first stage, as it was submitted. The first mails about it are out."""
    clients = make_people()
    if policy:
        assert clients["alice"].put(POLICY, policy).status_code == 200
    request = egress.submit(clients["bob"], egress.fill(clients["bob"], files=files))
    egress.work_on()
    with override_settings(EMAIL_BACKEND="django.core.mail.backends.dummy.EmailBackend"):
        outbox.send_due(now=timezone.now())
    return request


def approved(files: dict[str, bytes] | None = None, **policy: Any) -> Any:
    """The same request, let out by grace and ruth: its package is what comes next."""
    return approve(in_review(files, **policy))


def approve(request: Any) -> Any:
    for name in ("grace", "ruth"):
        assert egress.decide(_clients()[name], request).status_code == 201
    return request


def released(files: dict[str, bytes] | None = None, **policy: Any) -> Any:
    """The same request when all work on it is done, as bob sees it."""
    return release(approved(files, **policy))


def release(request: Any) -> Any:
    egress.work_on()
    seen = egress.see(_clients()["bob"], request)
    assert seen["status"] == "released", seen
    return seen


def large_released() -> Any:
    """Its package is read from the store while it is sent, from the third MiB on. bob may fetch it once."""
    return released({"a.bin": random.Random(1).randbytes(5 * MIB)})


def large_released_thrice() -> Any:
    """The same for bob and dora, together three times."""
    files = {"a.bin": random.Random(1).randbytes(5 * MIB)}
    return released(files, max_downloads=3, downloaders=["requester", "data_desk"])


def _clients() -> Clients:
    return Clients({user.username: user for user in User.objects.all()})


# --- Collections ---


def empty_november() -> int:
    """The primary key of alice's collection November."""
    return november_with({})


def november_with(files: dict[str, bytes], *, by: str = "alice") -> int:
    clients = make_people()
    return Collection.objects.get(slug=egress.fill(clients[by], "November", files)).pk


def november() -> int:
    """The primary key of alice's collection November, which has three files, a grant to bob and a link."""
    return purging.fill(make_people()["alice"]).pk
