"""The users of every test, and the fixtures that apply to the whole suite.

In the tenant acme, alice is an admin, bob and carol are members. mallory is a member of globex. root is a superuser without a
tenant. A test that starts from a world uses the users of that world.
"""

import gc
import shutil
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.conf import settings
from django.test import TransactionTestCase
from pytest_django import DjangoDbBlocker
from rest_framework.test import APIClient

from tenants.auth import tokens
from tenants.models import Tenant, User
from tests import invariants, nonce_recorder, worlds
from tests.factories import make_member, make_tenant, make_user
from tests.worlds import Databases
from vault import crypto, identity
from vault.stores import ensure_buckets


pytest_plugins = ["tests.needs", "tests.interruption", "tests.live.fixtures"]

# On a busy machine an example takes longer than the default deadline.
hypothesis.settings.register_profile("strongroom", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("strongroom")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collected items live until the end of the run. Garbage collection over them would cost a tenth of the collection time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        worlds.drop_worlds()


@pytest.fixture(scope="session")
def databases(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, django_test_environment: None, django_db_modify_db_settings: None,
    django_db_blocker: DjangoDbBlocker,
) -> Iterator[Databases]:  # fmt: skip
    """The database of this process, a copy of a template that all processes of the run share."""
    run = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, django_db_blocker.unblock():
        made = Databases((run if worker_id == "master" else run.parent) / "worlds")
        # A test with transaction=True would end with a flush, which the database triggers refuse.
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda self: made.mark_changed())
        yield made
        made.close()


@pytest.fixture
def django_db_setup(request: pytest.FixtureRequest, databases: Databases, django_db_blocker: DjangoDbBlocker) -> None:
    """Restores the database to the world of the test. pytest-django requests this before it begins the test's transaction."""
    with django_db_blocker.unblock():
        databases.restore(worlds.world_builder_of(request.node))


@pytest.fixture
def built(request: pytest.FixtureRequest, db: None, databases: Databases) -> Any:
    """A copy of what the function returned that built the world of this test."""
    build = worlds.world_builder_of(request.node)
    assert build is not None, "the fixture `built` needs a test that starts from a world (tests/worlds.py)"
    return databases.built(build)


@pytest.fixture(scope="session", autouse=True)
def recorded_nonces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypto, "AESGCM", nonce_recorder.RecordingAESGCM)
        yield


@pytest.fixture(autouse=True)
def no_repeated_nonce(recorded_nonces: None) -> Iterator[None]:
    """INV-04 over the whole run: fails the test that used a (key, nonce) pair for the second time."""
    yield
    repeated, nonce_recorder.repeated_lengths[:] = list(nonce_recorder.repeated_lengths), []
    assert not repeated


@pytest.fixture(scope="session", autouse=True)
def stores_prepared() -> None:
    ensure_buckets()


@pytest.fixture(autouse=True)
def transfer_slots_are_released() -> Iterator[None]:
    """INV-19 after every test: fails the test that leaks transfer slots, instead of a later one."""
    yield
    invariants.check_slots()


@pytest.fixture(autouse=True)
def vault_identity_checked(stores_prepared: None) -> Iterator[None]:
    """Removes the vault's identity, ledger and audit heads after each test, because a rollback does not remove objects.

    During the test, this process acts as if it had just checked the identity of the vault. Tests of that check call
    `identity.clear_checks()`.
    """
    vault = Path(settings.STORAGES["vault"]["OPTIONS"]["location"])
    with worlds.vault_identity_checked():
        yield
    shutil.rmtree(vault / identity.SYSTEM_PREFIX, ignore_errors=True)


@pytest.fixture
def buckets_of_world(request: pytest.FixtureRequest, databases: Databases) -> Path:
    """The folder with the initial objects of the test's world, one subfolder for each bucket alias."""
    return databases.buckets(worlds.world_builder_of(request.node))


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def acme(db: None) -> Tenant:
    return Tenant.objects.filter(slug="acme").first() or make_tenant("acme")


@pytest.fixture
def globex(db: None) -> Tenant:
    return Tenant.objects.filter(slug="globex").first() or make_tenant("globex")


@pytest.fixture
def alice(acme: Tenant) -> User:
    return User.objects.filter(username="alice").first() or make_member(acme, "alice", "admin")


@pytest.fixture
def bob(acme: Tenant) -> User:
    return User.objects.filter(username="bob").first() or make_member(acme, "bob", "member")


@pytest.fixture
def carol(acme: Tenant) -> User:
    return User.objects.filter(username="carol").first() or make_member(acme, "carol", "member")


@pytest.fixture
def mallory(globex: Tenant) -> User:
    return User.objects.filter(username="mallory").first() or make_member(globex, "mallory", "member")


@pytest.fixture
def root(db: None) -> User:
    return User.objects.filter(username="root").first() or make_user("root", is_superuser=True)


@pytest.fixture
def api() -> Callable[[User | str | None], APIClient]:
    """Makes a client with a real token of a user or with an API key; `api(None)` makes an anonymous one."""

    def client_of(who: User | str | None) -> APIClient:
        client = APIClient()
        if who is not None:
            bearer = who if isinstance(who, str) else tokens.mint(who)["access"]
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {bearer}")
        return client

    return client_of
