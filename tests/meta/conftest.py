"""The world of the access matrix."""

import pytest

from tests.meta.access_world import World


@pytest.fixture
def world(built: World) -> World:
    """For tests that are marked with `everybody.make_world`."""
    return built
