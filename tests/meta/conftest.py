"""The world of the access matrix, made once for a module: what a test does to it is undone."""

from collections.abc import Iterator

import pytest
from pytest_django import DjangoDbBlocker

from tests.meta.everybody import World, make_world, undone


@pytest.fixture(scope="module")
def made_world(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[World]:
    with django_db_blocker.unblock(), undone():
        yield make_world()


@pytest.fixture
def world(made_world: World) -> Iterator[World]:
    with undone():
        yield made_world
