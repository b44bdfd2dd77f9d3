"""What the tests of collections and files start from.

alice made the collection `november` in acme, bob edits it, erin audits acme and rita decides a stage there, mallory is of globex.
"""

import reprlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connection, transaction
from django.test import RequestFactory
from pytest_django import Settings
from rest_framework.test import APIClient

from config.wsgi import application
from files.models import Collection, PendingDeletion, StoredFile, Upload
from tenants import audit
from tenants.auth import tokens
from tenants.models import Tenant, User
from tests import invariants
from tests.api import paths, worlds
from tests.api.cases import Case
from tests.api.vault import WatchedStore
from tests.factories import make_member
from tests.worlds import provides_world
from vault import identity
from vault.stores import get_store


@pytest.fixture
def erin(acme: Tenant) -> User:
    return User.objects.filter(username="erin").first() or make_member(acme, "erin", "auditor")


@pytest.fixture
def rita(acme: Tenant) -> User:
    return User.objects.filter(username="rita").first() or make_member(acme, "rita", "research_it")


@pytest.fixture
def vault(db: None, settings: Settings, tmp_path: Path, buckets_of_world: Path) -> Iterator[WatchedStore]:
    """The store, with segments so small that short contents have many. After the test everything has to add up."""
    settings.FILES_SEGMENT_SIZE = 128
    settings.STORAGES = settings.STORAGES | {
        "vault": {"BACKEND": "tests.api.vault.WatchedStore", "OPTIONS": {"location": str(tmp_path / "vault")}}
    }
    if (objects := buckets_of_world / "vault").exists():
        shutil.copytree(objects, tmp_path / "vault")
    store = get_store("vault")
    assert isinstance(store, WatchedStore)
    store.prepare(create=True)
    yield store
    assert_rows_add_up(store)
    invariants.check_slots()


class Writes:
    """Counts the statements that change rows."""

    count = 0

    def __call__(self, execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        self.count += not sql.startswith(("SELECT", "SAVEPOINT", "RELEASE"))
        return execute(sql, *rest)


def label(value: object) -> str:
    return str(getattr(value, "__name__", None) or reprlib.repr(value))


@pytest.fixture
def case(vault: WatchedStore, subtests: pytest.Subtests, tmp_path: Path) -> Case:
    """`with case(names):` is one of the cases of a test. What it changes is undone, in the database and in the vault."""

    @contextmanager
    def one(*names: object) -> Iterator[None]:
        before = shutil.copytree(vault.root, tmp_path / "before")
        vault.forget()
        writes = Writes()
        with subtests.test(", ".join(map(label, names))), transaction.atomic(), connection.execute_wrapper(writes):
            yield
            assert not vault.bodies
            if writes.count or vault.created:
                assert_rows_add_up(vault)
            transaction.set_rollback(True)
        shutil.rmtree(vault.root)
        before.rename(vault.root)

    return one


def assert_rows_add_up(store: WatchedStore) -> None:
    ready = StoredFile.objects.filter(status=StoredFile.Status.READY, store="vault").values_list("object_key", flat=True)
    stored = store.keys()
    objects = {key for key in stored if not key.startswith(identity.SYSTEM_PREFIX)}
    assert objects == {*ready, *PendingDeletion.objects.values_list("object_key", flat=True)}  # INV-06
    assert not Upload.objects.exists()
    assert not store.bodies
    invariants.check_counts()
    assert not list(audit.verify())


@pytest.fixture
@provides_world(worlds.make_november)
def november(vault: WatchedStore) -> str:
    """The id of a collection of acme."""
    return Collection.objects.get(display_name=worlds.DISPLAY_NAME).slug


@pytest.fixture
def put(vault: WatchedStore) -> Callable[..., Any]:
    """Uploads a file: `put(client, slug, filename, content, **headers)`."""

    def put_content(client: APIClient, slug: str, filename: str, content: bytes = b"", **headers: str) -> Any:
        kind = headers.pop("content_type", "application/octet-stream")
        return client.put(
            paths.content(slug, filename),
            content,
            content_type=kind,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return put_content


@pytest.fixture
def serve(db: None) -> Iterator[Callable[..., Any]]:
    """An answer of the application as a server calls it: `serve(user, method, path as bytes, body, **headers)`. To be closed."""

    def answer(user: User | None, method: str, path: bytes, body: bytes = b"", **headers: str) -> Any:
        if user is not None:
            headers["Authorization"] = f"Bearer {tokens.mint(user)['access']}"
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        environ = RequestFactory().generic(method, "/", body, headers=given).environ
        environ["PATH_INFO"] = path.decode("latin-1")
        for signal in signals:  # Django's client connects them again
            signal.disconnect(close_old_connections)
        return application(environ, lambda *_: lambda _: None)

    # Django closes connections before and after a request of a server; the test's own transaction needs its one.
    signals = (request_started, request_finished)
    yield answer
    for signal in signals:
        signal.connect(close_old_connections)
