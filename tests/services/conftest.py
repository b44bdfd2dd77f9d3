"""Buckets that nobody else uses, and the worlds of worlds.py in them; a mail server of one's own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from files.models import Collection, StoredFile
from tenants.models import User
from tests.mailbox import Mailbox
from tests.needs import mark_dependents
from tests.services import purging, worlds
from tests.services.egress_world import World
from tests.worlds import starts_from
from vault.stores import ensure_buckets


@pytest.fixture
def own_buckets(settings: Settings, tmp_path: Path, db: None, buckets_of_world: Path) -> Path:
    """Local buckets with the objects of the test's world, if it has one; the folder that has one for each alias."""
    local = {
        alias: {"BACKEND": "vault.stores.local.LocalStore", "OPTIONS": {"location": str(tmp_path / alias)}}
        for alias in settings.BUCKETS
    }
    settings.STORAGES = settings.STORAGES | local
    if buckets_of_world.exists():
        shutil.copytree(buckets_of_world, tmp_path, dirs_exist_ok=True)
    ensure_buckets()
    return tmp_path


@pytest.fixture
def mailbox(settings: Settings) -> Iterator[Mailbox]:
    settings.EMAIL_BACKEND = "config.mail.SMTPBackend"
    with Mailbox() as mailbox:
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", mailbox.port
        yield mailbox


@pytest.fixture
def make_collection(api: Callable[[User | None], APIClient]) -> Callable[[User, str], Collection]:
    def make(user: User, display_name: str = "November") -> Collection:
        made = api(user).post("/api/v1/collections/", {"display_name": display_name})
        assert made.status_code == 201, made.json()
        return Collection.objects.get(slug=made.json()["id"])

    return make


# --- Worlds ---


@pytest.fixture
@mark_dependents(starts_from(worlds.results))
def results(own_buckets: Path, built: str) -> str:
    return built


@pytest.fixture
@mark_dependents(starts_from(worlds.in_review))
def in_review(own_buckets: Path, built: Any) -> Any:
    return built


@pytest.fixture
@mark_dependents(starts_from(worlds.approved))
def approved(own_buckets: Path, built: Any) -> Any:
    return built


@pytest.fixture
@mark_dependents(starts_from(worlds.released))
def released(own_buckets: Path, built: Any) -> Any:
    return built


@pytest.fixture
@mark_dependents(starts_from(worlds.november))
def filled(own_buckets: Path, built: int) -> Collection:
    """alice's, with three files."""
    return Collection.objects.get(pk=built)


@pytest.fixture
def stubborn(filled: Collection, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of an object in the vault that will not go."""
    vault = settings.STORAGES["vault"]
    settings.STORAGES = settings.STORAGES | {"vault": vault | {"BACKEND": "tests.services.purging.Stubborn"}}
    key = StoredFile.objects.order_by("pk")[1].object_key
    monkeypatch.setattr(purging.Stubborn, "locked", key)
    return key


@pytest.fixture
def world(built: World) -> World:
    """Of egress: for tests that are marked with `egress_world.make_world`."""
    return built
