"""The fixture for the world of the access matrix."""

import pytest

from tests.meta.access_world import World


@pytest.fixture
def world(built: World) -> World:
    """The world of tests that start from `access_world.make_world`."""
    return built
