"""What the tests of collections and files start from, built once in a run (see tests/worlds.py).

alice made the collection November 2012 in acme, which bob and carol edit; erin audits acme and rita decides a stage
there. mallory is of globex, and root is the superuser.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from django.test import override_settings
from rest_framework.test import APIClient

from tenants.models import Tenant, User
from tests.api import paths
from tests.clients import Clients
from tests.factories import make_member, make_tenant, make_user
from tests.services import egress


DISPLAY_NAME: Final = "November 2012"
NewCollections = Tenant.NewCollections
CONTENT: Final = random.Random(5).randbytes(5000)  # 45 segments
REPORT: Final = b"name;age\nada;36\n"
SHARED_NAMES: Final = ("readings.csv", "notes.txt", "scan.bin")
ARCHIVED: Final = {"a.csv": CONTENT, "b.bin": b"", "ç\u2215d": CONTENT[:72], "名前.txt": b"x"}


def make_people(*, new_collections: str = NewCollections.EDITOR) -> dict[str, User]:
    acme, globex = make_tenant("acme", new_collections=new_collections), make_tenant("globex")
    return {
        "alice": make_member(acme, "alice", "admin"),
        "bob": make_member(acme, "bob", "member"),
        "carol": make_member(acme, "carol", "member"),
        "erin": make_member(acme, "erin", "auditor"),
        "rita": make_member(acme, "rita", "research_it"),
        "mallory": make_member(globex, "mallory", "member"),
        "root": make_user("root", is_superuser=True),
    }


@contextmanager
def filling(*, new_collections: str = NewCollections.EDITOR) -> Iterator[tuple[Clients, str]]:
    """The people and the id of the collection, while segments are as small as the fixture `vault` has them."""
    with override_settings(FILES_SEGMENT_SIZE=128):
        clients = Clients(make_people(new_collections=new_collections))
        made = clients["alice"].post(paths.COLLECTIONS, {"display_name": DISPLAY_NAME})
        assert made.status_code == 201, made.content
        yield clients, str(made.json()["id"])


def put(client: APIClient, slug: str, filename: str, content: bytes, content_type: str = "application/octet-stream") -> Any:
    answer = client.put(paths.content(slug, filename), content, content_type=content_type)
    assert answer.status_code == 201, answer.content
    return answer.json()


def make_november() -> None:
    """Without files."""
    with filling():
        pass


def make_one_file() -> None:
    """bob put a.csv."""
    with filling() as (clients, slug):
        put(clients["bob"], slug, "a.csv", CONTENT, "text/csv")


def make_report() -> Any:
    """bob put report.csv; what the server answered."""
    with filling() as (clients, slug):
        return put(clients["bob"], slug, "report.csv", REPORT, "text/csv; charset=utf-8")


def make_private() -> None:
    """New collections are for their creators; alice put three files into hers."""
    with filling(new_collections=NewCollections.PRIVATE) as (clients, slug):
        for name in SHARED_NAMES:
            put(clients["alice"], slug, name, name.encode())


def make_four_files() -> None:
    """bob put files of four kinds and lengths, in this order."""
    with filling() as (clients, slug):
        for name, kind, content in (
            ("a.csv", "text/csv", b"1234"),
            ("b.txt", "text/plain", b"12"),
            ("C.csv", "text/csv", b"123"),
            ("100%_.bin", "application/octet-stream", b""),
        ):
            put(clients["bob"], slug, name, content, kind)


def make_three_files() -> None:
    """bob put a.csv, b.csv and ç.csv."""
    with filling() as (clients, slug):
        for name in ("a.csv", "b.csv", "ç.csv"):
            put(clients["bob"], slug, name, CONTENT[:300])


def make_archived() -> None:
    """bob put files with names that an archive has to spell."""
    with filling() as (clients, slug):
        for name, content in ARCHIVED.items():
            put(clients["bob"], slug, name, content)


def make_held() -> None:
    """alice put held.csv and free.csv."""
    with filling() as (clients, slug):
        for name in ("held.csv", "free.csv"):
            put(clients["alice"], slug, name, name.encode(), "text/csv")


@contextmanager
def reviewing() -> Iterator[Clients]:
    """The people, and those who decide on what leaves acme, while segments are small."""
    with override_settings(FILES_SEGMENT_SIZE=128):
        people = make_people()
        yield Clients({**people, **egress.make_reviewers(Tenant.objects.get(slug="acme"))})


def make_reviewable() -> None:
    """bob filled the collection Results."""
    with reviewing() as clients:
        egress.fill(clients["bob"])


def make_in_review() -> Any:
    """bob filled the collection Results and asks for all of it; the request as he sees it."""
    with reviewing() as clients:
        request = egress.submit(clients["bob"], egress.fill(clients["bob"]))
        egress.work_on()
        return egress.see(clients["bob"], request)
