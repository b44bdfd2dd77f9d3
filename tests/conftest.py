"""The people of every test, and what the whole suite needs.

alice is admin and bob and carol are members of acme; mallory is a member of globex; root is the superuser and member of nothing.
A test that starts from a world has the people of that world.
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

# A busy machine is no failure.
hypothesis.settings.register_profile("strongroom", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("strongroom")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays to the end: looking for garbage in it would take a tenth of the time, and as much again later."""
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
    """The database of this process. What it is copied from is made once for all processes of the run."""
    run = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch, django_db_blocker.unblock():
        made = Databases((run if worker_id == "master" else run.parent) / "worlds")
        # A test with transaction=True would end with a flush, which the guards of the database refuse.
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda self: made.mark_changed())
        yield made
        made.close()


@pytest.fixture
def django_db_setup(request: pytest.FixtureRequest, databases: Databases, django_db_blocker: DjangoDbBlocker) -> None:
    """pytest-django asks for this before the transaction of a test begins: here the database is brought to the test's world."""
    with django_db_blocker.unblock():
        databases.restore(worlds.world_builder_of(request.node))


@pytest.fixture
def built(request: pytest.FixtureRequest, db: None, databases: Databases) -> Any:
    """What the function returned that built the world of this test; a copy for each test."""
    build = worlds.world_builder_of(request.node)
    assert build is not None, "this test has no world"
    return databases.built(build)


@pytest.fixture(scope="session", autouse=True)
def recorded_nonces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crypto, "AESGCM", nonce_recorder.RecordingAESGCM)
        yield


@pytest.fixture(autouse=True)
def no_repeated_nonce(recorded_nonces: None) -> Iterator[None]:
    """INV-04 over the whole run: the test that used a pair again is the one that fails."""
    yield
    repeated, nonce_recorder.repeated_lengths[:] = list(nonce_recorder.repeated_lengths), []
    assert not repeated


@pytest.fixture(scope="session", autouse=True)
def stores_prepared() -> None:
    ensure_buckets()


@pytest.fixture(autouse=True)
def transfer_slots_are_released() -> Iterator[None]:
    """INV-19, after every test: one that leaks transfer slots fails itself, not the tests that run after it."""
    yield
    invariants.check_slots()


@pytest.fixture(autouse=True)
def vault_identity_checked(stores_prepared: None) -> Iterator[None]:
    """A test's database is rolled back, and the vault is not: each test finds it without a mark, ledger and heads.

    As if this process had just looked: whoever tests that calls `deployment.forget()`.
    """
    vault = Path(settings.STORAGES["vault"]["OPTIONS"]["location"])
    with worlds.vault_identity_checked():
        yield
    shutil.rmtree(vault / identity.SYSTEM_PREFIX, ignore_errors=True)


@pytest.fixture
def buckets_of_world(request: pytest.FixtureRequest, databases: Databases) -> Path:
    """The folder of the objects that the test's world starts with, one folder for each alias of a bucket."""
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
    """A client with a real token of the person, or with this API key; `api(None)` is anonymous."""

    def client_of(who: User | str | None) -> APIClient:
        client = APIClient()
        if who is not None:
            bearer = who if isinstance(who, str) else tokens.mint(who)["access"]
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {bearer}")
        return client

    return client_of
